"""EG3D's state dictionaries into our trees and back; the peer that stands for EG3D is itself held to its stored arrays."""

import pathlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from t3d.checkpoint import convert_eg3d, torch_files
from t3d.checkpoint.torch_files import BadWeights
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.fields import triplane_field, triplane_generator
from t3d.geom import cameras, volume
from t3d.nets import stylegan2

torch = pytest.importorskip('torch')
peer = pytest.importorskip('peers.torch_stylegan2')
from peers import torch_renderer  # noqa: E402

GOLDEN = pathlib.Path(__file__).parent / 'golden'
SHAPE = {
    'z': 24,
    'w': 32,
    'mapping_layers': 2,
    'planes': 16,
    'channels': 6,
    'channel_base': 512,
    'channel_max': 32,
    'hidden': 20,
    'features': 10,
    'sr_input': 16,
    'sr_channels': (12, 8),
    'sr_ups': (False, True),
}


@pytest.fixture(autouse=True, scope='module')
def exact():
    with jax.default_matmul_precision('highest'):
        yield


# ------------------------------------------------------------------------------------------------ the peer is trustworthy


def golden(name, module):
    """(arrays as tensors, the module with the stored parameters), every stored parameter used."""
    stored = {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(GOLDEN / f'{name}.npz').items()}
    state = {key.removeprefix('param/'): value for key, value in stored.items() if key.startswith('param/')}
    module.load_state_dict(state, strict=True)
    return stored, module


def test_peer_mapping_is_the_stored_one():
    stored, net = golden('mapping', peer.Mapping(16, 25, 16, 2))
    expected = stored['w'][:, 0]
    torch.testing.assert_close(net(stored['z'], stored['c']), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(net(stored['z'], 0 * stored['c']), stored['w_c0'][:, 0], atol=2e-6, rtol=0)
    pulled = net.w_avg + 0.5 * (net(stored['z'], stored['c']) - net.w_avg)
    torch.testing.assert_close(pulled, stored['w_psi05_cut3'][:, 2], atol=2e-6, rtol=0)


def test_peer_synthesis_is_the_stored_one():
    stored, net = golden('synthesis16', peer.Synthesis(16, 24, 16, 128, 16))
    for noise in ('none', 'const'):
        torch.testing.assert_close(net(stored['ws'], noise), stored[f'img_{noise}'], atol=2e-5, rtol=0)


def test_peer_upsampler_block_is_the_stored_one():
    stored, net = golden('sr_block_noup', peer.SynthesisBlock(8, 12, 16, 16, 3, up=False))
    x, rgb = net(stored['x'], stored['rgb'], stored['w'].unbind(1), 'none')
    torch.testing.assert_close(x, stored['x_out'], atol=2e-5, rtol=0)
    torch.testing.assert_close(rgb, stored['rgb_out'], atol=2e-5, rtol=0)


def test_peer_discriminator_is_the_stored_one_to_its_second_derivatives():
    stored, net = golden('dual_disc32', peer.Discriminator(32, 256, 16))
    pair = [stored[name].requires_grad_() for name in ('image', 'image_raw')]
    logits = net(*pair, stored['c'])
    torch.testing.assert_close(logits, stored['logits'][:, 0], atol=2e-5, rtol=0)
    gradients = torch.autograd.grad(logits.sum(), pair, create_graph=True)
    for gradient, name in zip(gradients, ('grad_image', 'grad_raw')):
        torch.testing.assert_close(gradient, stored[name], atol=1e-5, rtol=1e-4)
    r1 = sum(gradient.square().sum((1, 2, 3)) for gradient in gradients)
    torch.testing.assert_close(r1, stored['r1'], atol=0, rtol=1e-4)
    outer = torch.autograd.grad(r1.mean(), (net.b8.conv0.weight, net.b32.fromrgb.weight))
    for gradient, name in zip(outer, ('r1_grad_b8_conv0', 'r1_grad_fromrgb')):
        assert (gradient - stored[name]).abs().max() < 1e-4 * stored[name].abs().max()


# ------------------------------------------------------------------------------------------------------ whole networks


def config(**changed):
    """The config of SHAPE; `changed` by dotted names with two underscores for the dot."""
    generator = {
        'z': SHAPE['z'],
        'w': SHAPE['w'],
        'mapping_layers': SHAPE['mapping_layers'],
        'pose_conditioning': True,
        'plane_resolution': SHAPE['planes'],
        'plane_channels': SHAPE['channels'],
        'channel_base': SHAPE['channel_base'],
        'channel_max': SHAPE['channel_max'],
        'hidden': SHAPE['hidden'],
        'features': SHAPE['features'],
        'sr_style': 'w',
        'clamp': 0.0,
        'sr': dict(input_size=16, channels=SHAPE['sr_channels'], ups=SHAPE['sr_ups']),
    }
    render = {
        'plane_axes': 'legacy',
        'size': 8,
        'samples': 8,
        'importance': 8,
        'limits': 'fixed',
        'near': 2.25,
        'far': 3.3,
        'box_warp': 1.0,
        'background': 0.0,
        'radius': 2.7,
        'fov': 0.33,
    }
    made = {
        'generator': ConfigDict(generator),
        'render': ConfigDict(render),
        'discriminator': ConfigDict(dict(channel_base=512, channel_max=32, mapping_layers=8, pose=True)),
    }
    for name, value in changed.items():
        section, _, key = name.partition('__')
        setattr(made[section], key, value)
    return ConfigDict({'dtype': 'float32', **made})


@pytest.fixture(scope='module')
def nets():
    torch.manual_seed(0)
    return peer.randomise(peer.Generator(SHAPE), 1), peer.randomise(peer.Discriminator(32, 512, 32), 2)


@pytest.fixture(scope='module')
def state(nets):
    return {
        name: {key: value.numpy() for key, value in net.state_dict().items()}
        for name, net in zip(('G_ema', 'D'), nets, strict=True)
    }


@pytest.fixture(scope='module')
def loaded(state):
    return convert_eg3d.load_eg3d(state, config())


def labels(count):
    angles = np.linspace(-0.4, 0.5, count)
    return np.stack([np.asarray(cameras.to_eg3d(cameras.orbit(a, 0.3 * a, 2.7, 0.33))) for a in angles]).astype(np.float32)


def ours(made, cfg, z, c, u_coarse, u_fine):
    """(planes, features, image) by our generator from the loaded trees, noise 'const' in the backbone."""
    net, (params, buffers) = triplane_generator.Generator(cfg), (made['generator'], made['buffers'])
    ws = net.ws(params, buffers, z, c)
    planes = net.planes(params, buffers, ws, 'const')
    rays = jax.tree.map(lambda leaf: leaf.reshape(len(z), -1, 3), cameras.rays(cameras.from_eg3d(c), 8, 8))
    out = volume.render_at(  # the generator's own render, with the random numbers of the peer
        net.field(params, planes),
        rays,
        u_coarse,
        u_fine,
        near=cfg.render.near,
        far=cfg.render.far,
        density_activation=triplane_field.eg3d_density,
    )
    features = (2.0 * out.features - 1.0).reshape(len(z), 8, 8, -1)
    return planes, features, net.upsample(params, features, ws[:, -1])


@torch.no_grad()
def theirs(net, z, c, u_coarse, u_fine):
    """The same by the peer, in our layout."""
    tensor = lambda value: torch.from_numpy(np.array(value))
    w = net.backbone.mapping(tensor(z), tensor(c))
    planes = net.planes(w)
    rays = cameras.rays(cameras.from_eg3d(c), 8, 8)
    origins, directions = (tensor(leaf).reshape(len(z), -1, 3) for leaf in (rays.origins, rays.directions))
    u = (tensor(value).transpose(1, 2) for value in (u_coarse, u_fine))
    options = {'near': 2.25, 'far': 3.3, 'bound': 0.5, 'plane_axes': 'legacy'}
    features = 2.0 * torch_renderer.render(net.decoder.weights(), planes, origins, directions, *u, **options)[0] - 1.0
    features = features.transpose(1, 2).reshape(len(z), -1, 8, 8)
    image = net.superresolution(features[:, :3], features, w)
    return planes.permute(0, 1, 3, 4, 2), features.permute(0, 2, 3, 1), image.permute(0, 2, 3, 1)


def test_the_whole_generator_gives_the_same_planes_features_and_pictures(nets, loaded):
    z, c = np.random.default_rng(0).standard_normal((3, SHAPE['z'])).astype(np.float32), labels(3)
    u = volume.draws(jax.random.key(1), (3, 64), 8, 8)
    run = jax.jit(lambda made, *inputs: ours(made, config(), *inputs))
    for got, expected, scale in zip(run(loaded[0], z, c, *u), theirs(nets[0], z, c, *u), (1e-5, 1e-5, 2e-5), strict=True):
        assert float(expected.std()) > 0.05
        np.testing.assert_allclose(got, expected, atol=scale * float(expected.abs().max()))


def test_the_discriminator_gives_the_same_logits(nets, loaded):
    rng = np.random.default_rng(1)
    image, raw = (rng.standard_normal((8, side, side, 3)).astype(np.float32) for side in (32, 16))
    net = convert_eg3d.modules(config())['discriminator']
    got = jax.jit(lambda params, *inputs: net.apply({'params': params}, *inputs))(loaded[1], image, raw, labels(8))
    with torch.no_grad():
        nchw = [torch.from_numpy(x).permute(0, 3, 1, 2) for x in (image, raw)]
        expected = nets[1](*nchw, torch.from_numpy(labels(8)))
    assert float(expected.std()) > 0.05
    np.testing.assert_allclose(got, expected, atol=1e-5 * float(expected.abs().max()))


# ------------------------------------------------------------------------------------------------------------ the files


def test_the_way_back_is_the_state_dictionary(state, loaded):
    back = convert_eg3d.save_eg3d(*loaded, config())
    expected = {**state['G_ema'], **state['D']}
    assert set(back) == set(expected)
    for key, value in expected.items():
        if key.startswith('superresolution.') and key.endswith('.noise_const'):
            value = np.zeros_like(value)  # read by no mode of the upsampler
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    fresh = peer.Generator(SHAPE)
    fresh.load_state_dict(
        {key: torch.from_numpy(value.copy()) for key, value in back.items() if key in state['G_ema']}, strict=True
    )
    assert convert_eg3d.save_eg3d(loaded[0], None, config()).keys() == state['G_ema'].keys()


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_every_form_of_the_state_is_read(tmp_path, nets, state, loaded):
    cfg = config()
    flat = {f'{net}.{key}': value for net, part in state.items() for key, value in part.items()}
    torch_files.write(tmp_path / 'eg3d.safetensors', flat)
    same(convert_eg3d.load_eg3d(tmp_path / 'eg3d.safetensors', cfg), loaded)
    same(convert_eg3d.load_eg3d({**state['G_ema'], **state['D']}, cfg), loaded)
    assert convert_eg3d.load_eg3d(nets[0].state_dict(), cfg)[1] is None  # torch tensors, a generator alone
    both = {**flat, **{f'G.{key}': value + 1 if 'filter' not in key else value for key, value in state['G_ema'].items()}}
    same(convert_eg3d.load_eg3d(both, cfg), loaded)
    last = convert_eg3d.load_eg3d(both, cfg, average=False)[0]
    same(last['buffers']['w_avg'], loaded[0]['buffers']['w_avg'] + 1)
    torch.save(
        {key: torch.from_numpy(value) for key, value in state['G_ema'].items()},
        tmp_path / 'old.pt',
        _use_new_zipfile_serialization=False,
    )
    same(convert_eg3d.load_eg3d(tmp_path / 'old.pt', cfg)[0], loaded[0])


def test_a_pickle_of_objects_is_not_run(tmp_path):
    import pickle

    ran = tmp_path / 'ran'
    path = tmp_path / 'ffhq.pkl'
    path.write_bytes(pickle.dumps(Touch(str(ran))))
    with pytest.raises(BadWeights, match='safetensors.torch.save_file'):
        convert_eg3d.load_eg3d(path, config())
    assert not ran.exists()


class Touch:
    """Makes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


def changed(state, **edits):
    """The two states side by side, with arrays replaced, or removed by None; dots written as two underscores."""
    flat = {f'{net}.{key}': value for net, part in state.items() for key, value in part.items()}
    for name, value in edits.items():
        key = name.replace('__', '.')
        flat.pop(key, None)
        if value is not None:
            flat[key] = value
    return flat


CONST = 'G_ema__backbone__synthesis__b4__const'


@pytest.mark.parametrize(
    'edits, message',
    [
        ({CONST: None}, r'missing \(1\): backbone.synthesis.b4.const'),
        ({'D__b16__conv0__bias': None}, r'missing \(1\): b16.conv0.bias'),
        ({'G_ema__backbone__extra__weight': np.zeros(3)}, r'unknown \(1\): backbone.extra.weight'),
        ({'D__b64__conv0__weight': np.zeros((4, 4, 3, 3))}, r'unknown \(1\): b64.conv0.weight'),
        ({CONST: np.zeros((32, 8, 8), np.float32)}, r'backbone.synthesis.b4.const is \(32, 8, 8\)'),
        ({CONST: np.zeros((32, 4, 4), np.int32)}, r'b4.const is \(32, 4, 4\) int32'),
        ({CONST: np.full((32, 4, 4), np.nan, np.float32)}, r'b4.const has 512 of 512 values that are not finite'),
        ({'G_ema__backbone__synthesis__b8__resample_filter': np.ones((4, 4)) / 16}, r'filter: backbone.synthesis.b8.resample'),
        ({'D__resample_filter': np.ones(4)}, r'filter: resample_filter is not'),
    ],
)
def test_wrong_states_are_refused_by_name(state, edits, message):
    with pytest.raises(BadWeights, match=message):
        convert_eg3d.load_eg3d(changed(state, **edits), config())


def test_the_tree_is_that_of_the_generator():
    abstract = jax.eval_shape(triplane_generator.Generator(config()).init, jax.random.key(0))
    parts = dict(zip(('generator', 'buffers'), abstract))
    made = trees.flatten(parts)
    assert made == {name: leaf for name, leaf in convert_eg3d.shapes(config()).items() if name[:4] != 'disc'}


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'render__plane_axes': 'orthogonal'}, "plane_axes='orthogonal'.*third repeats the second.*plane_axes='legacy'"),
        ({'generator__sr_style': 'unit'}, r"(?s)unknown \(12\): superresolution.*affine.*sr_style='w'"),
        ({'discriminator__mapping_layers': 2}, r'(?s)unknown \(12\): mapping.fc2.*mapping_layers=8'),
        ({'generator__pose_conditioning': False}, r'(?s)backbone.mapping.embed.*pose_conditioning=True'),
        ({'generator__plane_channels': 8}, r'decoder.net.0.weight is'),
    ],
)
def test_configs_of_other_networks_are_refused_with_the_way_out(state, changes, message):
    with pytest.raises(UsageError, match=message):
        convert_eg3d.load_eg3d(state, config(**changes))


def test_what_is_no_generator_is_refused(state, loaded):
    with pytest.raises(BadWeights, match='holds no generator'):
        convert_eg3d.load_eg3d(state['D'], config())
    broken = trees.unflatten({name: leaf for name, leaf in trees.flatten(loaded[0]).items() if 'w_avg' not in name})
    with pytest.raises(BadWeights, match='missing: buffers/w_avg'):
        convert_eg3d.save_eg3d(broken, None, config())


def test_shapes_of_the_released_size():
    """At 512 pixels the generator has 30.66 M parameters, the discriminator 31.36 M."""
    cfg = config()
    wide = {'z': 512, 'w': 512, 'channel_base': 32768, 'channel_max': 512, 'hidden': 64, 'features': 32}
    vars(cfg.generator).update(wide, plane_resolution=256, plane_channels=32)
    vars(cfg.generator.sr).update(stylegan2.sr_preset(512))
    vars(cfg.discriminator).update(channel_base=32768, channel_max=512)
    shapes = convert_eg3d.shapes(cfg)
    total = lambda place: sum(leaf.size for name, leaf in shapes.items() if name.startswith(place))
    assert total('generator/superres') == 1_649_578
    assert round(total('generator/') / 1e4) == 3066 and round(total('discriminator/') / 1e4) == 3136
