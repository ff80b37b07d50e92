"""EG3D's released generators and discriminators (arXiv 2112.07945) as our trees, and back.

    generator, discriminator = convert_eg3d.load_eg3d('ffhq.safetensors', config)   # or a dictionary of name -> array

Our parameter paths are EG3D's names with slashes for dots, so the table here is short: four prefixes, the decoder's two layers,
convolutions OIHW -> HWIO, matrices transposed. Every key is used, checked and dropped for a stated reason, or refused. The
weights are under a non-commercial licence: none are stored in this project.
"""

import os
import pathlib
from collections.abc import Mapping as MappingType

import jax
import jax.numpy as jnp
import numpy as np

from t3d.checkpoint import torch_files, torch_pickle
from t3d.checkpoint.convert_names import CONV, CONV_BACK, refuse_non_finite
from t3d.checkpoint.torch_files import BadWeights
from t3d.core import prng
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.core.typing import PyTree
from t3d.nets import fir
from t3d.nets.stylegan2 import Mapping, SuperResolution, Synthesis, num_ws
from t3d.nets.stylegan2_discriminator import Discriminator

PREFIXES = {  # ours: theirs, of a generator
    'generator/mapping/': 'backbone.mapping.',
    'generator/backbone/': 'backbone.synthesis.',
    'generator/superres/': 'superresolution.',
    'buffers/backbone/': 'backbone.synthesis.',
}
NAMES = {
    'generator/decoder/hidden/kernel': 'decoder.net.0.weight',
    'generator/decoder/hidden/bias': 'decoder.net.0.bias',
    'generator/decoder/out/kernel': 'decoder.net.2.weight',
    'generator/decoder/out/bias': 'decoder.net.2.bias',
    'buffers/w_avg': 'backbone.mapping.w_avg',
}
LABEL = 25
GENERATOR_PARTS = ('backbone.', 'superresolution.', 'decoder.')
FILTER = '.resample_filter'
TO_DICTIONARY = (
    'A released .pkl is a program that builds the network: nothing of it is run here. In a checkout of EG3D, and if you trust '
    'the file, save its arrays once: `with dnnlib.util.open_url(PKL) as f: nets = legacy.load_network_pkl(f)`, then '
    "`safetensors.torch.save_file({f'{n}.{k}': v.clone().contiguous() for n in ('G_ema', 'D') for k, v in "
    "nets[n].state_dict().items()}, 'eg3d.safetensors')`."
)


def load_eg3d(state, config, *, average: bool = True) -> tuple[PyTree, PyTree | None]:
    """({'generator': parameters, 'buffers': w_avg and noise constants}, discriminator parameters or None), float32.

    Args:
      state: name -> array (NumPy, or torch tensors on the CPU); the generator's names as they are or behind `G_ema.` or `G.`,
        the discriminator's as they are or behind `D.`, in one dictionary or in {'G_ema': ..., 'D': ...}. Or the path of such a
        dictionary: a .safetensors file, or a PyTorch file from before 1.6, read as data (`torch_pickle`).
      config: of the triplane GAN (configs/ganfusion_gan.py), with render.plane_axes 'legacy' and discriminator
        mapping_layers 8 for released weights.
      average: G_ema of a state that has it and G; else G.
    Raises:
      UsageError: plane axes that these weights were not trained with.
      BadWeights: unknown or missing names, other shapes, another filter, values that are not finite; by name.
    """
    _refuse_axes(config)
    where = str(state) if isinstance(state, (str, os.PathLike)) else 'the state dictionary'
    tensors = _read(state) if isinstance(state, (str, os.PathLike)) else dict(_flat(state))
    generator, discriminator = _networks(tensors, average, where)
    abstract = shapes(config)
    made = _convert(generator, {name: leaf for name, leaf in abstract.items() if not name.startswith('discriminator/')}, where)
    if not discriminator:
        return made, None
    theirs = {name: leaf for name, leaf in abstract.items() if name.startswith('discriminator/')}
    return made, _convert(discriminator, theirs, where)['discriminator']


def save_eg3d(generator: PyTree, discriminator: PyTree | None, config) -> dict[str, np.ndarray]:
    """EG3D's names and arrays of what `load_eg3d` gives: the inverse, in one dictionary, resampling filters included.

    The upsampler's noise constants, which are not kept because no layer of ours reads them, come back as zeros.
    """
    tree = generator if discriminator is None else {**generator, 'discriminator': discriminator}
    leaves = trees.flatten(tree)
    abstract = {name: leaf for name, leaf in shapes(config).items() if discriminator is not None or name[:4] != 'disc'}
    problems = trees.mismatch(leaves, abstract)
    if problems:
        raise BadWeights('the parameters are not those of the config:\n' + '\n'.join(problems))
    tensors = {torch_name(name): _to_torch(name, np.asarray(jax.device_get(leaf))) for name, leaf in leaves.items()}
    tensors |= {key: np.zeros((side, side), np.float32) for key, side in _upsampler_noise(config).items()}
    kernel = np.outer(fir.TAPS, fir.TAPS).astype(np.float32)
    return {key: np.asarray(value, order='C') for key, value in tensors.items()} | dict.fromkeys(_filters(tensors), kernel)


def modules(config) -> dict:
    """The networks of a triplane GAN's config by their place in the tree, as t3d.fields.triplane_generator makes them."""
    g, d = config.generator, config.discriminator
    label = LABEL if g.pose_conditioning else 0
    sr = {'channels': tuple(g.sr.channels), 'ups': tuple(g.sr.ups), 'w_dim': g.w, 'styled': g.sr_style != 'unit'}
    size = g.sr.input_size * 2 ** sum(g.sr.ups)
    return {
        'generator/mapping': Mapping(g.z, label, g.w, g.mapping_layers),
        'generator/backbone': Synthesis(g.plane_resolution, 3 * g.plane_channels, g.w, g.channel_base, g.channel_max),
        'generator/superres': SuperResolution(g.sr.input_size, g.features, **sr),
        'discriminator': Discriminator(size, 6, d.channel_base, d.channel_max, LABEL if d.pose else 0, d.mapping_layers),
    }


def shapes(config) -> dict[str, jax.ShapeDtypeStruct]:
    """All leaves by path: generator/..., buffers/..., discriminator/...; costs no memory."""
    nets, g = modules(config), config.generator
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    side, size = g.sr.input_size, nets['discriminator'].size
    style = array(1, g.w) if g.sr_style != 'unit' else None
    arguments = {
        'generator/mapping': (array(1, g.z), array(1, LABEL) if g.pose_conditioning else None),
        'generator/backbone': (array(1, num_ws(g.plane_resolution), g.w),),
        'generator/superres': (array(1, side, side, 3), array(1, side, side, g.features), style),
        'discriminator': (array(1, size, size, 3), array(1, 8, 8, 3), array(1, LABEL)),
    }
    leaves = {}
    for place, net in nets.items():
        made = jax.eval_shape(net.init, prng.key(0), *arguments[place])
        leaves |= {f'{place}/{name}': leaf for name, leaf in trees.flatten(made['params']).items()}
        leaves |= {f'buffers/backbone/{name}': leaf for name, leaf in trees.flatten(made.get('buffers', {})).items()}
    for layer, (inputs, outputs) in (('hidden', (g.plane_channels, g.hidden)), ('out', (g.hidden, 1 + g.features))):
        place = f'generator/decoder/{layer}'
        leaves |= {f'{place}/kernel': array(inputs, outputs), f'{place}/bias': array(outputs)}
    return leaves | {'buffers/w_avg': array(g.w)}


def torch_name(name: str) -> str:
    """'backbone.synthesis.b8.conv0.affine.weight' of 'generator/backbone/b8/conv0/affine/weight'."""
    if name in NAMES:
        return NAMES[name]
    ours, theirs = next(((a, b) for a, b in PREFIXES.items() if name.startswith(a)), ('discriminator/', ''))
    return theirs + name.removeprefix(ours).replace('/', '.')


# --------------------------------------------------------------------------------------------------------------- reading


def _refuse_axes(config) -> None:
    axes = config.render.plane_axes
    if axes != 'legacy':
        raise UsageError(
            f"render.plane_axes={axes!r}: EG3D's released weights were trained with its planes (x, y), (x, z) and (z, x), "
            "of which the third repeats the second; on other planes they render noise. Set render.plane_axes='legacy'."
        )


def _read(path) -> dict[str, np.ndarray]:
    path = pathlib.Path(path)
    if path.suffix == '.safetensors':
        return torch_files.map_file(path)
    try:
        return torch_pickle.read(path)
    except BadWeights as error:
        raise BadWeights(f'{error} {TO_DICTIONARY}') from error


def _flat(state: MappingType):
    """Names joined by dots, arrays as NumPy's."""
    for name, value in state.items():
        if isinstance(value, MappingType):
            yield from ((f'{name}.{rest}', leaf) for rest, leaf in _flat(value))
        else:
            yield name, np.asarray(value.detach().cpu() if hasattr(value, 'detach') else value)


def _networks(tensors: dict, average: bool, where: str) -> tuple[dict, dict]:
    """(generator, discriminator) tensors by bare name; the latter may be empty."""
    groups = {'G_ema': {}, 'G': {}, 'D': {}}
    for key, value in tensors.items():
        head, _, rest = key.partition('.')
        if head in groups:
            groups[head][rest] = value
        else:
            groups['G' if key.startswith(GENERATOR_PARTS) else 'D'][key] = value
    order = ('G_ema', 'G') if average else ('G', 'G_ema')
    generator = next((groups[name] for name in order if groups[name]), None)
    if generator is None:
        raise BadWeights(f'{where} holds no generator: wanted names such as backbone.synthesis.b4.const. {TO_DICTIONARY}')
    return generator, groups['D']


def _convert(tensors: dict, target: dict, where: str) -> PyTree:
    """The tree of the `target` leaves from their tensors."""
    tensors, problems = _without_filters(tensors)
    keys = {name: torch_name(name) for name in target}
    noise = [key for key in tensors if key.startswith('superresolution.') and key.endswith('.noise_const')]
    missing = [key for key in keys.values() if key not in tensors]
    unknown = sorted(set(tensors) - set(keys.values()) - set(noise))
    groups = (('missing', missing), ('unknown', unknown))
    problems += [f'  {title} ({len(names)}): {", ".join(names[:5])}{_hint(names)}' for title, names in groups if names]
    leaves = {}
    for name, leaf in target.items():
        if keys[name] in tensors:
            value = _to_flax(name, np.asarray(tensors[keys[name]]))
            if value.shape != leaf.shape or not np.issubdtype(value.dtype, np.floating):
                kind = f'{np.asarray(tensors[keys[name]]).shape} {value.dtype}'
                problems.append(f'  shape: {keys[name]} is {kind}, our {name} wants {leaf.shape} float32')
            leaves[name] = value
    if problems:
        more = [f'  and {len(problems) - 8} more'] if len(problems) > 8 else []
        raise BadWeights(f'{where} does not fit the networks of its config:\n' + '\n'.join(problems[:8] + more))
    for name, value in leaves.items():
        refuse_non_finite(value, keys[name], pathlib.Path(where))
    return trees.unflatten({name: jnp.asarray(np.array(value, np.float32, order='C')) for name, value in leaves.items()})


def _without_filters(tensors: dict) -> tuple[dict, list[str]]:
    """The tensors but for the resampling filters, and a line on each filter that is not ours."""
    kept, problems, kernel = {}, [], np.outer(fir.TAPS, fir.TAPS)
    for key, value in tensors.items():
        if not f'.{key}'.endswith(FILTER):
            kept[key] = value
        elif np.shape(value) != (4, 4) or not np.abs(np.asarray(value) - kernel).max() < 1e-6:
            problems.append(f'  filter: {key} is not [1, 3, 3, 1] x [1, 3, 3, 1] / 64, the only one there is here')
    return kept, problems


def _hint(names: list[str]) -> str:
    more = f' and {len(names) - 5} more' if len(names) > 5 else ''
    if any(name.startswith('superresolution.') and '.affine.' in name for name in names):
        return more + " (an upsampler with styles: set generator.sr_style='w')"
    if 'backbone.mapping.embed.weight' in names:
        return more + ' (a mapping that reads the camera label: set generator.pose_conditioning=True)'
    if any(name.startswith('mapping.fc') for name in names):
        return more + " (released discriminators' label mapping has 8 layers: set discriminator.mapping_layers=8)"
    return more


def _is_matrix(name: str) -> bool:
    return name.rpartition('/')[2] in ('weight', 'kernel')


def _to_flax(name: str, value: np.ndarray) -> np.ndarray:
    if name.endswith('/const') and value.ndim == 3:
        return value.transpose(1, 2, 0)
    if _is_matrix(name) and value.ndim in (2, 4):
        return value.T if value.ndim == 2 else value.transpose(CONV[4])
    return value


def _to_torch(name: str, value: np.ndarray) -> np.ndarray:
    if name.endswith('/const'):
        return value.transpose(2, 0, 1)
    if _is_matrix(name):
        return value.T if value.ndim == 2 else value.transpose(CONV_BACK[4])
    return value


# --------------------------------------------------------------------------------------------------------------- writing


def _upsampler_noise(config) -> dict[str, int]:
    """Key and side of the noise constants that an upsampler of EG3D has."""
    net, sides = modules(config)['generator/superres'], {}
    side = net.input_size
    for i, up in enumerate(net.ups):
        side = 2 * side if up else side
        sides |= {f'superresolution.block{i}.conv{j}.noise_const': side for j in (0, 1)}
    return sides


def _filters(tensors) -> list[str]:
    """Names of the resampling filters: of blocks and 3x3 convolutions, and of every convolution of a discriminator."""
    names = set()
    for key in tensors:
        *path, leaf = key.split('.')
        generator = key.startswith(GENERATOR_PARTS)
        if leaf == 'weight' and path[-1].startswith('conv') or (not generator and path[-1] in ('skip', 'fromrgb')):
            names.add('.'.join(path) + FILTER)
        if leaf == 'weight' and path[-1].startswith('conv') and path[-2:] != ['b4', 'conv']:
            names.add('.'.join(path[:-1]) + FILTER)
        if not generator:
            names.add(FILTER[1:])
    return sorted(names)
