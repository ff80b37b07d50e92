"""Array types for signatures, and `@typechecked`, which checks them when `T3D_TYPECHECK=1`.

Shapes are written once, in the signature, with one axis vocabulary: B batch, V views, H W, R rays, S samples, P planes,
N and M points or tokens, C channels, O those of the output where they differ, D width of text or style, E of an embedding.
The tests set `T3D_TYPECHECK=1`; otherwise the decorator returns the function untouched.
"""

import os

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, jaxtyped

Array = jax.Array | np.ndarray  # networks are given both

Key = jax.Array  # a typed PRNG key, from jax.random.key
PyTree = object

__all__ = ['Array', 'Bool', 'Float', 'Int', 'Key', 'PyTree', 'Shaped', 'typechecked']


def typechecked(function):
    """Checks annotated shapes and dtypes at trace time if T3D_TYPECHECK=1, at no cost once compiled."""
    if os.environ.get('T3D_TYPECHECK') != '1':
        return function
    from beartype import beartype

    return jaxtyped(typechecker=beartype)(function)
