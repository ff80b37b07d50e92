"""The Stable Diffusion UNet against diffusers on weights that are random throughout."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.nets import unet as unets
from t3d.nets import unet_blocks
from t3d.nets.unet import UNet
from t3d.parallel import devices, sharding

SMALL = {  # two levels, both kinds of block in each direction
    'in_channels': 4,
    'out_channels': 4,
    'block_out_channels': [32, 64],
    'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
    'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
    'layers_per_block': 1,
    'cross_attention_dim': 24,
    'norm_num_groups': 8,
}
LARGER = {
    **SMALL,
    'block_out_channels': [32, 64, 128, 128],
    'down_block_types': ['CrossAttnDownBlock2D'] * 3 + ['DownBlock2D'],
    'up_block_types': ['UpBlock2D'] + ['CrossAttnUpBlock2D'] * 3,
    'layers_per_block': 2,
}
STYLES = {
    '1.5': {'attention_head_dim': 8, 'use_linear_projection': False},
    '2.1': {'attention_head_dim': [2, 4], 'use_linear_projection': True, 'upcast_attention': True},
}
SD15 = {'cross_attention_dim': 768, 'attention_head_dim': 8}
SD21 = {'cross_attention_dim': 1024, 'attention_head_dim': [5, 10, 20, 20], 'use_linear_projection': True}


class Pair:
    """Both UNets with the same weights; ours compiled."""

    def __init__(self, config):
        diffusers = pytest.importorskip('diffusers')
        torch_unet, self.loading = pytest.importorskip('peers.torch_unet'), pytest.importorskip('peers.loading')
        self.config, self.ours = config, UNet.from_config(config)
        self.theirs = torch_unet.fill(diffusers.UNet2DConditionModel(**config))
        self.abstract = self.loading.abstract_params(self.ours, *self.inputs())
        self.params = self.loading.params(self.theirs, self.abstract)
        self.apply = jax.jit(self.ours.apply)

    def inputs(self, scale=1.0, size=(8, 8), count=2):
        rng = np.random.default_rng(1)
        latents = scale * rng.standard_normal((count, *size, self.config['in_channels']))
        text = rng.standard_normal((count, 7, self.config['cross_attention_dim']))
        return latents.astype(np.float32), np.linspace(981, 1, count).round().astype(np.float32), text.astype(np.float32)

    def run(self, latents, t, text):
        """(ours, theirs)."""
        import torch

        with torch.no_grad():
            x = torch.from_numpy(latents).permute(0, 3, 1, 2).contiguous()
            expected = self.theirs(x, torch.from_numpy(t), encoder_hidden_states=torch.from_numpy(text)).sample
        return self.apply({'params': self.params}, latents, t, text), self.loading.nhwc(expected)

    def quiet(self):
        """A copy in which every norm has an input of variance about 1e-5; to be given inputs of scale 3e-3."""
        low = copy.copy(self)
        low.theirs = self.loading.quiet(copy.deepcopy(self.theirs))
        low.params = self.loading.params(low.theirs, self.abstract)
        return low


def relative(got, expected) -> float:
    return float(np.abs(np.asarray(got) - expected).max() / np.abs(expected).max())


@pytest.fixture(scope='module', params=STYLES)
def either(request):
    return Pair({**SMALL, **STYLES[request.param]})


@pytest.fixture(scope='module')
def pair():
    return Pair({**SMALL, **STYLES['2.1']})


def test_two_levels_equal_diffusers(either):
    got, expected = either.run(*either.inputs())
    assert got.shape == expected.shape and got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_a_low_variance_probe_of_every_norm(either):
    assert relative(*either.quiet().run(*either.inputs(scale=3e-3))) < 1e-5


def test_what_diffusers_writes_as_its_config_is_read(either):
    written = json.loads(either.theirs.to_json_string())
    assert len(written) > 40 and UNet.from_config(written) == either.ours


FOUR = {**LARGER, 'block_out_channels': [8, 16, 24, 32], 'layers_per_block': 1, 'norm_num_groups': 4, 'cross_attention_dim': 12}


@pytest.mark.parametrize('size', [(5, 7), (16, 9)])
def test_four_narrow_levels_on_odd_and_oblong_maps_equal_diffusers(four, size):
    """Every kind of block, layers rounded up on the way down and cut on the way up, in seconds."""
    np.testing.assert_allclose(*four.run(*four.inputs(size=size)), atol=2e-5)


@pytest.fixture(scope='module')
def four():
    return Pair({**FOUR, 'attention_head_dim': [2, 4, 4, 8], 'use_linear_projection': True})


@pytest.mark.slow
@pytest.mark.parametrize('style', STYLES)
def test_four_levels_equal_diffusers(style):
    heads = {} if style == '1.5' else {'attention_head_dim': [2, 4, 8, 8]}
    pair = Pair({**LARGER, **STYLES[style], **heads})
    np.testing.assert_allclose(*pair.run(*pair.inputs(size=(16, 16))), atol=2e-5)
    assert relative(*pair.quiet().run(*pair.inputs(scale=3e-3, size=(16, 16)))) < 1e-5


@pytest.mark.slow
def test_odd_sides_equal_diffusers():
    pair = Pair({**LARGER, **STYLES['1.5']})
    np.testing.assert_allclose(*pair.run(*pair.inputs(size=(10, 13))), atol=2e-5)


@pytest.mark.parametrize(
    'config, parameters', [(SD15, 859_520_964), (SD21, 865_910_724)], ids=['Stable Diffusion 1.5', 'Stable Diffusion 2.1']
)
def test_the_released_sizes_have_the_published_counts_of_parameters(config, parameters):
    unet = UNet.from_config(config)
    inputs = jnp.zeros((1, 8, 8, 4)), 0, jnp.zeros((1, 77, config['cross_attention_dim']))
    abstract = jax.eval_shape(lambda: unet.init(jax.random.key(0), *inputs))['params']
    assert tree.count(abstract) == parameters and len(tree.flatten(abstract)) == 686


def test_one_time_for_all_and_an_embedding_beside_it(pair):
    latents, t, text = pair.inputs()
    same = pair.apply({'params': pair.params}, latents, np.float32([981, 981]), text)
    zero = np.zeros((2, 128), np.float32)
    added = jax.jit(lambda t, e: pair.ours.apply({'params': pair.params}, latents, t, text, e))
    np.testing.assert_allclose(added(jnp.float32(981), zero), same, atol=5e-6)
    # a change of the last bias of the time embedding is the same as an added embedding
    moved = jax.tree.map(lambda leaf: leaf, pair.params)
    extra = np.random.default_rng(2).standard_normal(128).astype(np.float32)
    moved['time_embedding']['linear_2']['bias'] = moved['time_embedding']['linear_2']['bias'] + extra
    got = added(jnp.float32(981), np.stack([extra, extra]))
    np.testing.assert_allclose(got, pair.apply({'params': moved}, latents, np.float32([981, 981]), text), atol=1e-5)
    assert relative(got, np.asarray(same)) > 1e-2


def test_the_waves_of_time():
    waves = unets.timestep_embedding(jnp.float32([0.0, 7.0]), 8)
    angles = 7.0 * 10000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(waves[0], [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(waves[1], [*np.cos(angles), *np.sin(angles)], atol=1e-6)
    swapped = unets.timestep_embedding(jnp.float32([7.0]), 8, cos_first=False, shift=1.0)
    angles = 7.0 * 10000.0 ** (-np.arange(4) / 3)
    np.testing.assert_allclose(swapped[0], [*np.sin(angles), *np.cos(angles)], atol=1e-6)


@pytest.mark.parametrize('remat', [pytest.param(False, marks=pytest.mark.slow), (True, False)])
def test_gradients_are_torchs_with_and_without_recomputation(pair, remat):
    import torch

    latents, t, text = pair.inputs()
    weight = np.random.default_rng(3).standard_normal(latents.shape).astype(np.float32)
    unet = pair.ours.clone(remat=remat)

    def loss(params, latents):
        return jnp.sum(weight * unet.apply({'params': params}, latents, t, text))

    grads, of_latents = jax.jit(jax.grad(loss, (0, 1)))(pair.params, latents)
    model, x = copy.deepcopy(pair.theirs), torch.from_numpy(latents).permute(0, 3, 1, 2).contiguous().requires_grad_(True)
    out = model(x, torch.from_numpy(t), encoder_hidden_states=torch.from_numpy(text)).sample
    (torch.from_numpy(weight).permute(0, 3, 1, 2) * out).sum().backward()
    assert relative(of_latents, pair.loading.nhwc(x.grad)) < 1e-5
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    expected = tree.flatten(pair.loading.params(model, pair.abstract))
    worst = {name: relative(leaf, np.asarray(expected[name])) for name, leaf in tree.flatten(grads).items()}
    assert max(worst.values()) < 1e-4, max(worst, key=worst.get)


def test_bfloat16_is_near_and_its_islands_are_float32(pair):
    inputs = pair.inputs()
    expected = pair.apply({'params': pair.params}, *inputs)
    low = pair.ours.clone(dtype=jnp.bfloat16)
    low_output = jax.jit(low.apply)({'params': pair.params}, *inputs)
    assert low_output.dtype == jnp.float32 and 1e-4 < relative(low_output, np.asarray(expected)) < 5e-2
    text = str(jax.make_jaxpr(low.apply)({'params': pair.params}, *inputs))
    assert 'bf16' in text
    for line in text.splitlines():
        if any(f' = {name} ' in line or f' = {name}[' in line for name in ('cos', 'sin', 'rsqrt', 'exp', 'reduce_max')):
            assert 'bf16' not in line.split('=')[0], line


def test_attention_in_chunks_is_attention(monkeypatch):
    query, key, value = (jax.random.normal(k, (2, n, 3, 8)) for k, n in zip(jax.random.split(jax.random.key(0), 3), (12, 5, 5)))

    def naive(query, key, value):
        weights = jax.nn.softmax(jnp.einsum('bnhd,bmhd->bhnm', query, key) * 8**-0.5, -1)
        return jnp.einsum('bhnm,bmhd->bnhd', weights, value)

    def both(attend):
        loss = lambda *inputs: (lambda out: (jnp.sum(jnp.sin(out)), out))(attend(*inputs))
        grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(query, key, value)
        return (*grads, out)

    expected = both(naive)
    for logits, chunked in ((unet_blocks.LOGITS, False), (2 * 3 * 12, True)):  # five chunks do not divide 12 queries, six do
        monkeypatch.setattr(unet_blocks, 'LOGITS', logits)
        attend = lambda *inputs: unet_blocks.dot_product_attention(*inputs)  # a new function, or jit remembers the last
        assert ('scan' in str(jax.make_jaxpr(attend)(query, key, value))) == chunked
        for got, right in zip(both(attend), expected, strict=True):
            np.testing.assert_allclose(got, right, atol=1e-6)


def test_a_kernel_that_refuses_is_replaced(monkeypatch):
    asked = []

    def refuse(query, key, value, implementation):
        asked.append(implementation)
        if query.shape[-1] > 128:
            raise NotImplementedError('head dim')
        return 2 * value

    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(jax.nn, 'dot_product_attention', refuse)
    attend = lambda width, **options: unet_blocks.dot_product_attention(
        *[jnp.ones((1, 4, 2, width), jnp.bfloat16)] * 3, **options
    )
    assert float(attend(8).max()) == 2 and asked == ['cudnn']
    assert float(attend(136).max()) == 1 and asked == ['cudnn', 'cudnn']
    assert float(attend(8, upcast=True).max()) == 1 and asked == ['cudnn', 'cudnn']  # float32: not asked for
    assert float(attend(8, kernel='plain').max()) == 1 and asked == ['cudnn', 'cudnn']


@pytest.mark.parametrize('sizes', [pytest.param((1, 8, 1), marks=pytest.mark.slow), (2, 2, 2)], ids=str)
def test_eight_devices_equal_one(pair, sizes):
    mesh = devices.make(dict(zip(devices.AXES, sizes)))
    placed = sharding.shardings(pair.abstract, unets.SHARDING, mesh, 0)
    block = placed['down_blocks_0']['attentions_0']['transformer_blocks_0']
    assert block['attn1']['to_q']['kernel'].spec == P('fsdp', 'tensor')
    assert block['ff']['net_2']['kernel'].spec == P('tensor', 'fsdp')
    inputs = pair.inputs(count=8)
    one = pair.apply({'params': pair.params}, *inputs)
    with jax.set_mesh(mesh):
        params = jax.device_put(pair.params, placed)
        many = pair.apply({'params': params}, *jax.device_put(inputs, sharding.batch_sharding(mesh)))
    np.testing.assert_allclose(many, one, atol=1e-5)


WRONG = {
    'class_embed_type': ({'class_embed_type': 'timestep'}, "class_embed_type='timestep': t3d implements None"),
    'misspelt': ({'cross_atention_dim': 768}, "unknown key 'cross_atention_dim'.*'cross_attention_dim'"),
    'block': ({'down_block_types': ['AttnDownBlock2D'] * 2}, 'AttnDownBlock2D.*CrossAttnDownBlock2D and DownBlock2D'),
    'levels': ({'up_block_types': ['UpBlock2D']}, 'up_block_types has 1 entries: the 2 levels'),
    'heads': ({'attention_head_dim': [2, 4, 8]}, 'give one value, or 2'),
    'groups': ({'norm_num_groups': 24}, 'block_out_channels has 32: wanted an even multiple of norm_num_groups=24'),
}


@pytest.mark.parametrize('change, message', WRONG.values(), ids=WRONG)
def test_configs_that_are_not_implemented_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        UNet.from_config({**SMALL, **change})


def test_inputs_of_another_network_are_named():
    unet = UNet.from_config({**SMALL, 'sample_size': 64, '_class_name': 'UNet2DConditionModel', 'dropout': 0.0})
    init = lambda *inputs: jax.eval_shape(lambda: unet.init(jax.random.key(0), *inputs))
    with pytest.raises(UsageError, match=r'text of shape \(1, 77, 768\): wanted \[1, N, 24\]'):
        init(jnp.zeros((1, 8, 8, 4)), 0, jnp.zeros((1, 77, 768)))
    with pytest.raises(UsageError, match=r'latents of shape \(1, 4, 8, 8\): wanted \[B, H, W, 4\]'):
        init(jnp.zeros((1, 4, 8, 8)), 0, jnp.zeros((1, 77, 24)))
