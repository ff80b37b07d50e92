"""Array types for signatures, and `@typechecked`, which checks them when `T3D_TYPECHECK=1`.

Shapes are written once, in the signature, with one axis vocabulary: B batch, V views, H W, R rays, S samples, P planes,
N points or tokens, C channels. The tests set `T3D_TYPECHECK=1`; otherwise the decorator returns the function untouched.
"""

import os

import jax
from jaxtyping import Array, Bool, Float, Int, Shaped, jaxtyped

Key = jax.Array  # a typed PRNG key, from jax.random.key
PyTree = object

__all__ = ['Array', 'Bool', 'Float', 'Int', 'Key', 'PyTree', 'Shaped', 'typechecked']


def typechecked(function):
    """Checks annotated shapes and dtypes at trace time if T3D_TYPECHECK=1, at no cost once compiled."""
    if os.environ.get('T3D_TYPECHECK') != '1':
        return function
    from beartype import beartype

    return jaxtyped(typechecker=beartype)(function)
