"""One rule between torch's names and shapes and ours.

A torch path becomes a Flax path by gluing each integer to its left neighbour: `down_blocks.0.attentions.1.proj_in.weight`
is `down_blocks_0/attentions_1/proj_in/kernel`, `to_out.0.bias` is `to_out_0/bias`. The rule is read backwards from the
*target* tree (`jax.eval_shape` of the module), so the leaf's own name and rank say how to turn the array.
"""

import pathlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.checkpoint.torch_files import BadWeights, Stored
from t3d.core import tree as trees
from t3d.core.typing import PyTree

LEAVES = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight', 'bias': 'bias'}
# Names of single layers that end in a number of their own, not in the index of a list.
WHOLE = re.compile(r'linear_\d+')
CONV = {3: (2, 1, 0), 4: (2, 3, 1, 0), 5: (2, 3, 4, 1, 0)}  # torch O,I,... to ours ...,I,O
CONV_BACK = {3: (2, 1, 0), 4: (3, 2, 0, 1), 5: (4, 3, 0, 1, 2)}
NEVER_USED = re.compile(r'(^|\.)position_ids$')  # buffers that old files carry
OLD_VAE_ATTENTION = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}  # diffusers before 0.18


def torch_name(path: str) -> str:
    """'mid_block.attentions.0.to_out.0.weight' of 'mid_block/attentions_0/to_out_0/kernel'."""
    *modules, leaf = path.split('/')
    words = [part if WHOLE.fullmatch(part) else re.sub(r'_(?=\d+(_\d+)*$)', '.', part) for part in modules]
    return '.'.join([*words, LEAVES.get(leaf, leaf)])


def flax_name(key: str, leaf: str | None = None) -> str:
    """'mid_block/attentions_0/to_out_0/kernel' of 'mid_block.attentions.0.to_out.0.weight' and leaf 'kernel'.

    Args:
      leaf: the name of our leaf; None keeps torch's 'weight', whose meaning (kernel, scale, embedding) the module decides.
    """
    *modules, last = key.split('.')
    path = []
    for part in modules:
        if part.isdigit() and path:
            path[-1] += f'_{part}'
        else:
            path.append(part)
    return '/'.join([*path, leaf or last])


def to_flax(value: np.ndarray, leaf: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array of a torch leaf turned for our leaf of `shape`; None if no turn fits.

    kernels: convolution O,I,(D,)H,W -> (D,)H,W,I,O; linear O,I -> I,O; a stored 1x1 convolution for a dense layer and the
    reverse; everything else as it is.
    """
    if leaf == 'kernel' and value.ndim >= 2:
        if value.ndim > len(shape) and len(shape) == 2 and all(size == 1 for size in value.shape[2:]):
            value = value.reshape(value.shape[:2])
        elif value.ndim == 2 and len(shape) > 2 and all(size == 1 for size in shape[:-2]):
            value = value.reshape(value.shape + (1,) * (len(shape) - 2))
        value = value.T if value.ndim == 2 else value.transpose(CONV[value.ndim]) if value.ndim in CONV else value
    return value if tuple(value.shape) == tuple(shape) else None


def to_torch(value: np.ndarray, leaf: str, *, conv: bool = False) -> np.ndarray:
    """The inverse of `to_flax`; `conv` writes a dense kernel as a 1x1 convolution O,I,1,1."""
    if leaf == 'kernel' and value.ndim in CONV_BACK:
        return value.transpose(CONV_BACK[value.ndim])
    if leaf == 'kernel' and value.ndim == 2:
        return value.T[:, :, None, None] if conv else value.T
    return value


def find(key: str, stored: dict) -> str | None:
    """The key under which a file holds `key`: itself, or its old name in the attention of a VAE; None if neither."""
    if key in stored:
        return key
    for new, old in OLD_VAE_ATTENTION.items():
        head, dot, last = key.rpartition('.')
        if head.endswith(f'.{new}') and f'{head[: -len(new)]}{old}{dot}{last}' in stored:
            return f'{head[: -len(new)]}{old}{dot}{last}'
    return None


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


def fit(tensors: dict[str, np.ndarray], target: PyTree) -> Fit:
    """Compares the tensors of a file with the tree a module wants (ShapeDtypeStructs); copies nothing."""
    used, missing, wrong = {}, [], {}
    for name, leaf in trees.flatten(target).items():
        key = torch_name(name)
        stored = find(key, tensors)
        if stored is None:
            missing.append(key)
        elif to_flax(tensors[stored], name.rpartition('/')[2], leaf.shape) is None:
            wrong[name] = f'{stored} is {tuple(tensors[stored].shape)}, our {name} wants {tuple(leaf.shape)}'
        elif jnp.issubdtype(leaf.dtype, jnp.floating) != jnp.issubdtype(tensors[stored].dtype, jnp.floating):
            wrong[name] = f'{stored} is stored as {tensors[stored].dtype}, wanted {leaf.dtype}: quantised files are not read'
        else:
            used[name] = stored
    taken = {*used.values(), *(line.partition(' ')[0] for line in wrong.values())}
    unused = tuple(key for key in tensors if key not in taken and not NEVER_USED.search(key))
    return Fit(used, tuple(missing), unused, wrong)


def to_params(
    stored: Stored, target: PyTree, *, dtype=None, sharding=None, allowed: tuple[str, ...] = (), initial: PyTree = None
) -> PyTree:
    """Parameters for a module from the tensors of a file, one leaf at a time.

    Args:
      target: ShapeDtypeStructs of the module's parameters.
      dtype: of floating parameters; None takes those of `target`.
      sharding: a Sharding for every leaf, a tree of them like `target`, or None for the default device.
      allowed: patterns (re.search) of torch keys that may be missing or unused, for example ('camera_embedding',).
      initial: values for leaves that are allowed to be missing, a tree like `target`.
    Raises:
      BadWeights: keys missing or unused, other shapes, values that are not finite; with the file and the keys.
    """
    fitted = fit(stored.tensors, target)
    where = ', '.join(str(path) for path in stored.files[:3])
    problems = fitted.problems(allowed)
    if problems:
        raise BadWeights(f'{where} does not fit the model of its config:\n' + '\n'.join(problems))
    flat, shardings, leaves = trees.flatten(target), _per_leaf(sharding, target), {}
    spare = trees.flatten(initial) if initial is not None else {}
    for name, leaf in flat.items():
        kind = dtype if dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
        if name in fitted.used:
            key = fitted.used[name]
            value = to_flax(stored.tensors[key], name.rpartition('/')[2], leaf.shape)
            with np.errstate(over='ignore'):  # said below
                value = np.array(value, jnp.dtype(kind), order='C')  # a copy: the file may change later
            refuse_non_finite(value, key, stored.sources[key])
        elif name in spare:
            value = jnp.asarray(spare[name], kind)
        else:
            raise BadWeights(f'{where} lacks {torch_name(name)}: give its first value with `initial`.')
        leaves[name] = _put(value, shardings.get(name))
    return trees.unflatten(leaves)


def to_tensors(params: PyTree, *, conv=()) -> dict[str, np.ndarray]:
    """Torch keys and arrays of a parameter tree. Dense kernels whose key matches `conv` are written as 1x1 convolutions."""
    tensors = {}
    for name, leaf in trees.flatten(params).items():
        key, value = torch_name(name), np.asarray(jax.device_get(leaf))
        turned = to_torch(value, name.rpartition('/')[2], conv=_any(conv, key))
        tensors[key] = np.asarray(turned, order='C')
    return tensors


def _put(value, sharding):
    if sharding is not None and not sharding.is_fully_addressable:  # several hosts: each reads its own part of the same file
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
    return jax.device_put(value, sharding)


def _per_leaf(sharding, target) -> dict:
    if sharding is None:
        return {}
    if isinstance(sharding, jax.sharding.Sharding):
        return dict.fromkeys(trees.flatten(target), sharding)
    return trees.flatten(sharding)


def refuse_non_finite(value: np.ndarray, key: str, path: pathlib.Path) -> None:
    """BadWeights, with file and key, for an array that holds nan or infinity."""
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
