"""The pmap variant of a train step: whole copies of the state, one per device, gradients averaged.

`jax.jit` with shardings is t3d's way; this is for programs that are built on pmap. The result equals the jit path's up to
rounding where a step draws no noise and no layer mixes rows of the batch; noise differs, as each replica draws for its own
rows. The step must call `t3d.core.replicas.mean` on its gradients, which is an identity elsewhere.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import replicas
from t3d.core.errors import UsageError
from t3d.core.system import System
from t3d.core.typing import PyTree


def train_step(system: System, devices: Sequence[jax.Device] | None = None) -> Callable:
    """`(replicated state, split batch, key, given={}) -> (replicated state, metrics [D])`; the state is donated.

    Raises, at the first call: the system does not average its gradients.
    """

    def step(state, batch, key, given):
        before = replicas.count_means()
        result = system.train_step(state, batch, replicas.fold_in(jax.random.fold_in(key, state.step)), given)
        if replicas.count_means() == before:
            raise UsageError(
                'this train_step does not average over replicas, so under pmap each device would train a model of its own: '
                'add `grads, metrics = replicas.mean((grads, metrics))` (t3d.core.replicas) before its optimizer.'
            )
        return result

    mapped = jax.pmap(step, axis_name=replicas.AXIS, in_axes=(0, 0, None, None), donate_argnums=0, devices=devices)
    return lambda state, batch, key, given=None: mapped(state, batch, key, given or {})


def replicate(state: PyTree, devices: Sequence[jax.Device] | None = None) -> PyTree:
    """One copy per device, along a new leading axis [D, ...]."""
    count = len(devices if devices is not None else jax.local_devices())
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), state)


def unreplicate(state: PyTree) -> PyTree:
    """The first copy."""
    return jax.tree.map(lambda leaf: leaf[0], state)


def split(batch: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Rows [B, ...] as [D, B / D, ...]: the same blocks as the jit path's sharding gives."""
    return {name: rows.reshape(count, rows.shape[0] // count, *rows.shape[1:]) for name, rows in batch.items()}
