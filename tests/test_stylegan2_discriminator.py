"""The dual discriminator against golden arrays, its batch statistic against a loop and on a mesh, R1 and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from peers import eg3d_names
from peers.eg3d_names import nhwc

from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.nets import stylegan2_discriminator as sd

SMALL = {'size': 32, 'channel_base': 256, 'channel_max': 16}


def largest(got, expected) -> float:
    return float(np.abs(np.asarray(got) - expected).max())


def relative(got, expected) -> float:
    return largest(got, expected) / float(np.abs(expected).max())


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def perturbed(params, scale=0.3):
    return tree.map_with_name(lambda name, leaf: np.asarray(leaf) + scale * random(*leaf.shape, seed=len(name)), params)


@pytest.fixture(scope='module')
def data():
    from conftest import GOLDEN

    return dict(np.load(GOLDEN / 'dual_disc32.npz'))


@pytest.fixture(scope='module')
def params(data):
    return eg3d_names.trees(data)[0]


@pytest.fixture(scope='module')
def inputs(data):
    return nhwc(data['image']), nhwc(data['image_raw']), data['c']


def discriminate(module):
    """One function of (params, image, raw, c): logits, gradients of their sum, R1, gradient of R1's mean for the parameters."""

    def run(params, image, raw, c):
        def logits(image, raw, params=params):
            return module.apply({'params': params}, image, raw, c)

        def penalty(params):
            per_sample = sd.r1(lambda image, raw: logits(image, raw, params), image, raw)
            return jnp.mean(per_sample), per_sample

        slopes = jax.grad(lambda *pair: jnp.sum(logits(*pair)), (0, 1))(image, raw)
        (_, per_sample), outer = jax.value_and_grad(penalty, has_aux=True)(params)
        return logits(image, raw), slopes, per_sample, outer

    return run


@pytest.fixture(scope='module')
def results(params, inputs):
    return jax.jit(discriminate(sd.Discriminator(**SMALL)))(params, *inputs)


def test_the_golden_parameters_are_ours_by_name_and_shape(params, inputs):
    abstract = jax.eval_shape(sd.Discriminator(**SMALL).init, jax.random.key(0), *inputs)['params']
    assert tree.mismatch(tree.flatten(params), tree.flatten(abstract)) == []


def test_logits_and_input_gradients_are_the_golden_ones(data, results):
    logits, (image, raw), _, _ = results
    assert largest(logits, data['logits'][:, 0]) < 2e-5
    assert relative(image, nhwc(data['grad_image'])) < 1e-4
    assert relative(raw, nhwc(data['grad_raw'])) < 1e-4


def test_r1_and_its_parameter_gradient_are_the_golden_ones(data, results):
    _, _, penalty, outer = results
    assert relative(penalty, data['r1']) < 1e-4
    for got, name in ((outer['b8']['conv0'], 'r1_grad_b8_conv0'), (outer['b32']['fromrgb'], 'r1_grad_fromrgb')):
        expected = data[name].transpose(2, 3, 1, 0)
        assert relative(got['weight'], expected) < 1e-4


@pytest.mark.parametrize('wrong', ['group', 'gain', 'pad', 'mirrored'])
def test_a_wrong_constant_fails_the_golden(data, params, inputs, monkeypatch, wrong):
    module, leaky, smooth = sd.Discriminator(**SMALL), sd.leaky, sd.fir.smooth
    if wrong == 'group':
        module = sd.Discriminator(**SMALL, group=2)
    if wrong == 'gain':
        monkeypatch.setattr(sd, 'leaky', lambda x, gain=1.0, clamp=None: leaky(x, gain * 1.0003, clamp))
    if wrong == 'pad':
        monkeypatch.setattr(sd.fir, 'smooth', lambda x, pad: smooth(x, pad + 1)[:, 2:, 2:])
    if wrong == 'mirrored':
        image, raw, c = inputs
        inputs = image[:, :, ::-1], raw, c
    run = jax.jit(module.apply)
    assert largest(run({'params': params}, *inputs), data['logits'][:, 0]) > 1e-4


def naive_std(x, group, micro, epsilon=1e-8):
    """One sample after another."""
    out = np.zeros(len(x))
    members = min(group, micro)
    for i in range(len(x)):
        start, step = i // micro * micro, micro // members
        mates = [start + (i - start) % step + step * k for k in range(members)]
        assert i in mates
        out[i] = np.sqrt(x[mates].astype(np.float64).var(0) + epsilon).mean()
    return out


@pytest.mark.parametrize('group, micro', [(4, None), (4, 8), (2, 4), (4, 4), (8, 16)])
def test_minibatch_std_is_a_loop_over_samples(group, micro):
    x = random(16, 3, 5, 6)
    out = np.asarray(sd.minibatch_std(x, group, micro))
    assert largest(out[..., :-1], x) == 0.0
    assert largest(out[..., -1], naive_std(x, group, micro or 16)[:, None, None]) < 1e-6
    flat = np.asarray(sd.minibatch_std(3e-5 * x, group, micro))[:, 0, 0, -1]  # here the epsilon acts
    assert largest(flat, naive_std(3e-5 * x, group, micro or 16)) < 1e-6
    assert largest(flat, naive_std(3e-5 * x, group, micro or 16, 2e-8)) > 1e-5


def test_minibatch_std_of_less_than_a_group_and_of_what_does_not_divide():
    x = random(2, 2, 2, 3)
    assert largest(sd.minibatch_std(x, 4, 8)[:, 0, 0, -1], naive_std(x, 4, 2)) < 1e-6
    for batch, group, micro in ((6, 4, None), (8, 4, 3), (12, 4, 8)):
        with pytest.raises(UsageError, match=str(batch)):
            sd.minibatch_std(random(batch, 2, 2, 3), group, micro)


def test_minibatch_std_knows_no_order_inside_a_group():
    """Batch 8, groups of 4: even samples are one group, odd ones the other."""
    x = random(8, 2, 2, 3)
    column = np.asarray(sd.minibatch_std(x, 4))[:, 0, 0, -1]
    assert largest(column[::2], column[0]) == largest(column[1::2], column[1]) == 0.0
    inside = x[[4, 1, 0, 7, 6, 5, 2, 3]]
    across = x[[1, 0, 2, 3, 4, 5, 6, 7]]
    assert largest(sd.minibatch_std(inside, 4)[:, 0, 0, -1], column) < 1e-6
    assert largest(sd.minibatch_std(across, 4)[:, 0, 0, -1], column) > 1e-4


@pytest.fixture(scope='module')
def mesh():
    return Mesh(np.array(jax.devices()[:4]), ('data',))


def test_minibatch_std_is_the_same_on_four_devices(mesh):
    x = random(16, 2, 3, 4)
    expected = np.asarray(sd.minibatch_std(x, 4, 4))
    assert largest(sd.minibatch_std(x, 4), expected) > 1e-4  # the micro-batch matters
    sharded = jax.device_put(x, NamedSharding(mesh, P('data')))
    assert largest(jax.jit(lambda x: sd.minibatch_std(x, 4, 4))(sharded), expected) < 1e-6
    local = jax.shard_map(lambda x: sd.minibatch_std(x, 4, 4), mesh=mesh, in_specs=P('data'), out_specs=P('data'))
    assert largest(jax.jit(local)(sharded), expected) < 1e-6
    unaware = jax.shard_map(lambda x: sd.minibatch_std(x, 4), mesh=mesh, in_specs=P('data'), out_specs=P('data'))
    assert largest(jax.jit(unaware)(sharded), expected) < 1e-6


def test_the_discriminator_is_the_same_on_four_devices(mesh):
    """Logits, and the parameter gradient of a mean loss, with a batch of 16 in micro-batches of 4."""
    module = sd.Discriminator(8, channel_base=64, channel_max=8, mapping_layers=2, micro_batch=4)
    batch = random(16, 8, 8, 3), random(16, 4, 4, 3, seed=1), random(16, 25, seed=2)
    params = perturbed(module.init(jax.random.key(0), *batch)['params'])

    def loss(params, image, raw, c):
        logits = module.apply({'params': params}, image, raw, c)
        return jnp.mean(jax.nn.softplus(-logits)), logits

    run = jax.jit(jax.grad(loss, has_aux=True))
    expected, logits = run(params, *batch)
    sharded = jax.device_put(batch, NamedSharding(mesh, P('data')))
    got, there = run(jax.device_put(params, NamedSharding(mesh, P())), *sharded)
    assert relative(there, np.asarray(logits)) < 1e-5
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        assert relative(one, np.asarray(other)) < 1e-5


def test_samples_meet_only_in_their_group(params, inputs, results):
    """Another sample 1 changes the odd ones, its group, and no other."""
    image, raw, c = (x.copy() for x in inputs)
    image[1] = 1.0
    logits = jax.jit(sd.Discriminator(**SMALL).apply)({'params': params}, image, raw, c)
    change = np.abs(np.asarray(logits) - np.asarray(results[0]))
    assert change[::2].max() < 1e-6
    assert change[1::2].min() > 1e-6


def test_second_derivatives_are_finite_for_equal_samples(params):
    """The standard deviation is zero there: only the epsilon under the root keeps its slope finite."""
    image, raw, c = (np.repeat(random(1, *shape), 8, 0) for shape in ((32, 32, 3), (16, 16, 3), (25,)))
    outcome = jax.jit(discriminate(sd.Discriminator(**SMALL)))(params, image, raw, c)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outcome))
    assert np.abs(outcome[3]['b8']['conv0']['weight']).max() > 0


def test_r1_of_a_quadratic():
    """D = a |image|^2 + b . raw: 4 a^2 |image|^2 + |b|^2."""
    image, raw, b = random(3, 4, 4, 3), random(3, 2, 2, 3, seed=1), random(2, 2, 3, seed=2)
    got = sd.r1(lambda i, r: 0.5 * jnp.sum(i**2, (1, 2, 3)) + jnp.sum(b * r, (1, 2, 3)), image, raw)
    assert relative(got, np.square(image).sum((1, 2, 3)) + np.square(b).sum()) < 1e-6
    alone = sd.r1(lambda i, r: 0.5 * jnp.sum(i**2, (1, 2, 3)), image, None)
    assert relative(alone, np.square(image).sum((1, 2, 3))) < 1e-6


def test_without_label_and_of_one_image():
    image = random(4, 8, 8, 3)
    module = sd.Discriminator(8, in_channels=3, channel_base=64, channel_max=8, c_dim=0)
    params = module.init(jax.random.key(0), image, None, None)['params']
    assert 'mapping' not in params and params['b4']['out']['weight'].shape == (8, 1)
    assert module.apply({'params': params}, image, None, random(4, 25)).shape == (4,)
    with pytest.raises(UsageError, match=r'8 x 8 x 3.*\(8, 8, 6\)'):
        module.apply({'params': params}, image, image, None)
    with pytest.raises(UsageError, match='8 x 8 x 3'):
        module.apply({'params': params}, image[:, :4, :4], None, None)


def test_bfloat16_stays_close(params, inputs, results):
    """In bfloat16 at all four resolutions and at the highest alone; the clamp acts at its bound."""
    expected = np.asarray(results[0])
    errors = []
    for levels in (1, 4):
        module = sd.Discriminator(**SMALL, dtype=jnp.bfloat16, clamp=256.0, low_precision=levels)
        logits = jax.jit(module.apply)({'params': params}, *inputs)
        assert logits.dtype == jnp.float32
        errors.append(relative(logits, expected))
    assert 1e-5 < errors[0] < 0.1 and 1e-5 < errors[1] < 0.1
    tight = jax.jit(sd.Discriminator(**SMALL, clamp=0.1).apply)({'params': params}, *inputs)
    assert relative(tight, expected) > 0.1


def shapes_of(size, raw, **options):
    """Shapes of the parameters of a discriminator for images of `size` pixels."""
    module = sd.Discriminator(size, **options)
    inputs = (4, size, size, 3), (4, raw, raw, 3), (4, 25)
    return jax.eval_shape(lambda key: module.init(key, *map(jnp.zeros, inputs)), jax.random.key(0))['params']


def test_parameter_counts():
    for size, millions in ((512, 31.36), (256, 31.24), (128, 30.77)):
        shapes = shapes_of(size, 64)
        assert round(tree.count(shapes) / 1e6, 2) == millions
        assert round(tree.count(shapes['mapping']) / 1e6, 3) == 2.115
        assert round(tree.count(shapes['b4']) / 1e6, 2) == 6.82
    tiny = shapes_of(64, 32, channel_base=1024, channel_max=64, mapping_layers=2)
    assert round(tree.count(tiny) / 1e6, 3) == 0.311
