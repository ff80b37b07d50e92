"""Norms take their variance around the mean: E[x^2] - E[x]^2 in float32 loses the digits where the mean is far above it."""

import ast
import pathlib

import numpy as np
import pytest

from t3d.metrics import fid
from t3d.nets import layers

ROOT = pathlib.Path(__file__).parent.parent
NORMS = ('LayerNorm', 'GroupNorm', 'InstanceNorm', 'BatchNorm')  # Flax's, whose default is the difference of squares


def one_pass(source: str) -> list[int]:
    """Lines that name one of NORMS without use_fast_variance=False, or subtract a squared mean from a mean of squares."""
    tree, lines = ast.parse(source), []
    safe = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and any(
            word.arg == 'use_fast_variance' and isinstance(word.value, ast.Constant) and word.value.value is False
            for word in node.keywords
        ):
            safe |= {id(part) for part in (node.func, *node.args)}  # the call itself, or functools.partial of the class
        if isinstance(node, ast.FunctionDef) and node.returns is not None:
            safe.add(id(node.returns))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in NORMS and id(node) not in safe:
            lines.append(node.lineno)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
            left, right = ast.unparse(node.left), ast.unparse(node.right)
            squared = ('square' in right or '** 2' in right) and 'mean' in right
            if 'mean' in left and ('square' in left or '** 2' in left) and squared:
                lines.append(node.lineno)
    return lines


def test_no_norm_of_the_tree_takes_the_difference_of_squares():
    lines_of = {}
    for folder in ('t3d', 'launch', 'configs'):
        for path in (ROOT / folder).rglob('*.py'):
            if lines := one_pass(path.read_text()):
                lines_of[str(path.relative_to(ROOT))] = lines
    assert not lines_of, lines_of


@pytest.mark.parametrize(
    'line',
    [
        "x = nn.LayerNorm(epsilon=1e-5, name='norm')(x)",
        'norm = functools.partial(nn.GroupNorm, 8)',
        'norm = flax.linen.BatchNorm(use_fast_variance=True)',
        'norm = nn.InstanceNorm',
        'variance = jnp.mean(x**2, -1) - jnp.mean(x, -1) ** 2',
        'variance = jnp.square(x).mean() - jnp.square(x.mean())',
    ],
)
def test_a_new_one_would_be_found(line):
    assert one_pass(line) == [1]
    good = 'x = nn.LayerNorm(use_fast_variance=False)(x); y = functools.partial(nn.BatchNorm, use_fast_variance=False)'
    assert one_pass(good) == []


@pytest.mark.parametrize('mean', [10, 100, 1000])
@pytest.mark.parametrize('styled', [False, True])
def test_a_large_mean_costs_no_digits(mean, styled):
    """Against the formula in float64; the float32 input itself is exact there."""
    x = (np.random.default_rng(0).normal(size=(2, 6, 6, 32)) + mean).astype(np.float32)
    style = np.ones((2, 3), np.float32) if styled else None
    affine = {'kernel': np.zeros((3, 64), np.float32), 'bias': np.zeros(64, np.float32)}
    plain = {'scale': np.ones(32, np.float32), 'bias': np.zeros(32, np.float32)}
    got = layers.AdaptiveGroupNorm(8).apply({'params': {'affine': affine} if styled else {'norm': plain}}, x, style)
    groups = x.astype(np.float64).reshape(2, 36, 8, 4)
    expected = (groups - groups.mean((1, 3), keepdims=True)) / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(got, expected.reshape(x.shape), atol=1e-6 * mean)


@pytest.mark.parametrize('mean', [0.0, 1e3, 1e6, 1e9])
def test_statistics_of_features_keep_their_digits(mean):
    """FID's sums, in pieces and merged, against NumPy's two passes; the distance of two sets does not see a common mean."""
    features = np.random.default_rng(0).normal(size=(300, 4)) * [1.0, 0.5, 2.0, 1.0] + mean
    moments = fid.merge(fid.moments(features[:111], batch=13), fid.moments(features[111:], batch=50))
    assert moments.n == 300
    np.testing.assert_allclose(moments.mean, features.mean(0), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(features.T, bias=True), rtol=1e-6, atol=1e-8)
    moved = fid.moments(features + 0.3)
    np.testing.assert_allclose(fid.frechet(moments, moved), 4 * 0.09, rtol=1e-5)
