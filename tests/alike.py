"""How alike states of one run on one device and on several are: sums in another order, and what Adam makes of them.

Moves are less alike than gradients: Adam divides each by its own size, so where a gradient is small beside those of its leaf
its noise moves too, and where it is nothing but rounding (ROUNDING) noise is moved by the whole rate.
"""

import re

import jax
import numpy as np

from t3d.core import tree

# Biases of keys: softmax cancels them, so that their gradients are rounding.
ROUNDING = re.compile(r'(layers/key|epipolar/to_k|epipolar/to_k_ray)/bias')


def gradients(one, many):
    """Adam's moments after one step: to 3e-5 of the largest of their array (seen: 7e-6), or 1e-6 of the largest of all."""
    pairs = [
        tuple(np.asarray(leaf, np.float64) for leaf in pair)
        for pair in zip(jax.tree.leaves(one.opt_state), jax.tree.leaves(many.opt_state), strict=True)
    ]
    most = max(np.abs(ours).max() for ours, _ in pairs)
    for ours, theirs in pairs:
        np.testing.assert_allclose(theirs, ours, rtol=0.0, atol=3e-5 * np.abs(ours).max() + 1e-6 * most)


def moves(before, one, many, share):
    """Parameters: their mean difference in each array is at most `share` of the largest move."""
    before, one, many = (tree.flatten(state.params) for state in (before, one, many))
    for leaf, value in one.items():
        if not ROUNDING.search(leaf):
            moved = np.abs(np.asarray(value, np.float64) - before[leaf]).max()
            assert np.abs(np.asarray(value, np.float64) - many[leaf]).mean() <= share * moved + 1e-8, leaf
