"""The FID Inception-v3 against its twin in PyTorch on random weights, and the ways to get weights wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.nets.judges import inception

SIDE = 139  # 3 x 3 pixels are left in the last block, so that its pooling shows


def test_parameters_are_those_of_the_published_network():
    """21,785,568 learned parameters without the classifier, and 17,216 channels with a stored mean and variance."""
    abstract = inception.abstract()
    leaves = tree.flatten(abstract)
    stored = sum(leaf.size for name, leaf in leaves.items() if name.endswith(('/mean', '/var')))
    assert tree.count(abstract) - stored == 21_785_568 and stored == 2 * 17_216
    assert len(leaves) == 94 * 5
    assert leaves['Mixed_6b/branch7x7_2/conv/kernel'].shape == (1, 7, 128, 128)


@pytest.fixture(scope='module')
def twins():
    """(images [-1, 1] NCHW, calibrated torch weights, features of ours)."""
    torch = pytest.importorskip('torch')
    from peers import torch_inception

    torch.set_num_threads(1)  # its threads wait for each other for seconds on a busy machine
    weights = torch_inception.random_weights()
    images = torch.rand((2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1)) * 2.0 - 1.0
    images[:, :, : SIDE // 2] *= 0.3
    torch_inception.Twin(weights).calibrate(images)
    params = inception.from_torch({name: value.numpy() for name, value in weights.items()})
    apply = jax.jit(inception.Inception(convention='pytorch_fid', size=None).apply)
    ours = np.asarray(apply({'params': params}, jnp.asarray(images.numpy().transpose(0, 2, 3, 1))))
    return images, weights, ours


def test_features_are_those_of_the_twin_and_each_deviation_would_show(twins):
    from peers import torch_inception

    images, weights, ours = twins
    variances = np.concatenate([value.numpy() for name, value in weights.items() if name.endswith('running_var')])
    assert np.median(variances) < 5e-3  # the epsilon of 1e-3 counts
    expected = torch_inception.Twin(weights)(images).numpy()
    assert expected.shape == (2, inception.FEATURES) and expected.std() > 0.1
    np.testing.assert_allclose(ours, expected, atol=2e-5)  # 94 layers; the deviations below are 1e-2
    for name in ('epsilon', 'pool', 'last'):
        off = np.abs(torch_inception.Twin(weights, (name,))(images[:1]).numpy() - ours[:1]).max()
        assert off > 1e-2, (name, off)


@pytest.mark.parametrize('shape', [(32, 48), (299, 299), (400, 310)])
def test_resizing_is_bilinear_by_either_convention(shape):
    torch = pytest.importorskip('torch')
    images = np.random.default_rng(0).uniform(size=(1, *shape, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.as_tensor(images).permute(0, 3, 1, 2), (299, 299), mode='bilinear')
    ours = inception.resize(images, 299, half_pixel=True)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=3e-5)  # of positions up to 400 in float32
    graph = np.asarray(inception.resize(images, 299, half_pixel=False))
    for row, column in ((0, 0), (17, 298), (298, 150), (298, 298)):
        y, x = (np.float32(k) * np.float32(count / 299) for k, count in zip((row, column), shape))
        low, left = int(y), int(x)
        down, right = min(low + 1, shape[0] - 1), min(left + 1, shape[1] - 1)
        top = images[0, low, left] * (1 - x + left) + images[0, low, right] * (x - left)
        bottom = images[0, down, left] * (1 - x + left) + images[0, down, right] * (x - left)
        np.testing.assert_allclose(graph[0, row, column], top * (1 - y + low) + bottom * (y - low), atol=3e-6)


def test_the_graph_takes_128_for_the_middle_grey(monkeypatch):
    seen = []
    monkeypatch.setattr(inception.ConvNorm, '__call__', lambda self, x: seen.append(np.asarray(x)) or x)
    levels = np.array([0, 64, 128, 255])
    images = np.broadcast_to((levels / 127.5 - 1.0)[:, None, None, None], (4, 80, 80, 3))
    for convention, expected in (('graph', (levels - 128) / 128), ('pytorch_fid', levels / 127.5 - 1.0)):
        seen.clear()
        module = inception.Inception(convention=convention)
        with pytest.raises(Exception, match='stop'):
            monkeypatch.setattr(inception.nn, 'max_pool', lambda *args: (_ for _ in ()).throw(RuntimeError('stop')))
            module.apply({'params': {}}, images)
        assert seen[0].shape == (4, 299, 299, 3)
        np.testing.assert_allclose(seen[0][:, 7, 11, 0], expected, atol=1e-6)


def test_wrong_weights_and_images_are_refused(twins):
    weights = {name: value.numpy() for name, value in twins[1].items()}
    with pytest.raises(UsageError, match='missing: Mixed_7c/branch_pool/conv/kernel'):
        inception.from_torch({name: value for name, value in weights.items() if name != 'Mixed_7c.branch_pool.conv.weight'})
    with pytest.raises(UsageError, match='unknown: layer1/0/conv1/weight'):
        inception.from_torch({**weights, 'layer1.0.conv1.weight': np.zeros((3, 3, 1, 1))})
    with pytest.raises(UsageError, match=r'other shape: Mixed_5b/branch1x1/bn/mean \(3,\) given, \(64,\) wanted'):
        inception.from_torch({**weights, 'Mixed_5b.branch1x1.bn.running_mean': np.zeros(3)})
    with pytest.raises(UsageError, match='NaN or infinity in Mixed_5b/branch1x1/bn/var'):
        inception.from_torch({**weights, 'Mixed_5b.branch1x1.bn.running_var': np.full(64, np.nan)})
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    with pytest.raises(UsageError, match='64 x 64 pixels.*75'):
        jax.eval_shape(inception.Inception(size=None).init, jax.random.key(0), images)
    with pytest.raises(UsageError, match="'clean'.*graph, pytorch_fid"):
        jax.eval_shape(inception.Inception(convention='clean').init, jax.random.key(0), images)
