"""One step of each core system on 1, 2, 4 and 8 devices along each axis of the mesh: the same loss, the same gradients.

`test_contract` holds every system on eight devices along `data`; here are the other axes and counts. All are compiled, so all
are slow: three minutes a system on one core.

Another division adds the same float32 numbers in another order. The loss and the gradient of a whole network are sums of many
numbers whose roundings average out: 1e-5, a hundred of the last bit. A single array, a bias for one, may be the small rest of
large parts of the batch that cancel, whose rounding stays: 1e-4.
"""

import functools

import jax
import numpy as np
import pytest
import random_weights
import test_contract as contract

from t3d.core import config as configs
from t3d.core import tree
from t3d.parallel import devices
from t3d.train import program as programs
from t3d.train import states

CORE = ('ganfusion_gan', 'ganfusion_diffusion', 'instant3d', 'mvdiffusion')
WHOLE = {'ganfusion_gan': ('tensor',)}  # axes along which a system divides nothing: its arrays are whole on every device
CLOSE = 1e-5  # of the loss, and of the norm of a network's gradient
EACH, LEAST = 1e-4, 1e-6  # of the norm of one array's; of the largest number of all: sums that cancel are rounding


@functools.cache
def stepped(name, axis='data', count=1):
    """(loss, first moments of Adam by name, shards of the most divided array) after a step of random weights."""
    words = [*contract.SMALL[name], *((contract.WORDS,) if name not in contract.WORDLESS else ()), 'optimizer.warmup=1']
    words = [word for word in words if name not in contract.WORDLESS or not word.startswith('optimizer')]
    words += ['batch=8', 'steps=100', 'mesh.data=1', f'mesh.{axis}={count}', 'fsdp_floor=1024']
    loaded = configs.load(contract.file_of(name), words)
    system = contract.systems.make(loaded, contract.described(name))
    mesh = devices.make(loaded.mesh)
    with jax.set_mesh(mesh):
        params = states.placed(contract.given(name), mesh, 1024)
        target = states.abstract(loaded, system, mesh, params)
        program = programs.Program(loaded, system, mesh, target, given=params)
        state = states.fresh(loaded, system, target, given=params)
        state = contract.put(jax.device_get(state.replace(params=random_weights.shaken(state.params))), target)
        divided = max(len({str(shard.index) for shard in leaf.addressable_shards}) for leaf in jax.tree.leaves(state.params))
        state, metrics = program(state, contract.batch(name), 0)
    moments = {leaf: value for leaf, value in tree.flatten(jax.device_get(state.opt_state)).items() if '/mu/' in f'/{leaf}'}
    assert moments
    return float(metrics['loss']), moments, divided


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4, 8])
@pytest.mark.parametrize('axis', devices.AXES)
@pytest.mark.parametrize('name', CORE)
def test_a_step_is_that_of_one_device(name, axis, count):
    loss, slopes, _ = stepped(name)
    many_loss, many, divided = stepped(name, axis, count)
    np.testing.assert_allclose(many_loss, loss, rtol=CLOSE)
    assert divided == 1 if axis in ('data', *WHOLE.get(name, ())) else divided >= 2  # something lies along the axis
    most, apart, norms = max(np.abs(value).max() for value in slopes.values()), {}, {}
    for leaf, value in slopes.items():
        off, norm = (np.linalg.norm(np.float64(array)) for array in (np.float64(many[leaf]) - value, value))
        assert off <= EACH * norm + LEAST * most * np.sqrt(value.size), leaf
        network = leaf.partition('/mu/')[0] + '/' + leaf.partition('/mu/')[2].partition('/')[0]
        apart[network] = apart.get(network, 0.0) + off**2
        norms[network] = norms.get(network, 0.0) + norm**2
    for network, norm in norms.items():
        assert np.sqrt(apart[network]) <= CLOSE * np.sqrt(norm), network
