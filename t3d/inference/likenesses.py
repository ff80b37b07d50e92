"""Models that compare pictures with texts, as what is given to a system: `given.clip`.

| value | what it is |
|---|---|
| a folder | CLIP of the user's: config.json of a CLIPModel, model.safetensors and its tokenizer |
| `toy_clip`, `toy_clip:SIZE` | in closed form, of the pictures of the prior `toy`; it reads texts as its system does |
"""

import json
import os
import pathlib

import jax.numpy as jnp

from t3d.core import tokens
from t3d.core.errors import UsageError
from t3d.core.system import Given
from t3d.data.sets import shapes
from t3d.diffusion import likeness
from t3d.inference import given, toy_pictures

TOY = 'toy_clip'
SIZE = 16  # pixels per side of the pictures of toy_clip, where none are told


def is_likeness(value: str | os.PathLike) -> bool:
    """Whether a value names a model of pictures and texts."""
    return is_toy(value) or is_clip(value)


def is_toy(value) -> bool:
    return str(value).partition(':')[0] == TOY


def is_clip(value) -> bool:
    """Whether a folder holds a config.json of transformers' CLIP."""
    try:
        config = json.loads((pathlib.Path(value) / 'config.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get('model_type') == 'clip'


def open_likeness(value: str, text=None) -> Given:
    """The model that a value names.

    Args:
      text: the section `text` of the system that it is given to, whose batches it is to read.
    Raises:
      UsageError: it does not load, or reads texts in another way than that section says.
    """
    return open_toy(value, text) if is_toy(value) else open_clip(value)


def open_toy(value: str, text) -> Given:
    """`toy_clip` or `toy_clip:SIZE`, with the words of a section `text`."""
    if text is None:
        raise UsageError(f'{value!r} reads texts as its system does, and this one has no section `text`.')
    size = toy_pictures.size_of(value, SIZE)
    params = likeness.of_means_params(toy_pictures.means(size))
    captions = [scene.captions for scene in shapes.singles('all')]
    made = likeness.of_means(captions, size, tokens.make(text))
    return Given(made, params, None, f'{TOY}:{size}', given.digest(params))


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
