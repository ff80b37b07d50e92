"""Inception-v3 as the FID graph of 2015-12-05 has it: images to the 2048 features that FID and KID are defined over.

The network of arXiv 1512.00567, Table 1, with the deviations of that one TensorFlow graph, which torchvision's model of the
same name does not share: average pooling in the mixed blocks divides by the pixels inside the image only; the last block pools
by maximum; images are resized in the network by plain bilinear interpolation, without antialiasing, also when they shrink.
Batch norms use stored statistics and epsilon 1e-3. Parameter names are those of the PyTorch conversion
(pt_inception-2015-12-05-6726825d.pth) with '/' for '.'; its classifier (`fc`, 1008 classes) is not used.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import prng
from t3d.core.errors import UsageError
from t3d.core.typing import Array, Float, typechecked

FEATURES, SIZE, EPSILON = 2048, 299, 1e-3
SMALLEST = 75  # pixels a side below which the last block has nothing left
CONVENTIONS = ('graph', 'pytorch_fid')


class Inception(nn.Module):
    """Images [B, H, W, 3] in [-1, 1] to pool features [B, 2048], float32 throughout.

    Attributes:
      convention: how images enter. 'graph' is the TensorFlow graph, as torch-fidelity has it too: pixel k of the result lies at
        k * H / 299, and 8-bit values u become (u - 128) / 128. 'pytorch_fid' is the package of that name: pixel centres at half
        steps, u / 127.5 - 1. Values of the two differ; say which.
      size: side the images are resized to; None leaves them as they are (at least 75 pixels).
    """

    convention: str = 'graph'
    size: int | None = SIZE

    @nn.compact
    @typechecked
    def __call__(self, images: Float[Array, 'b h w 3']) -> Float[Array, 'b 2048']:
        if self.convention not in CONVENTIONS:
            raise UsageError(f'convention {self.convention!r}: wanted one of {", ".join(CONVENTIONS)}.')
        x = jnp.asarray(images, jnp.float32)
        if self.size is not None:
            x = resize(x, self.size, half_pixel=self.convention == 'pytorch_fid')
        if min(x.shape[1:3]) < SMALLEST:
            raise UsageError(f'Inception-v3 on {x.shape[1]} x {x.shape[2]} pixels: wanted at least {SMALLEST} a side.')
        if self.convention == 'graph':
            x = (127.5 * (x + 1.0) - 128.0) / 128.0
        x = ConvNorm(32, 3, 2, 'VALID', name='Conv2d_1a_3x3')(x)
        x = ConvNorm(32, 3, 1, 'VALID', name='Conv2d_2a_3x3')(x)
        x = ConvNorm(64, 3, name='Conv2d_2b_3x3')(x)
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = ConvNorm(80, 1, name='Conv2d_3b_1x1')(x)
        x = ConvNorm(192, 3, 1, 'VALID', name='Conv2d_4a_3x3')(x)
        x = nn.max_pool(x, (3, 3), (2, 2))
        for letter, pooled in (('b', 32), ('c', 64), ('d', 64)):
            x = Mixed5(pooled, name=f'Mixed_5{letter}')(x)
        x = Reduction6(name='Mixed_6a')(x)
        for letter, narrow in (('b', 128), ('c', 160), ('d', 160), ('e', 192)):
            x = Mixed6(narrow, name=f'Mixed_6{letter}')(x)
        x = Reduction7(name='Mixed_7a')(x)
        x = Mixed7(_average, name='Mixed_7b')(x)
        x = Mixed7(_maximum, name='Mixed_7c')(x)
        return jnp.mean(x, (1, 2))


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm with stored statistics, ReLU."""

    features: int
    kernel: int | tuple[int, int]
    stride: int = 1
    padding: str = 'SAME'  # with odd kernels at stride 1, (k - 1) / 2 on either side

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 o']:
        kernel = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        x = nn.Conv(
            self.features,
            kernel,
            self.stride,
            self.padding,
            use_bias=False,
            precision=jax.lax.Precision.HIGHEST,  # the default of accelerators has 8 to 10 bits: another extractor
            name='conv',
        )(x)
        return nn.relu(StoredNorm(name='bn')(x))


class StoredNorm(nn.Module):
    """Batch norm by stored mean and variance."""

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, x.shape[-1:]
        mean, variance = self.param('mean', zeros, shape, jnp.float32), self.param('var', ones, shape, jnp.float32)
        scale, bias = self.param('scale', ones, shape, jnp.float32), self.param('bias', zeros, shape, jnp.float32)
        return (x - mean) * (scale * jax.lax.rsqrt(variance + EPSILON)) + bias


def _average(x):
    """Mean of 3x3 neighbours, of those inside the image at its border."""
    return nn.avg_pool(x, (3, 3), padding='SAME', count_include_pad=False)


def _maximum(x):
    return nn.max_pool(x, (3, 3), padding='SAME')


def _chain(x, name, *widths_and_kernels, last=None):
    """ConvNorms `name_1`, `name_2`, ... one after the other; `last` gives stride and padding of the last one."""
    for k, (width, kernel) in enumerate(widths_and_kernels, 1):
        extra = last if last and k == len(widths_and_kernels) else (1, 'SAME')
        x = ConvNorm(width, kernel, *extra, name=f'{name}_{k}')(x)
    return x


class Mixed5(nn.Module):
    """35 x 35 pixels: 1x1; 5x5; two 3x3; pooling."""

    pooled: int

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w o']:
        branches = (
            ConvNorm(64, 1, name='branch1x1')(x),
            _chain(x, 'branch5x5', (48, 1), (64, 5)),
            _chain(x, 'branch3x3dbl', (64, 1), (96, 3), (96, 3)),
            ConvNorm(self.pooled, 1, name='branch_pool')(_average(x)),
        )
        return jnp.concatenate(branches, -1)


class Reduction6(nn.Module):
    """35 x 35 to 17 x 17."""

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 o']:
        branches = (
            ConvNorm(384, 3, 2, 'VALID', name='branch3x3')(x),
            _chain(x, 'branch3x3dbl', (64, 1), (96, 3), (96, 3), last=(2, 'VALID')),
            nn.max_pool(x, (3, 3), (2, 2)),
        )
        return jnp.concatenate(branches, -1)


class Mixed6(nn.Module):
    """17 x 17 pixels: 1x1; 7x7 taken apart into a row and a column; that twice; pooling."""

    narrow: int

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w o']:
        n, row, column = self.narrow, (1, 7), (7, 1)
        branches = (
            ConvNorm(192, 1, name='branch1x1')(x),
            _chain(x, 'branch7x7', (n, 1), (n, row), (192, column)),
            _chain(x, 'branch7x7dbl', (n, 1), (n, column), (n, row), (n, column), (192, row)),
            ConvNorm(192, 1, name='branch_pool')(_average(x)),
        )
        return jnp.concatenate(branches, -1)


class Reduction7(nn.Module):
    """17 x 17 to 8 x 8."""

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 o']:
        branches = (
            _chain(x, 'branch3x3', (192, 1), (320, 3), last=(2, 'VALID')),
            _chain(x, 'branch7x7x3', (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3), last=(2, 'VALID')),
            nn.max_pool(x, (3, 3), (2, 2)),
        )
        return jnp.concatenate(branches, -1)


class Mixed7(nn.Module):
    """8 x 8 pixels: 1x1; a row beside a column; 3x3 and then those; pooling, which is `_maximum` in the last block."""

    pool: object

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w o']:
        def beside(x, name):
            return [ConvNorm(384, kernel, name=name + end)(x) for end, kernel in (('a', (1, 3)), ('b', (3, 1)))]

        branches = (
            ConvNorm(320, 1, name='branch1x1')(x),
            *beside(_chain(x, 'branch3x3', (384, 1)), 'branch3x3_2'),
            *beside(_chain(x, 'branch3x3dbl', (448, 1), (384, 3)), 'branch3x3dbl_3'),
            ConvNorm(192, 1, name='branch_pool')(self.pool(x)),
        )
        return jnp.concatenate(branches, -1)


def resize(images: Float[Array, 'b h w c'], size: int, *, half_pixel: bool) -> Float[Array, 'b size size c']:
    """Bilinear interpolation of the two nearest pixels of each axis, without antialiasing.

    Args:
      half_pixel: pixel k samples position (k + 1/2) H / size - 1/2 (PyTorch, align_corners=False), else k H / size
        (TensorFlow 1). Positions outside are clamped.
    """
    for axis in (1, 2):
        count = images.shape[axis]
        scale, place = np.float32(count / size), np.arange(size, dtype=np.float32)  # float32, as in both originals
        at = np.maximum((place + np.float32(0.5)) * scale - np.float32(0.5), 0.0) if half_pixel else place * scale
        low = np.minimum(np.floor(at).astype(int), count - 1)
        high = np.minimum(low + 1, count - 1)
        share = jnp.asarray(at - low, images.dtype).reshape((-1,) + (1,) * (3 - axis))
        below, above = jnp.take(images, low, axis), jnp.take(images, high, axis)
        images = below + (above - below) * share
    return images


def from_torch(weights: dict[str, np.ndarray]) -> dict:
    """Parameters from the names and layouts of the PyTorch file: {'Mixed_5b.branch1x1.conv.weight': [out, in, h, w], ...}.

    The classifier and the batch counters are left out.

    Raises:
      UsageError: a name or a shape that is not of this network, or a value that is not finite; the message has the first ones.
    """
    from t3d.core import tree

    names = {'bn.weight': 'bn/scale', 'bn.bias': 'bn/bias', 'bn.running_mean': 'bn/mean', 'bn.running_var': 'bn/var'}
    leaves = {}
    for name, value in weights.items():
        if name.startswith(('fc.', 'AuxLogits.')) or name.endswith('.num_batches_tracked'):
            continue
        owner, _, leaf = name.partition('.bn.')
        value = np.asarray(value, np.float32)
        if leaf:
            leaves[f'{owner}.{names.get("bn." + leaf, "bn." + leaf)}'.replace('.', '/')] = value
        else:
            kernel = name.removesuffix('.weight') + '/kernel' if name.endswith('.conv.weight') else name
            leaves[kernel.replace('.', '/')] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    lines = tree.mismatch(leaves, tree.flatten(abstract()))
    if lines:
        raise UsageError(
            'these are not the weights of the FID Inception-v3 (wanted the names of pt_inception-2015-12-05-6726825d.pth):\n'
            + '\n'.join(lines)
        )
    broken = [name for name, value in leaves.items() if not np.isfinite(value).all()]
    if broken:
        raise UsageError(f'Inception weights with NaN or infinity in {", ".join(broken[:3])}: convert or download them again.')
    return tree.unflatten(leaves)


def abstract():
    """Shapes of the parameters: 21,785,568 learned ones and 34,432 stored means and variances."""
    images = jax.ShapeDtypeStruct((1, SMALLEST, SMALLEST, 3), jnp.float32)
    return jax.eval_shape(Inception(size=None).init, prng.key(0), images)['params']
