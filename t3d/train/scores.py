"""`t3d eval RUN --metrics psnr,ssim,fid ...`: chosen scores of a run's pictures, each with n, extractor and control.

    psnr, ssim          renders against the true views from the same cameras
    fid, kid            distance of the two sets of pictures over Inception-v3, with the user's weights
    fid_tiny, kid_tiny  the same over random convolutions: for small runs of this project, needs no files
    fd_effnet, kd_effnet  the same over EfficientNet-Lite0, from an installed package
    fd_mobilenet, kd_mobilenet  the same over MobileNetV2, from another
    clip                CLIP similarity and R-precision, with the user's weights
    align               retrieval of the caption, and of its colour where the data know it exactly, by offline judges from
                        installed packages; with --align-head DIR by a head that `python -m launch.align_head` trained
    align_mobilenet     retrieval of the caption by the second judge, MobileNetV2, which has no head: for what was chosen or
                        ranked by EfficientNet's features

The shuffled control of a score of pairs (psnr, ssim, clip, align) takes the truth or the caption of another object; that of a
distance between sets mixes their members, which gives its value where there is no difference, at the same n. Renders of the
same scenes from the same cameras as the truth can lie below that: two independent draws differ more.
"""

import difflib
import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from t3d.core import tokens
from t3d.core.errors import UsageError
from t3d.data import oracle, shapes, toy
from t3d.geom import cameras
from t3d.metrics import fid, image
from t3d.metrics import scores as reports
from t3d.train import evaluate as views_of
from t3d.train import evaluate_gan, evaluate_pictures, evaluate_triplanes
from t3d.train.inference import Loaded

PAIRED = {'psnr': image.psnr, 'ssim': image.ssim}
# Fréchet distances, and the kernel distance over the same features
FRECHET = {'fid': 'kid', 'fid_tiny': 'kid_tiny', 'fd_effnet': 'kd_effnet', 'fd_mobilenet': 'kd_mobilenet'}
EXTRACTOR = {'fid': 'inception', 'fid_tiny': 'tiny', 'fd_effnet': 'effnet', 'fd_mobilenet': 'mobilenet'}
EXTRACTOR |= {FRECHET[name]: features for name, features in EXTRACTOR.items()}
WORDED = ('clip', 'align', 'align_mobilenet')  # compare with captions
NAMES = (*PAIRED, *EXTRACTOR, *WORDED)
EFFNET = 1280  # pooled features of EfficientNet-Lite0, and of MobileNetV2
SAMPLES = 16  # of a caption, from systems that make pictures


class Pictures(NamedTuple):
    """What a run shows and what is true.

    Attributes:
      prompts: [N].
      shown: [N, V, H, W, 3] in [0, 1], V views (or samples) of each prompt.
      true: the same shape; from the same cameras where `paired`.
    """

    prompts: list[str]
    shown: np.ndarray
    true: np.ndarray
    paired: bool


def evaluate(
    loaded: Loaded,
    names: list[str],
    log=lambda line: None,
    *,
    inception_weights: str | None = None,
    clip_weights: str | None = None,
    align_head: str | None = None,
    limit: int | None = None,
    split: str | None = None,
) -> dict[str, float | int | str]:
    """The named scores; what they need is looked for before anything is rendered.

    Returns:
      `<score>`, `control/<score>_shuffled`, and `<score>_n` and `<score>_extractor`, for each; `log` gets one line for each.
    Raises:
      UsageError: an unknown name, or weights or a package that a score needs; the message says what to give.
    """
    names = check(names, loaded)
    if align_head is not None and 'align' not in names:
        raise UsageError(f'--align-head {align_head} is for align, which is not among the metrics: add it, or drop the head.')
    kinds = dict.fromkeys(EXTRACTOR.get(name, name) for name in names if name not in PAIRED)
    judges = {kind: _judge(kind, loaded.config, inception_weights, clip_weights, align_head) for kind in kinds}
    found = pictures(loaded, log, limit=limit, split=split)
    scores, features = {}, {}
    for name in names:
        if name in PAIRED:
            made = [_of_pairs(name, found)]
        elif name in EXTRACTOR:
            kind = EXTRACTOR[name]
            if kind not in features:
                log(f'features of {found.shown[..., 0, 0, 0].size} images and as many true ones: {judges[kind].name}')
                features[kind] = [_features(judges[kind], some) for some in (found.shown, found.true)]
            made = [distance(name, judges[kind], *features[kind], log=log)]
        else:
            made = judges[name](found)
        for report in made:
            for line in report.lines() if name in WORDED else _lines(report):
                log(line)
            scores.update(_flat(report))
    return scores


def check(names: list[str], loaded: Loaded | None = None) -> list[str]:
    """The names without repetition; UsageError for one that is unknown, or that this run cannot have."""
    for name in names:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, 1)
            hint = f' Did you mean {near[0]}?' if near else ''
            raise UsageError(f'unknown metric {name!r}: choose from {", ".join(NAMES)}.{hint}')
        if loaded is None:
            continue
        single = views_of.learns_from_single_views(loaded)
        if name in WORDED and loaded.config.system == evaluate_gan.SYSTEM:
            raise UsageError(f'{name} compares with captions, and {loaded.config.system} reads none: choose fid_tiny or fid.')
        if name in PAIRED and single:
            raise UsageError(
                f'{name} compares with true views of the object shown, and {loaded.config.system} makes objects of its own: '
                'choose a distance between sets, for example fid_tiny.'
            )
        if name in PAIRED and views_of.makes_pictures(loaded):
            raise UsageError(
                f'{name} compares with the true view of a camera, and {loaded.config.system} makes pictures without one: '
                'choose a distance between sets, for example fid_tiny, or clip.'
            )
    return list(dict.fromkeys(names))


# ----------------------------------------------------------------------------------------------------------- pictures


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> Pictures:
    """A run's renders from the evaluation's cameras with the true views; from systems without cameras, samples.

    - toy, single objects: the 32 large ones, 6 views. toy with pairs: at most `limit` (256) held-out scenes, 4 views.
    - built data: the held-out views of at most `limit` objects of `split` (those trained on).
    - pictures: `limit` (16) samples of each caption of the 32 large objects, with as many true renders from random cameras.
    - learned from single views: `limit` pictures of a GAN (1,024), or samples of each caption (8), with as many real pictures.
    """
    config = loaded.config
    if limit is not None and limit < 1:
        raise UsageError(f'--limit {limit}: wanted at least 1.')
    if config.data.name == 'toy' and split is not None:
        raise UsageError(f'split {split!r}: toy has no built splits: leave it out.')
    if views_of.learns_from_single_views(loaded):
        if split is not None:
            raise UsageError(f'split {split!r}: {config.system} is scored on the pictures it was trained on: leave it out.')
        judge = evaluate_gan if config.system == evaluate_gan.SYSTEM else evaluate_triplanes
        return Pictures(*judge.pictures(loaded, limit), False)
    if views_of.makes_pictures(loaded):
        return _samples(loaded, log, SAMPLES if limit is None else limit)
    if config.data.name != 'toy':
        prompts, (views, true), _ = views_of.object_views(config, limit=limit, split=split)
        log(f'rendering {len(prompts)} objects x {true.shape[1]} held-out views')
        told = views_of.progress(log, 'held-out views')
        return Pictures(prompts, views_of.render_views(loaded, prompts, views, true.shape[2], progress=told), true, True)
    if config.data.scenes == 'singles':
        things, shown, true = views_of.single_views(loaded)
        return Pictures([scene.captions[0] for scene in things], shown, true, True)
    return _pairs(loaded, log, 256 if limit is None else limit)


def _pairs(loaded, log, limit) -> Pictures:
    data, background = loaded.config.data, loaded.config.render.background
    azimuth, elevation = views_of.AZIMUTH[:4], views_of.ELEVATION[:4]
    scenes = shapes.pairs('test')
    scenes = [scenes[int(k)] for k in np.linspace(0, len(scenes) - 1, min(limit, len(scenes)))]
    log(f'rendering {len(scenes)} held-out scenes x 4 views')
    records = [toy.record(scene, azimuth, elevation, data.size, data.supersample) for scene in scenes]
    views = cameras.Cameras(*toy.camera_arrays(azimuth, elevation, shapes.RADIUS, shapes.FOV))
    prompts = [scene.captions[0] for scene in scenes]
    true = np.stack([oracle.composite(record['image'], background) for record in records])
    told = views_of.progress(log, 'held-out scenes')
    return Pictures(prompts, views_of.render_views(loaded, prompts, views, data.size, progress=told), true, True)


def _samples(loaded, log, samples) -> Pictures:
    data, background = loaded.config.data, loaded.config.render.background
    things, _ = evaluate_pictures.pairs_of_toy(loaded)
    prompts, random = [scene.captions[0] for scene in things], np.random.default_rng(977)
    log(f'drawing {samples} samples of each of {len(prompts)} captions')
    true = []
    for scene in things:
        azimuth, elevation = random.uniform(0.0, 2.0 * np.pi, samples), random.uniform(-0.2, 0.9, samples)
        record = toy.record(scene, azimuth, elevation, data.size, data.supersample)
        true.append(oracle.composite(record['image'], background))
    true = np.stack(true)
    shown = evaluate_pictures.draw(loaded, prompts, samples).reshape(true.shape)
    return Pictures(prompts, shown, true, False)


# ------------------------------------------------------------------------------------------------------------- scores


def _of_pairs(name: str, found: Pictures) -> reports.Report:
    """PSNR or SSIM over all views; the control compares with the true views of another object."""
    other = reports.derangement(len(found.true))
    value, control = (float(np.mean(PAIRED[name](found.shown, true))) for true in (found.true, found.true[other]))
    count = int(np.prod(found.true.shape[:2]))
    return reports.Report({name: value}, {name: control}, count, count, 'pixels')


def distance(name: str, extractor: fid.Extractor, shown: np.ndarray, true: np.ndarray, log=lambda line: None) -> reports.Report:
    """A distance between two sets of features [N, D]; a Fréchet distance that n forbids becomes the kernel distance."""
    if name in FRECHET and min(len(shown), len(true)) <= extractor.dim:
        log(
            f'warning: {name} of {min(len(shown), len(true))} images over {extractor.dim} features would be mostly bias; '
            f'{FRECHET[name]}, which is unbiased, stands in its place.'
        )
        name = FRECHET[name]

    def measure(a, b):
        return fid.frechet(fid.moments(a), fid.moments(b)) if name in FRECHET else fid.kernel_distance(a, b)[0]

    value, control = measure(shown, true), measure(*fid.shuffled(shown, true))
    return reports.Report({name: value}, {name: control}, len(shown), len(true), extractor.name)


def _features(extractor: fid.Extractor, images: np.ndarray) -> np.ndarray:
    return fid.extract(extractor, images.reshape(-1, *images.shape[2:]))


def _lines(report: reports.Report) -> list[str]:
    """Report.lines for scores that choose among no prompts."""
    tail = f'n={report.n} against {report.candidates} true, {report.extractor}'
    return [f'{name} {value:.4g} (shuffled {report.shuffled[name]:.4g}; {tail})' for name, value in report.values.items()]


def _flat(report: reports.Report) -> dict[str, float | int | str]:
    found = {}
    for name, value in report.values.items():
        found |= {name: value, f'control/{name}_shuffled': report.shuffled[name]}
        found |= {f'{name}_n': report.n, f'{name}_candidates': report.candidates, f'{name}_extractor': report.extractor}
    return found


# ------------------------------------------------------------------------------------------------------------- judges


def _judge(
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
    if kind in WORDED:
        return _align(kind, align_head, config)
    if kind == 'inception':
        return inception(inception_weights)
    return {'tiny': fid.tiny, 'effnet': effnet, 'mobilenet': mobilenet}[kind]()


def inception(path: str | None) -> fid.Extractor:
    """The FID Inception-v3 with the weights of a safetensors file."""
    from t3d.checkpoint import torch_files
    from t3d.nets import inception as net

    convert = torch_files.TO_SAFETENSORS.format('pt_inception-2015-12-05-6726825d.pth', 'inception.safetensors')
    if path is None or not pathlib.Path(path).is_file():
        given = 'weights, which t3d cannot ship' if path is None else f'weights, and {path} is no file'
        raise UsageError(
            f'fid and kid need {given}: give --inception-weights FILE, the FID Inception-v3 of 2015-12-05 as safetensors; from '
            f'pt_inception-2015-12-05-6726825d.pth of pytorch-fid, in its folder: {convert} . '
            'fid_tiny and kid_tiny need no file.'
        )
    params = jax.device_put(net.from_torch(torch_files.read(path)))
    apply = jax.jit(lambda params, images: net.Inception().apply({'params': params}, 2.0 * images - 1.0))
    digest = torch_files.digest(path)[:8]
    return fid.Extractor(f'Inception-v3 2015-12-05, weights {digest}', net.FEATURES, functools.partial(apply, params))


def effnet() -> fid.Extractor:
    """EfficientNet-Lite0's pooled features, with the weights of an installed package."""
    return _pooled('EfficientNet-Lite0', 'effnet', lambda judges: judges.image_encoder())


def mobilenet() -> fid.Extractor:
    """MobileNetV2's pooled features, with the weights of an installed package."""
    return _pooled('MobileNetV2', 'mobilenet', lambda judges: judges.second_image_encoder())


def _pooled(name: str, short: str, load) -> fid.Extractor:
    from t3d.checkpoint import judges

    try:
        encode = load(judges)
    except judges.MissingJudge as error:
        raise UsageError(f'fd_{short} and kd_{short}: {error}') from error
    return fid.Extractor(name, EFFNET, lambda images: encode(images)[0])


def _clip(folder) -> Callable[[Pictures], list[reports.Report]]:
    from t3d.checkpoint import convert_clip
    from t3d.metrics import clip_score

    towers = convert_clip.load_clip(folder)
    tokenize = tokens.load_clip(str(folder), towers.text.length, towers.text.vocabulary_size)

    def judge(found: Pictures) -> list[reports.Report]:
        prompts, own = _different(found.prompts)
        images = clip_score.image_vectors(towers.vision, towers.vision_params, found.shown)
        texts = clip_score.text_vectors(
            towers.text, towers.text_params, tokenize(prompts), towers.text_projection, end=tokenize.end
        )
        return [clip_score.evaluate(images, texts, own, extractor=f'CLIP {pathlib.Path(folder).resolve().name}')]

    return judge


def _align(name: str, folder, config) -> Callable[[Pictures], list[reports.Report]]:
    from t3d.checkpoint import judges
    from t3d.train import align_head

    second = name != 'align'
    try:
        encode_images = judges.second_image_encoder() if second else judges.image_encoder()
        encode_texts, _ = judges.text_encoder(), judges.imagenet_names()
    except judges.MissingJudge as error:
        raise UsageError(f'{name}: {error}') from error
    head = None if folder is None or second else align_head.load(folder)
    # Of recoloured objects; colours of the originals are measured ones. The second judge has no head, so it knows none.
    exact = not second and (config.data.name == 'toy' or config.data.get('variants', 0) > 0)

    def judge(found: Pictures) -> list[reports.Report]:
        shown, prompts = found.shown, found.prompts
        if not found.paired:  # samples, not views of one object: each on its own
            prompts = [prompt for prompt in prompts for _ in range(shown.shape[1])]
            shown = shown.reshape(-1, 1, *shown.shape[2:])
        options = {'background': config.render.background, 'colours': exact}
        made = align_head.judge_pictures(head, shown, prompts, encode_images, encode_texts, **options)
        return [align_head.by_second_judge(report) for report in made] if second else made

    return judge


def _different(prompts: list[str]) -> tuple[list[str], np.ndarray]:
    """(the different prompts, the index of each one among them)."""
    each = list(dict.fromkeys(prompts))
    return each, np.array([each.index(prompt) for prompt in prompts])
