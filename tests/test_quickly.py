"""Programs compiled in the least time compute what others do, and a jaxlib without the options is none the worse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.checkpoint import digests
from t3d.parallel import devices, quickly, sharding


def test_digests_are_the_same_however_they_are_compiled():
    words = jnp.asarray(np.random.default_rng(0).standard_normal((7, 33)), jnp.float32)
    assert int(quickly.jit(digests.digest)(words)) == int(jax.jit(digests.digest)(words)) == int(digests.digest(words))


def test_each_shape_is_compiled_once_and_large_arrays_well(monkeypatch):
    made = []
    monkeypatch.setattr(digests, 'digest', lambda x, digest=digests.digest: made.append(x.shape) or digest(x))
    monkeypatch.setattr(digests, 'LARGE', 12)
    digests._one.cache_clear()
    tree = {'a': jnp.ones((3, 4)), 'b': jnp.zeros((3, 4)), 'c': jnp.arange(3), 'd': jnp.array([1.0, jnp.inf, 2.0])}
    table, bad = digests.inspect(tree)
    assert sorted(made) == [(3,), (3,), (3, 4)] and bad == ['d']  # of two types
    assert table['c'] == {'shape': [3], 'dtype': 'int32', 'digest': int(digests.digest(tree['c']))}
    assert table['a']['digest'] != table['b']['digest']
    digests._one.cache_clear()


@pytest.mark.parametrize('large', [False, True])
def test_arrays_of_a_mesh_have_the_digests_of_whole_ones(monkeypatch, large):
    monkeypatch.setattr(digests, 'LARGE', 0 if large else 1 << 20)
    mesh = devices.make({'data': 2, 'fsdp': 4})
    x = jax.random.normal(jax.random.key(0), (8, 6))
    cut = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('fsdp', 'data')))
    both, none = digests.inspect({'cut': cut, 'whole': jax.device_put(x, sharding.replicated(mesh))})
    alone, _ = digests.inspect({'cut': x, 'whole': x})
    assert both == alone and not none


def test_options_that_a_jaxlib_has_not_got_are_left_out(monkeypatch):
    monkeypatch.setattr(quickly, 'OPTIONS', {'xla_no_such_option': 1})
    quickly._known.cache_clear()
    assert int(quickly.jit(lambda x: x + 1)(2)) == 3
    quickly._known.cache_clear()
