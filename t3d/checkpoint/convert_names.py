"""One rule between torch's names and shapes and ours.

A torch path becomes a Flax path by gluing each integer to its left neighbour: `down_blocks.0.attentions.1.proj_in.weight`
is `down_blocks_0/attentions_1/proj_in/kernel`, `to_out.0.bias` is `to_out_0/bias`. The rule is read backwards from the
*target* tree (`jax.eval_shape` of the module), so the leaf's own name and rank say how to turn the array.
"""

import re

import numpy as np

LEAVES = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight', 'bias': 'bias'}
# Names of single layers that end in a number of their own, not in the index of a list.
WHOLE = re.compile(r'linear_\d+')
CONV = {3: (2, 1, 0), 4: (2, 3, 1, 0), 5: (2, 3, 4, 1, 0)}  # torch O,I,... to ours ...,I,O
CONV_BACK = {3: (2, 1, 0), 4: (3, 2, 0, 1), 5: (4, 3, 0, 1, 2)}
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
