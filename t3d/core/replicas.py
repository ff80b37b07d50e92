"""The one thing a train_step must do for the pmap variant: average over the replicas. Outside it these are identities.

Under `jax.jit` a step sees the global batch and its mean is the mean. Under `jax.pmap` (t3d.parallel.pmapped) every device
sees its rows only, so gradients and metrics must be averaged between backward pass and optimizer:

    grads, metrics = replicas.mean((grads, metrics))
"""

import jax

from t3d.core.typing import Key, PyTree

AXIS = 'replica'
_asked = []  # one entry for each `mean` traced inside pmap, for pmapped's check


def mean(tree: PyTree) -> PyTree:
    """The mean over all replicas; the tree itself outside pmap."""
    if not inside():
        return tree
    _asked.append(True)
    return jax.lax.pmean(tree, AXIS)


def gather(tree: PyTree) -> PyTree:
    """The rows of all replicas, in the order of the global batch; the tree itself outside pmap."""
    return jax.lax.all_gather(tree, AXIS, tiled=True) if inside() else tree


def fold_in(key: Key) -> Key:
    """A key of this replica's own; the key itself outside pmap."""
    return jax.random.fold_in(key, jax.lax.axis_index(AXIS)) if inside() else key


def count_means() -> int:
    """How often `mean` was traced inside pmap so far."""
    return len(_asked)


def inside() -> bool:
    """True while tracing the pmap variant."""
    try:
        jax.lax.axis_index(AXIS)
    except NameError:
        return False
    return True
