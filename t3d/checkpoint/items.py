"""The items of a checkpoint: which leaves of a state lie in which, and what `meta` says of them."""

import hashlib
import json

import jax
import jax.numpy as jnp

from t3d.core.system import TrainState, without

OLD_ITEM, OLD_WEIGHTS = 'ema', ('ema',)  # of format 1


def has_leaves(meta) -> bool:
    """Whether what was read is a table of leaves, each with shape, dtype and digest."""
    leaves = meta.get('leaves') if isinstance(meta, dict) else None
    if not isinstance(leaves, dict) or not leaves:
        return False
    if not all(isinstance(leaf, dict) and {'shape', 'dtype', 'digest'} <= set(leaf) for leaf in leaves.values()):
        return False
    try:
        return all(jnp.dtype(leaf['dtype']) for leaf in under(leaves, stored(meta)[1]).values())
    except TypeError:
        return False


def rest(state: TrainState, paths: tuple[str, ...]) -> dict:
    """A state without the subtrees at `paths`: the item state."""
    state = without(state, paths)
    rest = {name: getattr(state, name) for name in ('step', 'params', 'opt_state', 'extras')}
    return {**rest, 'ema': state.ema} if jax.tree.leaves(state.ema) else rest


def stored(meta: dict) -> tuple[str, tuple[str, ...]]:
    """(the item with the weights, their paths) of a checkpoint."""
    return ('weights', tuple(meta['weights'])) if 'weights' in meta else (OLD_ITEM, OLD_WEIGHTS)


def under(leaves: dict, paths: tuple[str, ...]) -> dict:
    """The leaves at `paths` and below."""
    return {name: leaf for name, leaf in leaves.items() if name in paths or name.startswith(tuple(f'{p}/' for p in paths))}


def json_digest(*items: dict) -> str:
    """A digest of JSON data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()[:16]
