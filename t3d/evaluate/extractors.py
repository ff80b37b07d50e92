"""What scores need beside pictures: extractors of features, and judges that compare pictures with captions."""

import pathlib
from collections.abc import Callable

import numpy as np

from t3d.core import tokens
from t3d.core.errors import UsageError
from t3d.evaluate.drawing import Pictures
from t3d.inference import features
from t3d.metrics import fid
from t3d.metrics import scores as reports

CLIP, ALIGNED = 'clip', ('align', 'align_mobilenet')  # compare with captions


def find(
    kind: str, config, inception_weights, clip_weights, align_head
) -> fid.Extractor | Callable[[Pictures], list[reports.Report]]:
    """What scores need beside the pictures: an extractor of features, or a function to reports."""
    if kind == 'clip':
        if clip_weights is None:
            raise UsageError(
                'clip needs weights, which t3d cannot ship: give --clip-weights DIR, a local folder of CLIPModel with '
                'config.json, model.safetensors and its tokenizer (for example openai/clip-vit-large-patch14).'
            )
        return _clip(clip_weights)
    if kind in ALIGNED:
        return _align(kind, align_head, config)
    if kind == 'inception':
        return features.inception(inception_weights)
    return {'tiny': fid.tiny, 'effnet': features.effnet, 'mobilenet': features.mobilenet}[kind]()


def _clip(folder) -> Callable[[Pictures], list[reports.Report]]:
    from t3d.checkpoint import convert_clip
    from t3d.metrics import clip_score

    towers = convert_clip.load_clip(folder)
    tokenize = tokens.load_clip(str(folder), towers.text.length, towers.text.vocabulary_size)

    def judge(pictures: Pictures) -> list[reports.Report]:
        prompts, own = _different(pictures.prompts)
        images = clip_score.image_vectors(towers.vision, towers.vision_params, pictures.shown)
        texts = clip_score.text_vectors(
            towers.text, towers.text_params, tokenize(prompts), towers.text_projection, end=tokenize.end
        )
        return [clip_score.evaluate(images, texts, own, extractor=f'CLIP {pathlib.Path(folder).resolve().name}')]

    return judge


def _align(name: str, folder, config) -> Callable[[Pictures], list[reports.Report]]:
    from t3d.checkpoint import judges
    from t3d.evaluate import align_head

    second = name != 'align'
    try:
        encode_images = judges.second_image_encoder() if second else judges.image_encoder()
        encode_texts, _ = judges.text_encoder(), judges.imagenet_names()
    except judges.MissingJudge as error:
        raise UsageError(f'{name}: {error}') from error
    head = None if folder is None or second else align_head.load(folder)
    # Colours are exact for recoloured objects and measured for originals. The second judge has no head, so it knows no colours.
    exact = not second and (config.data.name == 'toy' or config.data.get('variants', 0) > 0)

    def judge(pictures: Pictures) -> list[reports.Report]:
        images, prompts = pictures.shown, pictures.prompts
        if not pictures.paired:  # samples, not views of one object: each on its own
            prompts = [prompt for prompt in prompts for _ in range(images.shape[1])]
            images = images.reshape(-1, 1, *images.shape[2:])
        options = {'background': config.render.background, 'colours': exact}
        made = align_head.judge_pictures(head, images, prompts, encode_images, encode_texts, **options)
        return [align_head.by_second_judge(report) for report in made] if second else made

    return judge


def _different(prompts: list[str]) -> tuple[list[str], np.ndarray]:
    """(the different prompts, the index of each one among them)."""
    each = list(dict.fromkeys(prompts))
    return each, np.array([each.index(prompt) for prompt in prompts])
