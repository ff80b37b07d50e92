"""Pytree helpers: readable path names, counting, casting, moving averages."""

import jax
import jax.numpy as jnp

from t3d.core.typing import PyTree


def path_name(path) -> str:
    """'params/decoder/stage_1/conv/kernel' for a key path of jax.tree_util."""
    parts = []
    for entry in path:
        for attribute in ('key', 'name', 'idx'):
            if hasattr(entry, attribute):
                parts.append(str(getattr(entry, attribute)))
                break
        else:
            raise TypeError(f'unknown pytree path entry {entry!r}')
    return '/'.join(parts)


def flatten(tree: PyTree) -> dict[str, jax.Array]:
    """The leaves by path name, in tree order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: dict[str, jax.Array]) -> PyTree:
    """Nested dictionaries from path names; the inverse of `flatten` for trees made of dictionaries."""
    tree = {}
    for name, leaf in leaves.items():
        *parents, last = name.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def map_with_name(function, tree: PyTree, *rest: PyTree) -> PyTree:
    """`function(name, leaf, *other leaves)` over the tree."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(path_name(path), *leaves), tree, *rest)


def count(tree: PyTree) -> int:
    """Number of scalars in the tree; works on ShapeDtypeStructs."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def size_bytes(tree: PyTree) -> int:
    """Bytes of all leaves; works on ShapeDtypeStructs."""
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def mismatch(leaves: dict, target: dict) -> list[str]:
    """Lines on where two flat trees differ in names or shapes; none if they agree. Leaves need a `shape`."""
    shapes = [
        f'{name} {tuple(leaves[name].shape)} given, {tuple(leaf.shape)} wanted'
        for name, leaf in target.items()
        if name in leaves and tuple(leaves[name].shape) != tuple(leaf.shape)
    ]
    groups = (
        ('missing', [name for name in target if name not in leaves]),
        ('unknown', [name for name in leaves if name not in target]),
        ('other shape', shapes),
    )
    return [
        f'  {title}: {", ".join(names[:5])}{f" and {len(names) - 5} more" if len(names) > 5 else ""}'
        for title, names in groups
        if names
    ]


def cast(tree: PyTree, dtype) -> PyTree:
    """Floating leaves in another dtype; integers, booleans and keys stay."""

    def one(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, tree)


def copy(tree: PyTree) -> PyTree:
    """A copy with buffers of its own, so that both trees can be donated."""
    return jax.tree.map(jnp.copy, tree)


def ema(average: PyTree, new: PyTree, decay) -> PyTree:
    """decay * average + (1 - decay) * new, in float32."""
    return jax.tree.map(lambda a, n: (a + (1.0 - decay) * (n.astype(jnp.float32) - a)).astype(a.dtype), average, new)
