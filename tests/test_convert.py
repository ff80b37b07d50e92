"""Weights folders of diffusers and transformers: read here, written here, and what is refused."""

import json
import pickle
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import small_pipeline
from jax.sharding import PartitionSpec as P

from t3d.checkpoint import convert, convert_names, torch_files
from t3d.checkpoint.torch_files import BadWeights
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.nets.unet import UNet
from t3d.nets.vae import VAE
from t3d.parallel import devices, sharding

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return tmp_path_factory.mktemp('weights')


@pytest.fixture(scope='module')
def folder(root):
    """A whole pipeline folder as diffusers saves it; never changed."""
    return small_pipeline.saved(root)[0]


@pytest.fixture
def copy(folder, tmp_path):
    """One to spoil."""
    return shutil.copytree(folder, tmp_path / 'copy')


def state(model) -> dict[str, np.ndarray]:
    return {key: value.detach().numpy() for key, value in model.state_dict().items()}


def equal(tensors: dict, expected: dict):
    assert set(tensors) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(tensors[key], value, err_msg=key)


def change(path, **changes):
    """Rewrites a safetensors file: key -> new array, or None to leave it out; `__` stands for a dot."""
    tensors = {key: np.array(value) for key, value in torch_files.map_file(path).items()}
    changes = {key.replace('__', '.'): value for key, value in changes.items()}
    kept = {key: value for key, value in {**tensors, **changes}.items() if value is not None}
    torch_files.write(path, kept)
    return tensors


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    'key, path',
    [
        (
            'down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight',
            'down_blocks_0/attentions_1/transformer_blocks_0/attn1/to_q/kernel',
        ),
        ('mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.bias', None),
        ('up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj.weight', None),
        ('time_embedding.linear_1.weight', 'time_embedding/linear_1/kernel'),
        ('conv_norm_out.weight', 'conv_norm_out/scale'),
        ('a.0.1.weight', 'a_0_1/kernel'),
        ('class_embedding', 'class_embedding'),
    ],
)
def test_names_are_one_rule_and_reversible(key, path):
    leaf = {'weight': 'scale' if 'norm' in key else 'kernel'}.get(key.rpartition('.')[2])
    ours = convert_names.flax_name(key, leaf)
    assert path is None or ours == path
    assert convert_names.torch_name(ours) == key


def test_every_name_of_the_small_nets_comes_back(folder):
    for part, shapes in (
        ('unet', convert.unet_shapes(UNet.from_config(small_pipeline.UNET))),
        ('vae', convert.vae_shapes(VAE.from_config(small_pipeline.VAE))),
    ):
        keys = torch_files.read(folder / part)
        names = {convert_names.torch_name(name): name for name in trees.flatten(shapes)}
        assert set(names) == set(keys)
        assert all(convert_names.flax_name(key, name.rpartition('/')[2]) == name for key, name in names.items())


@pytest.mark.parametrize('stored, shape', [((5, 3), (3, 5)), ((5, 3, 2, 4), (2, 4, 3, 5)), ((5, 3, 2, 4, 6), (2, 4, 6, 3, 5))])
def test_kernels_turn_and_turn_back(stored, shape):
    value = np.random.default_rng(0).normal(size=stored)
    turned = convert_names.to_flax(value, 'kernel', shape)
    assert turned[(0,) * (len(stored) - 2) + (2, 4)] == value[(4, 2) + (0,) * (len(stored) - 2)]
    np.testing.assert_array_equal(convert_names.to_torch(turned, 'kernel'), value)
    assert convert_names.to_flax(value, 'kernel', (*shape[:-1], 6)) is None


def test_a_1x1_convolution_is_a_dense_layer_both_ways():
    value = np.random.default_rng(0).normal(size=(5, 3))
    dense = convert_names.to_flax(value[:, :, None, None], 'kernel', (3, 5))
    np.testing.assert_array_equal(dense, value.T)
    np.testing.assert_array_equal(convert_names.to_flax(value, 'kernel', (1, 1, 3, 5))[0, 0], value.T)
    np.testing.assert_array_equal(convert_names.to_torch(dense, 'kernel', conv=True), value[:, :, None, None])
    assert convert_names.to_flax(np.zeros((5, 3, 3, 3)), 'kernel', (3, 5)) is None
    assert convert_names.to_flax(value, 'kernel', (3, 3, 3, 5)) is None


def test_other_leaves_are_copied():
    value = np.random.default_rng(0).normal(size=(7, 4))
    assert convert_names.to_flax(value, 'embedding', (7, 4)) is value
    assert convert_names.to_flax(value[0], 'scale', (4,)).shape == (4,)
    assert convert_names.to_flax(value, 'embedding', (4, 7)) is None


# -------------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize('linear', [False, True])
def test_a_unet_is_loaded_bit_by_bit_and_saved_for_diffusers(root, tmp_path, linear):
    folder, pipe = small_pipeline.saved(root, linear)
    unet, params = convert.load_unet(folder / 'unet')
    assert unet == UNet.from_config(pipe.unet.config)
    equal(convert.to_tensors(params), state(pipe.unet))
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    for name, config in (('config', torch_files.read_config(folder / 'unet')), ('module', unet)):
        convert.save_unet(tmp_path / name, params, config)
        back = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / name, low_cpu_mem_usage=False)
        equal(state(back), state(pipe.unet))
        again, same = convert.load_unet(tmp_path / name)
        assert again == unet
        jax.tree.map(np.testing.assert_array_equal, same, params)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs, original = (net(x, 500, encoder_hidden_states=text).sample.numpy() for net in (back, pipe.unet))
    np.testing.assert_array_equal(theirs, original)


def test_a_vae_is_loaded_and_saved_for_diffusers(root, folder, tmp_path):
    pipe = small_pipeline.saved(root)[1]
    vae, params = convert.load_vae(folder / 'vae')
    assert vae.scaling_factor == 0.18215
    equal(convert.to_tensors(params), state(pipe.vae))
    convert.save_vae(tmp_path, params, vae)
    equal(state(diffusers.AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False)), state(pipe.vae))


def test_old_attention_names_and_1x1_convolutions_of_a_vae(folder, copy):
    path = copy / 'vae' / 'diffusion_pytorch_model.safetensors'
    tensors = {}
    for key, value in torch_files.read(folder / 'vae').items():
        for new, old in convert_names.OLD_VAE_ATTENTION.items():
            key = key.replace(f'attentions.0.{new}.', f'attentions.0.{old}.')
        tensors[key] = np.array(value)
    assert sum('proj_attn' in key or '.query.' in key for key in tensors) == 8
    torch_files.write(path, tensors)
    _, expected = convert.load_vae(folder / 'vae')
    jax.tree.map(np.testing.assert_array_equal, convert.load_vae(copy / 'vae')[1], expected)
    matrices = {key: value for key, value in tensors.items() if '.attentions.0.' in key and value.ndim == 2}
    assert len(matrices) == 8
    torch_files.write(path, {**tensors, **{key: value[:, :, None, None] for key, value in matrices.items()}})
    jax.tree.map(np.testing.assert_array_equal, convert.load_vae(copy / 'vae')[1], expected)


def test_projections_of_one_layout_load_into_the_other(root):
    """A 1.5 file read as 2.1 and the reverse: the same numbers, as 1x1 convolutions or matrices."""
    for linear in (False, True):
        folder, pipe = small_pipeline.saved(root, linear)
        config = {**torch_files.read_config(folder / 'unet'), 'use_linear_projection': not linear}
        unet, params = convert.load_unet(folder / 'unet', config=config)
        kernel = params['down_blocks_0']['attentions_0']['proj_in']['kernel']
        stored = pipe.unet.down_blocks[0].attentions[0].proj_in.weight.detach().numpy().reshape(16, 16)
        assert kernel.ndim == (4 if linear else 2) and unet.use_linear_projection is not linear
        np.testing.assert_array_equal(kernel.reshape(16, 16), stored.T)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_variants(tmp_path, dtype):
    net = small_pipeline.unet().to(dtype)
    net.save_pretrained(tmp_path, variant='fp16', max_shard_size='100KB')
    params = convert.load_unet(tmp_path, variant='fp16')[1]
    equal(convert.to_tensors(params), state(net.float()))
    half = convert.load_unet(tmp_path, param_dtype=jnp.bfloat16)[1]
    for leaf, whole in zip(jax.tree.leaves(half), jax.tree.leaves(params)):
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(leaf, np.asarray(whole).astype(ml_dtypes.bfloat16))
    convert.save_unet(tmp_path / 'half', half, torch_files.read_config(tmp_path))
    back = diffusers.UNet2DConditionModel.from_pretrained(
        tmp_path / 'half', torch_dtype=torch.bfloat16, low_cpu_mem_usage=False
    )
    equal(convert.to_tensors(trees.cast(half, jnp.float32)), state(back.float()))


def test_leaves_go_where_they_are_asked_to(folder):
    mesh = devices.make({'data': 2, 'fsdp': 4, 'tensor': 1})
    unet, plain = convert.load_unet(folder / 'unet')
    placed = sharding.shardings(convert.unet_shapes(unet), ((r'conv_out/kernel$', P(None, None, 'fsdp')),), mesh)
    _, params = convert.load_unet(folder / 'unet', sharding=placed)
    assert params['conv_out']['kernel'].sharding.spec == P(None, None, 'fsdp')
    jax.tree.map(np.testing.assert_array_equal, params, plain)
    _, params = convert.load_unet(folder / 'unet', sharding=sharding.replicated(mesh))
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(params))


def test_the_whole_pipeline(folder):
    pipe = convert.load_pipeline(folder)
    assert set(pipe.params) == {'text', 'unet', 'vae'} and pipe.native == 16
    assert pipe.schedule.prediction == 'eps' and pipe.schedule.steps_offset == 1 and not pipe.schedule.alpha_to_one
    ids = pipe.tokenize(['a red', ''])
    last = len(small_pipeline.VOCABULARY) - 1
    assert ids.shape == (2, 77) and ids[0, 2] == last - 2 and ids[0, 3] == last
    assert np.all(ids[0, 4:] == 0) and np.all(ids[1, 2:] == 0)  # padded as tokenizer_config.json says


def test_text_towers_can_be_had_from_here(folder):
    tower, params = convert.load_clip_text(folder / 'text_encoder')
    assert tower.width == 24 and trees.count(params) == sum(p.numel() for p in small_pipeline.text().parameters())
    assert callable(convert.load_clip_vision)


def test_velocity_is_read_from_the_scheduler(root):
    assert convert.load_schedule(small_pipeline.saved(root, True, 'v_prediction')[0] / 'scheduler').prediction == 'v'


# ------------------------------------------------------------------------------------------------------------- refusals


def refused(folder, *parts, load=convert.load_unet, **options):
    """What loading says; every one of `parts` is in it."""
    with pytest.raises(UsageError) as error:
        load(folder, **options)
    for part in parts:
        assert str(part) in str(error.value), str(error.value)
    return str(error.value)


UNET_FILE = 'diffusion_pytorch_model.safetensors'


def test_wrong_folders(folder, tmp_path):
    refused(folder, 'no config.json in', 'folder of components', 'unet')
    refused(folder / 'vae', 'is of class AutoencoderKL', 'wanted the folder unet/, of class UNet2DConditionModel')
    refused(folder / 'text_encoder', 'clip_text_model')
    refused(tmp_path / 'nowhere', 'does not exist')
    refused(folder / 'unet', 'unet, vae, text_encoder, tokenizer not in it', 'folder above', load=convert.load_pipeline)
    refused(tmp_path / 'nowhere', 'does not exist', load=convert.load_pipeline)
    refused(folder / 'unet' / UNET_FILE, 'is one file', 'config=')


def test_missing_unused_and_misshapen_tensors(copy):
    path = copy / 'unet' / UNET_FILE
    before = change(path, conv_in__bias=None)
    refused(copy / 'unet', path, 'missing (1): conv_in.bias')
    torch_files.write(path, {**before, 'extra.weight': np.zeros(3, np.float32)})
    refused(copy / 'unet', path, 'unused (1): extra.weight')
    torch_files.write(path, {**before, 'conv_in.bias': np.zeros(17, np.float32)})
    refused(copy / 'unet', path, 'conv_in.bias is (17,), our conv_in/bias wants (16,)')
    torch_files.write(path, {**before, 'conv_in.bias': np.zeros(16, np.int8)})
    refused(copy / 'unet', path, 'conv_in.bias is stored as int8', 'quantised')
    torch_files.write(path, {**before, 'some.position_ids': np.arange(3)})
    convert.load_unet(copy / 'unet')


def test_allowed_names_may_be_missing_or_unused(copy):
    path = copy / 'unet' / UNET_FILE
    change(path, conv_in__bias=None, camera_embedding__linear_1__weight=np.zeros((2, 2), np.float32))
    allowed = ('^camera_embedding', r'^conv_in\.bias$')
    refused(copy / 'unet', 'give its first value', allowed=allowed)
    first = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 2.0), convert.unet_shapes(UNet.from_config(small_pipeline.UNET)))
    _, params = convert.load_unet(copy / 'unet', allowed=allowed, initial=first)
    assert np.all(params['conv_in']['bias'] == 2.0) and not np.all(params['conv_out']['bias'] == 2.0)
    refused(copy / 'unet', 'missing (1): conv_in.bias', allowed=allowed[:1])


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_values_that_are_not_finite(copy, bad):
    path = copy / 'unet' / UNET_FILE
    value = np.zeros((32, 16, 3, 3), np.float32)
    value[0, 0, 0, 0] = bad
    before = change(path, down_blocks__1__resnets__0__conv1__weight=value)
    refused(copy / 'unet', path, 'down_blocks.1.resnets.0.conv1.weight has 1 of 4608 values that are not finite')
    torch_files.write(path, {**before, 'conv_in.bias': np.full(16, 1e6, np.float32)})
    refused(copy / 'unet', 'not finite as float16', param_dtype=jnp.float16)


def test_missing_shards(tmp_path):
    small_pipeline.unet().save_pretrained(tmp_path, max_shard_size='100KB')
    gone = sorted(tmp_path.glob('*-of-*'))[1]
    gone.unlink()
    refused(tmp_path, 'missing shard', gone.name)


def test_the_scheduler_file_is_never_guessed(copy):
    path = copy / 'scheduler' / 'scheduler_config.json'
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, 'prediction_type': 'flow'}))
    refused(copy, 'flow', load=convert.load_pipeline)
    path.unlink()
    refused(copy, 'no scheduler/scheduler_config.json', 'noise or velocity', load=convert.load_pipeline)


def test_parts_of_two_models(copy):
    small_pipeline.text(hidden_size=32, intermediate_size=64).save_pretrained(copy / 'text_encoder')
    refused(copy, 'gives 32 features, unet/ reads 24', load=convert.load_pipeline)


def test_an_inpainting_unet_is_no_text_to_image_unet(copy):
    small_pipeline.unet(in_channels=9).save_pretrained(copy / 'unet')
    convert.load_unet(copy / 'unet')
    refused(copy, 'takes 9 channels and gives 4, vae/ has 4', load=convert.load_pipeline)


class Creates:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


@pytest.mark.parametrize('name', ['diffusion_pytorch_model.bin', UNET_FILE])
def test_a_pickle_is_refused_and_not_run(copy, name):
    (copy / 'unet' / UNET_FILE).unlink()
    (copy / 'unet' / name).write_bytes(pickle.dumps(Creates(copy / 'made')))
    refused(copy / 'unet', 'pickle', name)
    refused(copy, 'pickle', load=convert.load_pipeline)
    assert not (copy / 'made').exists()


def test_parameters_of_another_net_are_not_written(folder, tmp_path):
    _, params = convert.load_unet(folder / 'unet')
    with pytest.raises(BadWeights, match='are not those of the config'):
        convert.save_unet(tmp_path / 'out', params, {**small_pipeline.UNET, 'cross_attention_dim': 32})
    assert not (tmp_path / 'out').exists()
