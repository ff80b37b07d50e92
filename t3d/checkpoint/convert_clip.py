"""CLIP towers in transformers' folders <-> t3d/nets/{clip,clip_vision}.py.

transformers stores one array per layer and a matrix as [out, in]; ours stack the layers (the layer axis in front) and store
[in, out]. Text keys come with the prefix `text_model.` (hub files), without any (CLIPTextModel.save_pretrained since
transformers 5.6, huggingface/transformers#44431), or beside the vision tower's in one CLIPModel folder; all three are read.
"""

import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.checkpoint import clip_configs, torch_files
from t3d.core import prng
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.core.typing import Array, Float, PyTree
from t3d.nets import clip
from t3d.nets.judges import clip_vision

LAYER = {  # torch name within a layer -> ours, of modules; leaves follow from RENAMED
    'self_attn.q_proj': 'query',
    'self_attn.k_proj': 'key',
    'self_attn.v_proj': 'value',
    'self_attn.out_proj': 'out',
    'layer_norm1': 'norm_1',
    'layer_norm2': 'norm_2',
    'mlp.fc1': 'mlp_in',
    'mlp.fc2': 'mlp_out',
}
TEXT = {
    'embeddings.token_embedding.weight': 'token_embedding/embedding',
    'embeddings.position_embedding.weight': 'position_embedding',
    'final_layer_norm.weight': 'final_norm/scale',
    'final_layer_norm.bias': 'final_norm/bias',
}
VISION = {
    'embeddings.class_embedding': 'class_embedding',
    'embeddings.patch_embedding.weight': 'patch_embedding/kernel',
    'embeddings.position_embedding.weight': 'position_embedding',
    'pre_layrnorm.weight': 'pre_norm/scale',  # misspelt in every file
    'pre_layrnorm.bias': 'pre_norm/bias',
    'post_layernorm.weight': 'post_norm/scale',
    'post_layernorm.bias': 'post_norm/bias',
}
PROJECTION = {'text': 'text_projection.weight', 'vision': 'visual_projection.weight'}
IGNORED = ('position_ids', 'logit_scale')  # name suffixes: position indices, and a temperature that only training needs


class Clip(NamedTuple):
    """Both towers of one CLIPModel folder; `end` is what clip.embed wants."""

    text: clip.TextTower
    text_params: PyTree
    text_projection: np.ndarray  # [text width, shared width]
    end: int | None
    vision: clip_vision.VisionTower
    vision_params: PyTree


# -------------------------------------------------------------------------------------------------------- entry points


def load_clip_text(folder, *, variant: str | None = None, dtype=jnp.float32) -> tuple[clip.TextTower, PyTree]:
    """(module, params) of a folder of CLIPTextModel, CLIPTextModelWithProjection or CLIPModel; params are float32 arrays.

    Args:
      folder: holds config.json and safetensors.
      variant: 'fp16' for files named `model.fp16.safetensors`.
      dtype: of the module's computation.
    Raises:
      UsageError: the folder is none, or its arrays are not those of its config (missing, unknown, shape, not finite).
    """
    config, arrays = _open(folder, 'text', variant)
    module = text_module(config, dtype, folder)
    arrays = {name: value for name, value in arrays.items() if name != PROJECTION['text']}
    return module, to_ours(arrays, text_names(module.layers), text_shapes(module), folder)


def load_text_projection(folder, *, variant: str | None = None) -> tuple[Float[Array, 'c d'], int | None]:
    """(projection [text width, shared width] float32, id of the end mark or None) as clip.embed takes them."""
    config, arrays = _open(folder, 'text', variant)
    if PROJECTION['text'] not in arrays:
        raise UsageError(
            f'{folder} has no {PROJECTION["text"]}: it is a text tower alone, whose vectors no image can be compared with. '
            'Give a folder of CLIPModel or CLIPTextModelWithProjection.'
        )
    return _float32(arrays[PROJECTION['text']]).T, clip_configs.end_mark(config)


def load_clip_vision(folder, *, variant: str | None = None, dtype=jnp.float32) -> tuple[clip_vision.VisionTower, PyTree]:
    """(module, params) of a folder of CLIPVisionModel, CLIPVisionModelWithProjection or CLIPModel; as load_clip_text."""
    config, arrays = _open(folder, 'vision', variant)
    projection = arrays[PROJECTION['vision']].shape[0] if PROJECTION['vision'] in arrays else 0
    module = vision_module(config, projection, dtype, folder)
    return module, to_ours(arrays, vision_names(module.layers, bool(projection)), vision_shapes(module), folder)


def load_clip(folder, *, variant: str | None = None, dtype=jnp.float32) -> Clip:
    """Both towers of a CLIPModel folder, for scores that compare images with text (metrics/clip_score.py)."""
    text, text_params = load_clip_text(folder, variant=variant, dtype=dtype)
    projection, end = load_text_projection(folder, variant=variant)
    vision, vision_params = load_clip_vision(folder, variant=variant, dtype=dtype)
    if vision.projection != projection.shape[1]:
        raise UsageError(
            f'{folder}: text vectors of {projection.shape[1]} numbers, image vectors of {vision.projection or vision.width}: '
            'they cannot be compared. Give a folder that CLIPModel.save_pretrained wrote.'
        )
    return Clip(text, text_params, projection, end, vision, vision_params)


def save_clip_text(folder, module: clip.TextTower, params: PyTree, *, end: int = 49407) -> None:
    """Writes a folder that transformers' CLIPTextModel.from_pretrained reads, float32, keys with the hub's prefix."""
    config = dict(
        architectures=['CLIPTextModel'],
        model_type='clip_text_model',
        vocab_size=module.vocabulary_size,
        max_position_embeddings=module.length,
        hidden_size=module.width,
        intermediate_size=module.mlp_ratio * module.width,
        num_hidden_layers=module.layers,
        num_attention_heads=module.heads,
        hidden_act=module.activation,
        layer_norm_eps=1e-5,
        eos_token_id=end,
    )
    _write(folder, config, to_theirs(params, text_names(module.layers)), 'text')


def save_clip_vision(folder, module: clip_vision.VisionTower, params: PyTree) -> None:
    """Writes a folder that CLIPVisionModelWithProjection (CLIPVisionModel without a projection) reads, float32."""
    suffix = 'WithProjection' if module.projection else ''
    config = dict(
        architectures=[f'CLIPVisionModel{suffix}'],
        model_type='clip_vision_model',
        image_size=module.image,
        patch_size=module.patch,
        num_channels=3,
        hidden_size=module.width,
        intermediate_size=module.mlp_width,
        num_hidden_layers=module.layers,
        num_attention_heads=module.heads,
        hidden_act=module.activation,
        layer_norm_eps=1e-5,
        **({'projection_dim': module.projection} if module.projection else {}),
    )
    _write(folder, config, to_theirs(params, vision_names(module.layers, bool(module.projection))), 'vision')


# ------------------------------------------------------------------------------------------------- configs and shapes


def text_module(config: dict, dtype=jnp.float32, where='config.json') -> clip.TextTower:
    """The tower that a CLIPTextConfig describes."""
    config = clip_configs.complete(config, 'text', where)
    width, inner = config['hidden_size'], config['intermediate_size']
    if inner % width:
        raise UsageError(f'{where}: intermediate_size {inner} is no multiple of hidden_size {width}, as every released one is.')
    return clip.TextTower(
        vocabulary_size=config['vocab_size'],
        length=config['max_position_embeddings'],
        width=width,
        layers=config['num_hidden_layers'],
        heads=config['num_attention_heads'],
        mlp_ratio=inner // width,
        activation=config['hidden_act'],
        dtype=dtype,
    )


def vision_module(config: dict, projection: int, dtype=jnp.float32, where='config.json') -> clip_vision.VisionTower:
    """The tower that a CLIPVisionConfig describes; `projection` = 0 for none."""
    config = clip_configs.complete(config, 'vision', where)
    if config['num_channels'] != 3:
        raise UsageError(f'{where}: num_channels {config["num_channels"]}, this tower reads 3 (R G B).')
    return clip_vision.VisionTower(
        image=config['image_size'],
        patch=config['patch_size'],
        width=config['hidden_size'],
        layers=config['num_hidden_layers'],
        heads=config['num_attention_heads'],
        mlp_width=config['intermediate_size'],
        projection=projection,
        activation=config['hidden_act'],
        dtype=dtype,
    )


def text_shapes(module: clip.TextTower) -> PyTree:
    """The parameter tree as ShapeDtypeStructs; costs no memory."""
    tokens = jax.ShapeDtypeStruct((1, module.length), jnp.int32)
    return jax.eval_shape(module.init, prng.key(0), tokens)['params']


def vision_shapes(module: clip_vision.VisionTower) -> PyTree:
    """The parameter tree as ShapeDtypeStructs; costs no memory."""
    images = jax.ShapeDtypeStruct((1, module.image, module.image, 3), jnp.float32)
    return jax.eval_shape(module.init, prng.key(0), images)['params']


# -------------------------------------------------------------------------------------------------------------- names


class Place(NamedTuple):
    """Where a torch array goes: a path of our tree, and the index within its stack (None: not stacked)."""

    path: str
    layer: int | None = None


def text_names(layers: int) -> dict[str, Place]:
    """Every torch name of a text tower, without prefix."""
    return {name: Place(path) for name, path in TEXT.items()} | _layer_names(layers)


def vision_names(layers: int, projection: bool) -> dict[str, Place]:
    """Every torch name of a vision tower, without prefix."""
    last = {PROJECTION['vision']: Place('projection/kernel')} if projection else {}
    return {name: Place(path) for name, path in VISION.items()} | _layer_names(layers) | last


def _layer_names(layers: int) -> dict[str, Place]:
    return {
        f'encoder.layers.{k}.{theirs}.{leaf}': Place(f'layers/{ours}/{_leaf(ours, leaf)}', k)
        for k in range(layers)
        for theirs, ours in LAYER.items()
        for leaf in ('weight', 'bias')
    }


def _leaf(module: str, leaf: str) -> str:
    return {'weight': 'scale' if module.startswith('norm') else 'kernel'}.get(leaf, leaf)


def to_ours(arrays: dict[str, np.ndarray], names: dict[str, Place], shapes: PyTree, where) -> PyTree:
    """Our float32 tree from torch arrays.

    Raises:
      UsageError: names missing or unknown, another shape than `shapes` wants.
    """
    ours = trees.flatten(shapes)
    theirs = {
        name: jax.ShapeDtypeStruct(_torch_shape(ours[place.path].shape, place), np.float32) for name, place in names.items()
    }
    lines = trees.mismatch(arrays, theirs)
    if lines:
        raise UsageError(f'the arrays in {where} are not those of its config.json:\n' + '\n'.join(lines))
    leaves = {path: np.empty(leaf.shape, np.float32) for path, leaf in ours.items()}
    for name, (path, layer) in names.items():
        leaves[path][... if layer is None else layer] = _transpose(_float32(arrays[name]), path)
    return trees.unflatten(leaves)


def to_theirs(params: PyTree, names: dict[str, Place]) -> dict[str, np.ndarray]:
    """The inverse of to_ours: contiguous float32 arrays by torch name."""
    leaves = {path: np.asarray(leaf, np.float32) for path, leaf in trees.flatten(jax.device_get(params)).items()}
    return {
        name: np.ascontiguousarray(_transpose(leaves[path] if layer is None else leaves[path][layer], path, back=True))
        for name, (path, layer) in names.items()
    }


def _torch_shape(shape, place: Place) -> tuple[int, ...]:
    shape = shape if place.layer is None else shape[1:]
    return _transpose(np.broadcast_to(np.float32(0), shape), place.path, back=True).shape


def _transpose(value: np.ndarray, path: str, back: bool = False) -> np.ndarray:
    """[out, in] -> [in, out], [out, in, h, w] -> [h, w, in, out] for kernels; `back` inverts."""
    if not path.endswith('kernel'):
        return value
    return value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1) if back else value.transpose(2, 3, 1, 0)


# -------------------------------------------------------------------------------------------------------------- files


def _open(folder, tower: str, variant: str | None) -> tuple[dict, dict[str, np.ndarray]]:
    """(config of one tower, its arrays without prefix; its projection among them)."""
    config = torch_files.read_config(folder)
    if f'{tower}_config' in config:
        shared = {'projection_dim': config['projection_dim']} if 'projection_dim' in config else {}
        if not isinstance(config[f'{tower}_config'], dict):
            raise UsageError(f'{folder}: {tower}_config in config.json is no object of settings: copy the file again.')
        config = config[f'{tower}_config'] | shared
    elif config.get('model_type', f'clip_{tower}_model') != f'clip_{tower}_model':
        raise UsageError(f'{folder} holds a {config["model_type"]}, wanted a clip_{tower}_model or a whole CLIPModel.')
    stored = torch_files.open_stored(folder, variant=variant)
    prefix, other = f'{tower}_model.', {'text': 'vision', 'vision': 'text'}[tower]
    foreign = (f'{other}_model.', PROJECTION[other])
    arrays = {}
    for name, value in stored.tensors.items():
        if name.startswith(foreign) or name.endswith(IGNORED):
            continue
        if not np.isfinite(_float32(value)).all():
            raise UsageError(f'{stored.sources[name]}: {name} holds numbers that are not finite: copy or download it again.')
        arrays[name.removeprefix(prefix)] = value
    return config, arrays


def _float32(value: np.ndarray) -> np.ndarray:
    return np.asarray(value).astype(np.float32)


def _write(folder, config: dict, arrays: dict[str, np.ndarray], tower: str) -> None:
    folder, bare = pathlib.Path(folder), PROJECTION[tower]
    prefixed = {name if name == bare else f'{tower}_model.{name}': value for name, value in arrays.items()}
    torch_files.write(folder / 'model.safetensors', prefixed)
    (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
