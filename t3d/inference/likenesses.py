"""Models that compare pictures with texts, as what is given to a system: `given.clip`.

| value | what it is |
|---|---|
| a folder | CLIP of the user's: config.json of a CLIPModel, model.safetensors and its tokenizer |
| `toy_clip`, `toy_clip:SIZE` | in closed form, of the pictures of the prior `toy`; it reads texts as its system does |
| `judge` | where there is no CLIP: EfficientNet-Lite0 sees, MiniLM reads, from installed packages (`checkpoint.judges`) |

`judge` is the offline judge of `metrics/align.py` without its head, whose colours have no gradient: ConSE, the sentence vectors
of the likeliest ImageNet classes. It knows the prompts that its system learns from, and no others.
"""

import json
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import tokens
from t3d.core.errors import UsageError
from t3d.core.system import Given
from t3d.data.adapters import prompts
from t3d.data.sets import shapes
from t3d.diffusion import likeness
from t3d.inference import given, toy_pictures
from t3d.metrics import align
from t3d.nets.judges import efficientnet

TOY, JUDGE = 'toy_clip', 'judge'
SIZE = 16  # pixels per side of the pictures of toy_clip, where none are told


def is_likeness(value: str | os.PathLike) -> bool:
    """Whether a value names a model of pictures and texts."""
    return is_toy(value) or value == JUDGE or is_clip(value)


def is_toy(value) -> bool:
    return str(value).partition(':')[0] == TOY


def is_clip(value) -> bool:
    """Whether a folder holds a config.json of transformers' CLIP."""
    try:
        config = json.loads((pathlib.Path(value) / 'config.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get('model_type') == 'clip'


def open_likeness(value: str, config=None) -> Given:
    """The model that a value names.

    Args:
      config: of the system that it is given to: its section `text` says how batches are read, `data` which prompts there are.
    Raises:
      UsageError: it does not load, or reads texts in another way than that section says.
    """
    text = None if config is None else config.get('text')
    if is_toy(value):
        return open_toy(value, text)
    return open_judge(text, prompts_of(config)) if value == JUDGE else open_clip(value)


def prompts_of(config) -> tuple[str, ...]:
    """Every prompt that a system learns from, if it learns from prompts."""
    known = config is not None and config.get('data', {}).get('kind') == 'prompts'
    return prompts.Prompts(config.data, 'all').every if known else ()


def open_toy(value: str, text) -> Given:
    """`toy_clip` or `toy_clip:SIZE`, with the words of a section `text`."""
    if text is None:
        raise UsageError(f'{value!r} reads texts as its system does, and this one has no section `text`.')
    size = toy_pictures.size_of(value, SIZE)
    params = likeness.of_means_params(toy_pictures.means(size))
    captions = [scene.captions for scene in shapes.singles('all')]
    made = likeness.of_means(captions, size, tokens.make(text))
    return Given(made, params, None, f'{TOY}:{size}', given.digest(params))


def open_judge(text, known: Sequence[str] = ()) -> Given:
    """ConSE of EfficientNet-Lite0 beside the sentence vectors of known prompts; a text of no known prompt has the vector 0.

    Raises:
      MissingJudge: a package is not installed; the message is the command that does.
    """
    from t3d.checkpoint import judges

    if text is None:
        raise UsageError(f'{JUDGE!r} reads texts as its system does, and this one has no section `text`.')
    known = list(known) or ['']
    module, variables = judges.efficientnet_lite0()
    encode = judges.text_encoder()
    tokenize = tokens.make(text)
    params = {
        'network': variables,
        'classes': jnp.asarray(encode([f'a photo of a {name}' for name in judges.imagenet_names()])),
        'texts': jnp.asarray(encode([f'a photo of {prompt}' for prompt in known])),
    }
    ids = np.asarray(tokenize(known))

    def images(params, pictures):
        logits = module.apply(params['network'], efficientnet.prepare(pictures)).logits
        return likeness.unit(likely(logits, params['classes']))

    def texts(params, prompt_ids):
        return likeness.looked_up(prompt_ids, ids, np.arange(len(ids)), params['texts'])

    made = likeness.Likeness(tokenize, images, texts, params['classes'].shape[-1])
    return Given(made, params, None, JUDGE, given.digest(params))


def likely(logits, classes):
    """The mean vector [B, D] of the likeliest of K classes [K, D], weighted by their shares; `align.conse` with a gradient."""
    shares, places = jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32)), min(align.TOP, logits.shape[-1]))
    return jnp.einsum('bk,bkd->bd', shares / jnp.sum(shares, -1, keepdims=True), classes[places])


def open_clip(folder: str | os.PathLike) -> Given:
    """CLIP from a folder of CLIPModel."""
    from t3d.checkpoint import convert_clip
    from t3d.nets import clip
    from t3d.nets.judges import clip_vision

    towers = convert_clip.load_clip(folder)
    tokenize = tokens.load_clip(str(folder), towers.text.length, towers.text.vocabulary_size)
    params = {'text': towers.text_params, 'projection': jnp.asarray(towers.text_projection), 'vision': towers.vision_params}

    def images(params, pictures):
        seen = clip_vision.prepare(pictures, towers.vision.image)
        return likeness.unit(towers.vision.apply({'params': params['vision']}, seen).pooled)

    def texts(params, ids):
        features = towers.text.apply({'params': params['text']}, ids)
        return likeness.unit(clip.embed(features, ids, params['projection'], tokenize.end))

    made = likeness.Likeness(tokenize, images, texts, towers.vision.projection)
    return Given(made, params, None, pathlib.Path(folder).resolve().name, given.digest(params))
