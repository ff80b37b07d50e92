"""Weight files against those that the format's own libraries write, and files that must be refused."""

import json
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest

from t3d.checkpoint import torch_files
from t3d.checkpoint.torch_files import BadWeights

safetensors = pytest.importorskip('safetensors.numpy')


class Creates:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


def arrays(dtype=np.float32):
    values = np.random.default_rng(0).normal(size=(3, 4, 5))
    return {'a.weight': values.astype(dtype), 'a.bias': values[0, 0].astype(dtype), 'scalar': np.array(2.5).astype(dtype)}


def shard(folder, split, **extra):
    """Files of one array each, and their index."""
    names = {key: f'model-{k:05d}-of-{len(split):05d}.safetensors' for k, key in enumerate(split, 1)}
    for key, name in names.items():
        safetensors.save_file({key: split[key]}, folder / name)
    index = {'metadata': {}, 'weight_map': {**names, **extra}}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    return names


@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_])
def test_arrays_are_those_written(tmp_path, dtype):
    safetensors.save_file(arrays(dtype), tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    tensors = torch_files.read(tmp_path)
    assert set(tensors) == set(arrays())
    for key, value in arrays(dtype).items():
        assert tensors[key].dtype == value.dtype and not tensors[key].flags.writeable
        np.testing.assert_array_equal(tensors[key], value)


def test_torch_reads_what_we_write(tmp_path):
    torch = pytest.importorskip('torch')
    from safetensors.torch import load_file

    tensors = {
        **arrays(),
        'turned': arrays()['a.weight'].T,
        'half': arrays(ml_dtypes.bfloat16)['a.bias'],
        'none': np.zeros((0, 3)),
    }
    torch_files.write(tmp_path / 'new' / 'model.safetensors', tensors)
    theirs = load_file(tmp_path / 'new' / 'model.safetensors')
    assert theirs['half'].dtype == torch.bfloat16 and theirs['none'].shape == (0, 3)
    for key, value in tensors.items():
        np.testing.assert_array_equal(theirs[key].float().numpy(), value.astype(np.float32))
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['model.safetensors']
    np.testing.assert_array_equal(torch_files.read(tmp_path / 'new')['turned'], tensors['turned'])


def test_diffusers_folders_sharded_and_variants(tmp_path):
    diffusers = pytest.importorskip('diffusers')
    net = diffusers.UNet2DModel(block_out_channels=(32,), down_block_types=('DownBlock2D',), up_block_types=('UpBlock2D',))
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    for name, options in {
        'plain': {},
        'shards': {'max_shard_size': '50KB'},
        'fp16': {'variant': 'fp16'},
        'both': {'variant': 'fp16', 'max_shard_size': '50KB'},
    }.items():
        net.save_pretrained(tmp_path / name, **options)
        stored = torch_files.open_stored(tmp_path / name, variant=options.get('variant'))
        assert len(stored.files) == 1 or 'max_shard_size' in options
        assert set(stored.tensors) == set(state)
        for key, value in state.items():
            np.testing.assert_array_equal(stored.tensors[key], value)
            assert stored.sources[key] in stored.files
    assert set(torch_files.read(tmp_path / 'fp16')) == set(state)  # the one variant there is
    net.save_pretrained(tmp_path / 'plain', variant='fp16')
    assert len(torch_files.open_stored(tmp_path / 'plain').files) == 1
    with pytest.raises(BadWeights, match='variant fp8 in .*choose variant from'):
        torch_files.read(tmp_path / 'plain', variant='fp8')


def test_memory_is_only_mapped(tmp_path):
    safetensors.save_file(arrays(), tmp_path / 'model.safetensors')
    value = torch_files.read(tmp_path)['a.weight']
    while isinstance(value.base, np.ndarray) and not isinstance(value, np.memmap):
        value = value.base
    assert isinstance(value, np.memmap)


@pytest.mark.parametrize('name', ['model.bin', 'pytorch_model.bin', 'sd.ckpt', 'w.pt', 'w.pth', 'model.safetensors'])
def test_a_pickle_is_refused_and_not_run(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Creates(tmp_path / 'made')))
    for place in (tmp_path, tmp_path / name):
        with pytest.raises(BadWeights, match='pickle') as error:
            torch_files.read(place)
        assert name in str(error.value) and not (tmp_path / 'made').exists()
    if not name.endswith('safetensors'):
        assert 'weights_only=True' in str(error.value) and f'{name.partition(".")[0]}.safetensors' in str(error.value)
    pickle.loads((tmp_path / name).read_bytes()).close()
    assert (tmp_path / 'made').exists()  # it would have


def test_the_command_of_the_refusal_converts(tmp_path, monkeypatch):
    torch = pytest.importorskip('torch')
    monkeypatch.chdir(tmp_path)
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({'state_dict': {'w': weight, 'turned': weight.T, 'same': weight}, 'global_step': 3}, 'a.ckpt')
    with pytest.raises(BadWeights) as error:
        torch_files.read(tmp_path / 'a.ckpt')
    exec(str(error.value).partition('python -c "')[2].rstrip('"'), {})
    tensors = torch_files.read(tmp_path / 'a.safetensors')
    assert set(tensors) == {'w', 'turned', 'same'}
    np.testing.assert_array_equal(tensors['turned'], weight.T.numpy())


def test_zip_files_of_torch_are_refused_by_content(tmp_path):
    (tmp_path / 'model.safetensors').write_bytes(b'PK\x03\x04' + b'0' * 100)
    with pytest.raises(BadWeights, match='pickle under the name'):
        torch_files.read(tmp_path)


def test_missing_shard_and_shards_that_disagree(tmp_path):
    names = shard(tmp_path, arrays())
    assert set(torch_files.read(tmp_path)) == set(arrays())
    shard(tmp_path, arrays(), lost='model-00001-of-00003.safetensors')
    with pytest.raises(BadWeights, match='model-00001.* lacks lost'):
        torch_files.read(tmp_path)
    shard(tmp_path, arrays())
    (tmp_path / names['a.bias']).unlink()
    with pytest.raises(BadWeights) as error:
        torch_files.read(tmp_path)
    assert 'missing shard' in str(error.value) and names['a.bias'] in str(error.value) and 'a.bias' in str(error.value)


@pytest.mark.parametrize('name', ['../outside.safetensors', '/outside.safetensors', 'model.bin'])
def test_an_index_cannot_leave_its_folder(tmp_path, name):
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'a': name}}))
    with pytest.raises(BadWeights, match='of the same folder'):
        torch_files.read(tmp_path)


def header(entries, data=b'') -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack('<Q', len(text)) + text + data


@pytest.mark.parametrize(
    'content, says',
    [
        (b'', 'not a whole'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'Git LFS'),
        (struct.pack('<Q', 2**40) + b'{}', 'not a whole'),
        (struct.pack('<Q', 4) + b'{{{{', 'damaged'),
        (header([1]), 'no object'),
        (header({'w': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}}, b'1234'), 'cut short .w'),
        (header({'w': {'dtype': 'F32', 'shape': [3], 'data_offsets': [0, 8]}}, b'12345678'), 'cut short .w'),
        (header({'w': {'dtype': 'F32', 'shape': [-2], 'data_offsets': [8, 0]}}, b'12345678'), 'cut short .w'),
        (header({'w': {'dtype': 'F8_E4M3', 'shape': [8], 'data_offsets': [0, 8]}}, b'12345678'), 'w is stored as F8_E4M3'),
        (header({'w': {'shape': [2]}}), 'entry of w'),
    ],
)
def test_damaged_files_are_named(tmp_path, content, says):
    (tmp_path / 'model.safetensors').write_bytes(content)
    with pytest.raises(BadWeights, match=says) as error:
        torch_files.read(tmp_path)
    assert str(tmp_path / 'model.safetensors') in str(error.value)


def test_wrong_folders_say_what_they_are(tmp_path):
    with pytest.raises(BadWeights, match='does not exist'):
        torch_files.read(tmp_path / 'nowhere')
    (tmp_path / 'unet').mkdir()
    (tmp_path / 'unet' / 'config.json').write_text('{')
    with pytest.raises(BadWeights, match='folder of components.*unet'):
        torch_files.read(tmp_path)
    with pytest.raises(BadWeights, match='There: config.json'):
        torch_files.read(tmp_path / 'unet')
    with pytest.raises(BadWeights, match='config.json is damaged'):
        torch_files.read_config(tmp_path / 'unet')
    with pytest.raises(BadWeights, match='no config.json in'):
        torch_files.read_config(tmp_path)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_settings_files_that_an_editor_has_saved_are_read(tmp_path, encoding):
    (tmp_path / 'config.json').write_bytes('{"name": "Würfel",\r\n"size": 8}\r\n'.encode(encoding))
    assert torch_files.read_config(tmp_path) == {'name': 'Würfel', 'size': 8}


def test_digest(tmp_path):
    (tmp_path / 'x').write_bytes(b'abc')
    assert torch_files.digest(tmp_path / 'x') == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
