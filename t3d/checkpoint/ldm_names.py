"""Names of single-file checkpoints (the latent-diffusion layout of MVDream, SPAD, Zero-1-to-3) <-> diffusers' names.

Such a file holds a UNet, an autoencoder and a text encoder under prefixes, and perhaps moving averages of the UNet whose
names have lost their dots. How many layers each level has and how many levels there are is read from the names themselves.
An autoencoder or a UNet is also published alone, in the same names without prefix.
"""

import re
from collections.abc import Iterable

import numpy as np

from t3d.checkpoint.torch_files import BadWeights, Stored

PREFIXES = {
    'unet': ('model.diffusion_model.',),
    'vae': ('first_stage_model.',),
    'text': ('cond_stage_model.transformer.', 'cond_stage_model.model.'),  # transformers' CLIP, OpenCLIP
}
ALONE = {  # beginnings of names that only such a part has, where it comes without its prefix
    'unet': re.compile(r'(input_blocks|middle_block|output_blocks)\.\d'),
    'vae': re.compile(r'(encoder|decoder)\.(down\.\d|up\.\d|mid\.)'),
}
AVERAGE = 'model_ema.diffusion_model'
# Not weights of the net: training state, the autoencoder's losses, noise tables, moving averages of other parts.
NOT_WEIGHTS = re.compile(r'^(loss|model_ema|discriminator)\.|(^|\.)(num_updates|decay|attn_mask|logit_scale|position_ids)$')
OUTER = (  # ldm, diffusers; each replaces the head of a UNet name
    ('time_embed.0.', 'time_embedding.linear_1.'),
    ('time_embed.2.', 'time_embedding.linear_2.'),
    ('camera_embed.0.', 'camera_embedding.linear_1.'),
    ('camera_embed.2.', 'camera_embedding.linear_2.'),
    ('input_blocks.0.0.', 'conv_in.'),
    ('out.0.', 'conv_norm_out.'),
    ('out.2.', 'conv_out.'),
    ('middle_block.0.', 'mid_block.resnets.0.'),
    ('middle_block.1.', 'mid_block.attentions.0.'),
    ('middle_block.2.', 'mid_block.resnets.1.'),
)
RESNET = (
    ('in_layers.0.', 'norm1.'),
    ('in_layers.2.', 'conv1.'),
    ('emb_layers.1.', 'time_emb_proj.'),
    ('out_layers.0.', 'norm2.'),
    ('out_layers.3.', 'conv2.'),
    ('skip_connection.', 'conv_shortcut.'),
)
VAE = (  # pieces of a name, ldm and diffusers
    ('.nin_shortcut.', '.conv_shortcut.'),
    ('.norm_out.', '.conv_norm_out.'),
    ('.mid.block_1.', '.mid_block.resnets.0.'),
    ('.mid.block_2.', '.mid_block.resnets.1.'),
    ('.mid.attn_1.norm.', '.mid_block.attentions.0.group_norm.'),
    ('.mid.attn_1.q.', '.mid_block.attentions.0.to_q.'),
    ('.mid.attn_1.k.', '.mid_block.attentions.0.to_k.'),
    ('.mid.attn_1.v.', '.mid_block.attentions.0.to_v.'),
    ('.mid.attn_1.proj_out.', '.mid_block.attentions.0.to_out.0.'),
)
OPEN_CLIP = (  # pieces of a name of one layer, OpenCLIP and transformers
    ('ln_1.', 'layer_norm1.'),
    ('ln_2.', 'layer_norm2.'),
    ('mlp.c_fc.', 'mlp.fc1.'),
    ('mlp.c_proj.', 'mlp.fc2.'),
    ('attn.out_proj.', 'self_attn.out_proj.'),
)


def is_ldm(keys: Iterable[str]) -> bool:
    """True for the names of a whole single-file checkpoint."""
    return any(key.startswith(heads) for key in keys for heads in PREFIXES.values())


def part_alone(keys: Iterable[str]) -> str | None:
    """'unet' or 'vae' for the names of one part without prefix, as autoencoders are often published; else None."""
    keys = list(keys)
    return next((part for part, pattern in ALONE.items() if any(pattern.match(key) for key in keys)), None)


def component(stored: Stored, part: str, *, average: bool = False) -> Stored:
    """One part of a single-file checkpoint, or a file of that part alone, under diffusers' (text: transformers') names.

    Args:
      part: 'unet', 'vae' or 'text'.
      average: the moving average of the UNet instead of its last weights.
    Raises:
      BadWeights: the file lacks the part, or has names of it that are not known.
    """
    names = _average_names(stored) if average else _plain_names(stored, part)
    if not names:
        where, what = stored.files[0], f'{part} average' if average else part
        raise BadWeights(f'{where} has no {what}: no key starts with {AVERAGE if average else " or ".join(PREFIXES[part])}.')
    local = {short: stored.tensors[key] for short, key in names.items() if not NOT_WEIGHTS.search(short)}
    convert = {'unet': unet_from_ldm, 'vae': vae_from_ldm, 'text': text_from_ldm}[part]
    try:
        tensors, origin = convert(local)
    except KeyError as error:
        raise BadWeights(f'{stored.files[0]}: {error.args[0]} is no known name of a {part}.') from error
    return Stored(tensors, {key: stored.sources[names[origin[key]]] for key in tensors}, stored.files)


def unet_from_ldm(tensors: dict) -> tuple[dict, dict[str, str]]:
    """(tensors by diffusers' names, diffusers' name -> ldm name) of a UNet, prefix removed; KeyError for an unknown name."""
    layers = unet_layers(tensors)
    origin = {unet_name(key, layers): key for key in tensors}
    return {name: tensors[key] for name, key in origin.items()}, origin


def unet_layers(keys: Iterable[str]) -> tuple[int, ...]:
    """ResNets of each level, from the places of the down-samplers, one of which ends every level but the last."""
    matches = [match for key in keys if (match := re.match(r'input_blocks\.(\d+)\.(0\.op\.)?', key))]
    downs = sorted({int(match[1]) for match in matches if match[2]})
    ends = [*downs, 1 + max((int(match[1]) for match in matches), default=0)]
    return tuple(end - start - 1 for start, end in zip([0, *downs], ends))


def unet_name(key: str, layers: tuple[int, ...] = (2, 2, 2, 2)) -> str:
    """diffusers' name of a UNet tensor. `input_blocks.i` counts layers[k] + 1 for level k down, `output_blocks.i` upwards."""
    for head, name in OUTER:
        if key.startswith(head):
            rest = key.removeprefix(head)
            return name + (_replace(rest, RESNET) if '.resnets.' in name else rest)
    match = re.fullmatch(r'(input|output)_blocks\.(\d+)\.(\d)\.(.+)', key)
    if not match:
        raise KeyError(key)
    side, place, inner, rest = match[1], int(match[2]), int(match[3]), match[4]
    starts = _starts(layers, side == 'input')
    block = max((k for k, start in enumerate(starts) if start <= place), default=len(layers))
    if block == len(layers):
        raise KeyError(key)
    layer = place - starts[block]
    level = f'{"down" if side == "input" else "up"}_blocks.{block}'
    if rest.startswith('op.'):
        return f'{level}.downsamplers.0.conv.{rest.removeprefix("op.")}'
    if inner and rest.startswith('conv.'):
        return f'{level}.upsamplers.0.{rest}'
    return f'{level}.attentions.{layer}.{rest}' if inner else f'{level}.resnets.{layer}.{_replace(rest, RESNET)}'


def _starts(layers: tuple[int, ...], down: bool) -> list[int]:
    """The first `input_blocks` (down) or `output_blocks` of each block, and the place after the last."""
    counts = [count + 1 for count in (layers if down else reversed(layers))]
    return [down + sum(counts[:k]) for k in range(len(counts) + 1)]


def unet_to_ldm(keys: Iterable[str]) -> dict[str, str]:
    """ldm name of every diffusers' name of a whole UNet, without prefix; the inverse of `unet_name`. May raise KeyError."""
    keys, levels = list(keys), {}
    for key in keys:
        if match := re.match(r'down_blocks\.(\d+)\.resnets\.(\d+)\.', key):
            levels[int(match[1])] = max(levels.get(int(match[1]), 0), int(match[2]) + 1)
    layers = tuple(levels[k] for k in sorted(levels))
    attention = {key.partition('.attentions.')[0] for key in keys if '.attentions.' in key}
    return {key: _unet_to_ldm(key, layers, attention) for key in keys}


def _unet_to_ldm(key: str, layers: tuple[int, ...], attention: set[str]) -> str:
    for name, head in OUTER:
        if key.startswith(head):
            rest = key.removeprefix(head)
            return name + (_replace(rest, RESNET, back=True) if '.resnets.' in head else rest)
    match = re.fullmatch(r'(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)', key)
    if not match:
        raise KeyError(key)
    side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    starts = _starts(layers, side == 'down')
    if block >= len(layers) or kind in ('resnets', 'attentions') and starts[block] + layer >= starts[block + 1]:
        raise KeyError(key)
    first, last = starts[block], starts[block + 1] - 1
    if kind == 'downsamplers':
        return f'input_blocks.{last}.0.op.{rest.removeprefix("conv.")}'
    if kind == 'upsamplers':
        return f'output_blocks.{last}.{2 if f"up_blocks.{block}" in attention else 1}.{rest}'
    level = f'{"in" if side == "down" else "out"}put_blocks.{first + layer}'
    return f'{level}.1.{rest}' if kind == 'attentions' else f'{level}.0.{_replace(rest, RESNET, back=True)}'


def vae_from_ldm(tensors: dict) -> tuple[dict, dict[str, str]]:
    """As unet_from_ldm, of an autoencoder; its attention matrices stay the 1x1 convolutions they are."""
    levels = 1 + max((int(match[1]) for key in tensors if (match := re.match(r'decoder\.up\.(\d+)\.', key))), default=0)
    origin = {vae_name(key, levels): key for key in tensors}
    return {name: tensors[key] for name, key in origin.items()}, origin


def vae_name(key: str, levels: int = 4) -> str:
    """diffusers' name of an autoencoder tensor; the decoder's levels are counted from the other end."""
    if not re.match(r'((encoder|decoder)\.(conv_in|conv_out|norm_out|mid|down|up)|(post_)?quant_conv)\.', key):
        raise KeyError(key)
    key = _replace(key, VAE)
    key = re.sub(r'\.down\.(\d+)\.block\.(\d+)\.', r'.down_blocks.\1.resnets.\2.', key)
    key = re.sub(r'\.down\.(\d+)\.downsample\.', r'.down_blocks.\1.downsamplers.0.', key)
    key = re.sub(r'\.up\.(\d+)\.block\.(\d+)\.', lambda m: f'.up_blocks.{levels - 1 - int(m[1])}.resnets.{m[2]}.', key)
    return re.sub(r'\.up\.(\d+)\.upsample\.', lambda m: f'.up_blocks.{levels - 1 - int(m[1])}.upsamplers.0.', key)


def vae_to_ldm(keys: Iterable[str]) -> dict[str, str]:
    """ldm name of every diffusers' name of a whole autoencoder, without prefix; the inverse of `vae_name`."""
    keys = list(keys)
    last = max(int(match[1]) for key in keys if (match := re.match(r'decoder\.up_blocks\.(\d+)\.', key)))

    def one(key):
        key = re.sub(r'\.down_blocks\.(\d+)\.resnets\.(\d+)\.', r'.down.\1.block.\2.', key)
        key = re.sub(r'\.down_blocks\.(\d+)\.downsamplers\.0\.', r'.down.\1.downsample.', key)
        key = re.sub(r'\.up_blocks\.(\d+)\.resnets\.(\d+)\.', lambda m: f'.up.{last - int(m[1])}.block.{m[2]}.', key)
        key = re.sub(r'\.up_blocks\.(\d+)\.upsamplers\.0\.', lambda m: f'.up.{last - int(m[1])}.upsample.', key)
        return _replace(key, VAE, back=True)

    return {key: one(key) for key in keys}


def text_from_ldm(tensors: dict) -> tuple[dict, dict[str, str]]:
    """Transformers' names, without prefix, of a text encoder in either layout.

    OpenCLIP keeps query, key and value in one matrix, and one layer more than Stable Diffusion 2 reads: it takes the output of
    the last but one, so transformers' folders end there, and the last is dropped here too, with the projection behind it.
    """
    if not any('resblocks.' in key for key in tensors):
        origin = {key.removeprefix('text_model.'): key for key in tensors}
        return {name: tensors[key] for name, key in origin.items()}, origin
    last = max(int(match[1]) for key in tensors if (match := re.match(r'transformer\.resblocks\.(\d+)\.', key)))
    renamed, origin = {}, {}
    for key, value in tensors.items():
        if key == 'text_projection' or key.startswith(f'transformer.resblocks.{last}.'):
            continue
        for name, part in _open_clip(key, value):
            renamed[name], origin[name] = part, key
    return renamed, origin


def _open_clip(key: str, value: np.ndarray):
    """(name, array) of transformers' layout for one tensor of OpenCLIP's."""
    outer = {
        'positional_embedding': 'embeddings.position_embedding.weight',
        'token_embedding.weight': 'embeddings.token_embedding.weight',
        'ln_final.weight': 'final_layer_norm.weight',
        'ln_final.bias': 'final_layer_norm.bias',
    }
    match = re.fullmatch(r'transformer\.resblocks\.(\d+)\.(.+)', key)
    if not match:
        yield outer[key], value
        return
    layer, rest = f'encoder.layers.{match[1]}.', match[2]
    if rest.startswith('attn.in_proj_'):
        leaf = rest.removeprefix('attn.in_proj_')
        yield from ((f'{layer}self_attn.{name}_proj.{leaf}', part) for name, part in zip('qkv', np.split(value, 3)))
    elif any(rest.startswith(head) for head, _ in OPEN_CLIP):
        yield layer + _replace(rest, OPEN_CLIP), value
    else:
        raise KeyError(key)


def _plain_names(stored: Stored, part: str) -> dict[str, str]:
    """Name without prefix -> key of the file."""
    for prefix in PREFIXES[part]:
        names = {key.removeprefix(prefix): key for key in stored.tensors if key.startswith(prefix)}
        if names:
            return names
    return {key: key for key in stored.tensors} if part_alone(stored.tensors) == part else {}


def _average_names(stored: Stored) -> dict[str, str]:
    """The same for the moving average: its dots are gone, so it is asked for each name of the UNet."""
    plain = _plain_names(stored, 'unet')
    names = {name: AVERAGE + name.replace('.', '') for name in plain}
    missing = [name for name, key in names.items() if key not in stored.tensors]
    if plain and len(missing) == len(plain):
        return {}
    if missing:
        raise BadWeights(f'{stored.files[0]} has no moving average of {missing[0]} and {len(missing) - 1} more.')
    return names


def _replace(name: str, table, back: bool = False) -> str:
    for one, other in table:
        old, new = (other, one) if back else (one, other)
        if old in name:
            return name.replace(old, new)
    return name
