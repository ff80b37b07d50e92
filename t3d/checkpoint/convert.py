"""Real weights from local folders in diffusers and transformers layout, as Flax modules with their parameters, and back.

    unet, params = convert.load_unet('stable-diffusion/unet')
    noise = unet.apply({'params': params}, latents, t, text)

Parameter trees carry the torch names (`convert_names`), so one rule, read from the tree that the module wants
(`jax.eval_shape`), loads every net; nothing is filled in or dropped silently.
"""

import pathlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.checkpoint import convert_names
from t3d.checkpoint.torch_files import BadWeights, Stored
from t3d.core import tree as trees
from t3d.core.typing import PyTree

NEVER_USED = re.compile(r'(^|\.)position_ids$')  # buffers that old files carry


class Fit(NamedTuple):
    """How stored tensors fit a module.

    Attributes:
      used: our leaf -> key of the file, of leaves that fit.
      missing: torch keys that the module wants and the file lacks.
      unused: keys of the file that the module has no place for.
      wrong: our leaf -> sentence on a shape that does not fit.
    """

    used: dict[str, str]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    wrong: dict[str, str]

    def problems(self, allowed: tuple[str, ...] = ()) -> list[str]:
        """Lines on what is missing, unused or of another shape; names matching a pattern of `allowed` are passed over."""
        missing, unused = ([key for key in keys if not _any(allowed, key)] for keys in (self.missing, self.unused))
        lines = [f'  {title} ({len(keys)}): {_few(keys)}' for title, keys in (('missing', missing), ('unused', unused)) if keys]
        return lines + [f'  shape: {line}' for line in list(self.wrong.values())[:5]]


def fit(tensors: dict[str, np.ndarray], wanted: PyTree) -> Fit:
    """Compares the tensors of a file with the tree a module wants (ShapeDtypeStructs); copies nothing."""
    used, missing, wrong = {}, [], {}
    for name, leaf in trees.flatten(wanted).items():
        key = convert_names.torch_name(name)
        found = convert_names.find(key, tensors)
        if found is None:
            missing.append(key)
        elif convert_names.to_flax(tensors[found], name.rpartition('/')[2], leaf.shape) is None:
            wrong[name] = f'{found} is {tuple(tensors[found].shape)}, our {name} wants {tuple(leaf.shape)}'
        else:
            used[name] = found
    taken = {*used.values(), *(line.partition(' ')[0] for line in wrong.values())}
    unused = tuple(key for key in tensors if key not in taken and not NEVER_USED.search(key))
    return Fit(used, tuple(missing), unused, wrong)


def to_params(
    stored: Stored, wanted: PyTree, *, dtype=None, sharding=None, allowed: tuple[str, ...] = (), initial: PyTree = None
) -> PyTree:
    """Parameters for a module from the tensors of a file, one leaf at a time.

    Args:
      wanted: ShapeDtypeStructs of the module's parameters.
      dtype: of floating parameters; None takes those of `wanted`.
      sharding: a Sharding for every leaf, a tree of them like `wanted`, or None for the default device.
      allowed: patterns (re.search) of torch keys that may be missing or unused, for example ('camera_embedding',).
      initial: values for leaves that are allowed to be missing, a tree like `wanted`.
    Raises:
      BadWeights: keys missing or unused, other shapes, values that are not finite; with the file and the keys.
    """
    found = fit(stored.tensors, wanted)
    where = ', '.join(str(path) for path in stored.files[:3])
    problems = found.problems(allowed)
    if problems:
        raise BadWeights(f'{where} does not fit the model of its config:\n' + '\n'.join(problems))
    flat, shardings, leaves = trees.flatten(wanted), _per_leaf(sharding, wanted), {}
    spare = trees.flatten(initial) if initial is not None else {}
    for name, leaf in flat.items():
        kind = dtype if dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
        if name in found.used:
            key = found.used[name]
            value = convert_names.to_flax(stored.tensors[key], name.rpartition('/')[2], leaf.shape)
            value = np.array(value, jnp.dtype(kind), order='C')  # a copy: the file may change later
            _refuse_non_finite(value, key, stored.sources[key])
        elif name in spare:
            value = jnp.asarray(spare[name], kind)
        else:
            raise BadWeights(f'{where} lacks {convert_names.torch_name(name)}: give its first value with `initial`.')
        leaves[name] = jax.device_put(value, shardings.get(name))
    return trees.unflatten(leaves)


def to_tensors(params: PyTree, *, conv=()) -> dict[str, np.ndarray]:
    """Torch keys and arrays of a parameter tree. Dense kernels whose key matches `conv` are written as 1x1 convolutions."""
    tensors = {}
    for name, leaf in trees.flatten(params).items():
        key, value = convert_names.torch_name(name), np.asarray(jax.device_get(leaf))
        turned = convert_names.to_torch(value, name.rpartition('/')[2], conv=_any(conv, key))
        tensors[key] = np.asarray(turned, order='C')
    return tensors


def _per_leaf(sharding, wanted) -> dict:
    if sharding is None:
        return {}
    if isinstance(sharding, jax.sharding.Sharding):
        return dict.fromkeys(trees.flatten(wanted), sharding)
    return trees.flatten(sharding)


def _refuse_non_finite(value: np.ndarray, key: str, path: pathlib.Path) -> None:
    if jnp.issubdtype(value.dtype, jnp.floating) and not np.isfinite(value).all():
        count = int(value.size - np.isfinite(value).sum())
        raise BadWeights(
            f'{path}: {key} has {count} of {value.size} values that are not finite as {value.dtype}. '
            'The file is damaged or was saved from a diverged run; `t3d weights check DIR` lists all such keys.'
        )


def _any(patterns, key: str) -> bool:
    return any(re.search(pattern, key) for pattern in patterns)


def _few(keys: list[str]) -> str:
    return ', '.join(keys[:5]) + (f' and {len(keys) - 5} more' if len(keys) > 5 else '')
