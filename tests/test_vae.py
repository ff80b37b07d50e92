"""The KL autoencoder against diffusers on weights that are random throughout."""

import copy
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.nets import vae as vaes
from t3d.nets.vae import VAE
from t3d.parallel import devices, sharding

SMALL = {
    'in_channels': 3,
    'out_channels': 3,
    'latent_channels': 4,
    'block_out_channels': [16, 32],
    'down_block_types': ['DownEncoderBlock2D'] * 2,
    'up_block_types': ['UpDecoderBlock2D'] * 2,
    'layers_per_block': 1,
    'norm_num_groups': 8,
    'scaling_factor': 0.5,
}
LARGER = {
    **SMALL,
    'block_out_channels': [32, 64, 64, 64],
    'down_block_types': ['DownEncoderBlock2D'] * 4,
    'up_block_types': ['UpDecoderBlock2D'] * 4,
    'layers_per_block': 2,
}


class Pair:
    """Both autoencoders with the same weights; ours compiled."""

    def __init__(self, config):
        diffusers = pytest.importorskip('diffusers')
        torch_unet, loading = pytest.importorskip('peers.torch_unet'), pytest.importorskip('peers.loading')
        self.theirs = torch_unet.fill(diffusers.AutoencoderKL(**config))
        self.ours = VAE.from_config(config)
        self.abstract = loading.abstract_params(self.ours, jnp.zeros((1, 16, 16, 3)))
        self.loading = loading
        self.params = loading.params(self.theirs, self.abstract)
        self.encode = jax.jit(functools.partial(self.ours.apply, method='encode'))
        self.decode = jax.jit(functools.partial(self.ours.apply, method='decode'))

    def encodings(self, images):
        """((mean, logvar) of ours, of theirs) for float32 images [B, H, W, 3]."""
        import torch

        with torch.no_grad():
            posterior = self.theirs.encode(nchw(images)).latent_dist
        expected = self.loading.nhwc(posterior.mean), self.loading.nhwc(posterior.logvar)
        return self.encode({'params': self.params}, images), expected

    def decodings(self, latents):
        """(ours, theirs) for unscaled latents [B, H, W, 4]."""
        import torch

        with torch.no_grad():
            expected = self.loading.nhwc(self.theirs.decode(nchw(latents)).sample)
        return self.decode({'params': self.params}, latents), expected

    def quiet(self):
        """A copy in which every norm has an input of variance about 1e-5; to be given inputs of scale 3e-3."""
        low = copy.copy(self)
        low.theirs = self.loading.quiet(copy.deepcopy(self.theirs))
        low.params = self.loading.params(low.theirs, self.abstract)
        return low


def nchw(x):
    import torch

    return torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2).contiguous()


def images(batch, height, width, seed=0):
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (batch, height, width, 3)).astype(np.float32)


def latents(batch, side, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, side, side, 4)).astype(np.float32)


@pytest.fixture(scope='module')
def pair():
    return Pair(SMALL)


def test_moments_and_images_equal_diffusers_for_an_odd_batch(pair):
    got, expected = pair.encodings(images(3, 16, 8))
    assert got[0].shape == (3, 8, 4, 4) and got[0].dtype == jnp.float32
    np.testing.assert_allclose(got[0], expected[0], atol=3e-5)
    np.testing.assert_allclose(got[1], expected[1], atol=3e-5)
    got, expected = pair.decodings(latents(3, 8))
    assert got.shape == (3, 16, 16, 3)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_what_diffusers_writes_as_its_config_is_read(pair):
    assert VAE.from_config(json.loads(pair.theirs.to_json_string())) == pair.ours


def test_the_log_variance_is_clipped_as_theirs_is(pair):
    params = jax.tree.map(lambda leaf: leaf, pair.params)
    params['quant_conv']['kernel'] = 100.0 * params['quant_conv']['kernel']
    _, logvar = pair.encode({'params': params}, images(3, 16, 8))
    assert float(logvar.min()) == -30.0 and float(logvar.max()) == 20.0


def test_the_scaling_factor_is_applied_once(pair):
    class Compiled:  # stands in for the module, with the programs that are there
        scaling_factor = pair.ours.scaling_factor

        def apply(self, variables, x, method):
            return {'encode': pair.encode, 'decode': pair.decode}[method](variables, x)

    x, z, key = images(3, 16, 8), latents(3, 8), jax.random.key(3)
    mean, logvar = pair.encode({'params': pair.params}, x)
    np.testing.assert_allclose(vaes.to_latents(Compiled(), pair.params, x), 0.5 * mean)
    drawn = 0.5 * (mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape))
    np.testing.assert_allclose(vaes.to_latents(Compiled(), pair.params, x, key), drawn, rtol=1e-6)
    np.testing.assert_allclose(vaes.to_images(Compiled(), pair.params, 0.5 * z), pair.decode({'params': pair.params}, z))
    assert VAE.from_config({}).scaling_factor == 0.18215


def test_a_low_variance_probe_of_every_norm(pair):
    """Every map has a variance of about 1e-5, so that an epsilon of 1e-5 for 1e-6 would show everywhere."""
    low = pair.quiet()
    (got, _), (expected, _) = low.encodings(3e-3 * images(3, 16, 8))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    got, expected = low.decodings(3e-3 * latents(3, 8))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def probed_gradient(pair, vae, x, weight):
    """Gradient of a weighted sum of the moments with respect to the images."""

    def loss(x):
        mean, logvar = vae.apply({'params': pair.params}, x, method='encode')
        return jnp.sum(weight * (mean + 0.1 * logvar))

    return jax.jit(jax.grad(loss))(x)


@pytest.mark.parametrize('remat', [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_gradient_through_the_encoder_is_torchs(pair, remat):
    x, weight = images(3, 16, 8), latents(3, 8)[:, :, :4]
    theirs = nchw(x).requires_grad_(True)
    posterior = pair.theirs.encode(theirs).latent_dist
    (nchw(weight) * (posterior.mean + 0.1 * posterior.logvar)).sum().backward()
    got, expected = probed_gradient(pair, pair.ours.clone(remat=remat), x, weight), pair.loading.nhwc(theirs.grad)
    assert np.isfinite(got).all() and np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_four_levels_equal_diffusers():
    pair = Pair(LARGER)
    got, expected = pair.encodings(images(3, 64, 32))
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-5)
    got, expected = pair.decodings(latents(3, 8))
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_the_released_size_has_the_published_count_of_parameters():
    abstract = jax.eval_shape(lambda: VAE().init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))['params']
    assert tree.count(abstract) == 83_653_863 and len(tree.flatten(abstract)) == 248
    parts = {name: tree.count(part) for name, part in abstract.items()}
    assert parts == {'encoder': 34_163_592, 'decoder': 49_490_179, 'quant_conv': 72, 'post_quant_conv': 20}


def test_bfloat16_is_near(pair):
    x = images(3, 16, 8)
    expected, _ = pair.encode({'params': pair.params}, x)
    low, _ = jax.jit(functools.partial(pair.ours.clone(dtype=jnp.bfloat16).apply, method='encode'))({'params': pair.params}, x)
    assert low.dtype == jnp.float32
    difference = float(jnp.max(jnp.abs(low - expected)) / jnp.max(jnp.abs(expected)))
    assert 1e-4 < difference < 5e-2


def test_eight_devices_equal_one(pair):
    mesh = devices.make({'data': 2, 'fsdp': 2, 'tensor': 2})
    placed = sharding.shardings(pair.abstract, vaes.SHARDING, mesh, 0)
    assert placed['encoder']['mid_block']['attentions_0']['to_q']['kernel'].spec == P('fsdp', 'tensor')
    x = images(4, 16, 16)
    with jax.set_mesh(mesh):
        params = jax.device_put(pair.params, placed)
        many, _ = pair.encode({'params': params}, jax.device_put(x, sharding.batch_sharding(mesh)))
    one, _ = pair.encode({'params': pair.params}, x)
    np.testing.assert_allclose(many, one, atol=1e-5)


def test_wrong_configs_and_inputs_are_named():
    with pytest.raises(UsageError, match="unknown key 'latent_chanels'.*Did you mean 'latent_channels'"):
        VAE.from_config({**SMALL, 'latent_chanels': 4})
    with pytest.raises(UsageError, match='mid_block_add_attention=False: t3d implements True'):
        VAE.from_config({**SMALL, 'mid_block_add_attention': False})
    with pytest.raises(UsageError, match='one for each level'):
        VAE.from_config({**SMALL, 'block_out_channels': [16, 16, 16]})
    with pytest.raises(UsageError, match='multiple of norm_num_groups=8'):
        VAE.from_config({**SMALL, 'block_out_channels': [16, 20]})
    vae = VAE.from_config({**SMALL, 'sample_size': 64, '_class_name': 'AutoencoderKL', 'force_upcast': True})
    with pytest.raises(UsageError, match=r'\(1, 15, 16, 3\): wanted \[B, H, W, 3\], H and W multiples of 2'):
        jax.eval_shape(lambda: vae.init(jax.random.key(0), jnp.zeros((1, 15, 16, 3))))
    with pytest.raises(UsageError, match=r'latents of shape \(1, 8, 8, 3\): wanted \[B, H, W, 4\]'):
        jax.eval_shape(lambda: vae.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), method='decode'))
