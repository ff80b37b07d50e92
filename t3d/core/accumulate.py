"""Gradients of a batch whose parts are taken one after the other: the memory of a part, the step of the whole.

A step whose activations do not fit is cut into `accumulate` parts of equal size. Each has its own forward and backward pass;
the gradients are summed in float32 and divided by the number of parts, so the step is that of the mean of the parts' losses.
For losses that are means over rows this is the gradient of the whole batch. What is drawn at random in a loss is drawn for each
part by itself, with a key of its own, so another number of parts gives other draws (as another batch does).

Rows are dealt in turn (row r to part r mod parts): the rows of a part lie on all devices over which the batch is spread, and
nothing moves between them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from t3d.core import tree
from t3d.core.errors import UsageError


def value_and_grad(loss: Callable, parts: int = 1) -> Callable:
    """`jax.value_and_grad(loss, has_aux=True)` of a batch in parts.

    Args:
      loss: (params, batch, key) -> (scalar, tree of scalars); the batch is a tree of arrays with rows first.
      parts: number of parts, which divides the rows of the batch. With 1 it is JAX's function and nothing else.

    Returns:
      (params, batch, key) -> ((scalar, tree of scalars), gradients of params in float32): means over the parts, but for what
      is named `count/...`, which is summed.

    Raises (when traced):
      UsageError: rows that the parts do not divide.
    """
    whole = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return whole

    def run(params, batch, key):
        dealt = jax.tree.map(lambda leaf: deal(leaf, parts), batch)

        def body(total, inputs):
            found = whole(params, *inputs)
            return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, found), None

        keys = jax.random.split(key, parts)
        shapes = jax.eval_shape(whole, params, jax.tree.map(lambda leaf: leaf[0], dealt), keys[0])
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
        ((value, aux), grads), _ = jax.lax.scan(body, zeros, (dealt, keys))
        aux = tree.map_with_name(lambda name, leaf: leaf if 'count/' in name else leaf / parts, aux)
        return (value / parts, aux), jax.tree.map(lambda leaf: leaf / parts, grads)

    return run


def deal(leaf: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]: row r is row r // parts of part r % parts."""
    rows = leaf.shape[0]
    if rows % parts:
        possible = [number for number in range(1, rows + 1) if rows % number == 0]
        nearest = min(possible, key=lambda number: (abs(number - parts), number))
        raise UsageError(f'accumulate={parts} does not divide the {rows} rows of a batch. Nearest: accumulate={nearest}.')
    return jnp.moveaxis(leaf.reshape(rows // parts, parts, *leaf.shape[1:]), 1, 0)
