"""MobileNetV2 (arXiv 1801.04381, Table 2): ImageNet classes and 1280 pooled features, the second judge of pictures.

The blocks are those that EfficientNet-Lite took over (nets/judges/efficientnet.py), here with 3x3 kernels throughout and
PyTorch's padding and epsilon; 3,504,872 learned parameters. Batch norms run on stored statistics only. Weights come in the
names of torchvision's `mobilenet_v2`; `t3d.checkpoint.judges` reads trained ones from an installed package.
"""

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import prng
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.core.typing import Array, Float, PyTree
from t3d.nets.judges import efficientnet

SIZE = 224  # pixels a side that the released weights were trained at
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels, as torchvision's weights want them
BLOCKS = (  # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (3, 3, 2, 6, 32),
    (4, 3, 2, 6, 64),
    (3, 3, 1, 6, 96),
    (3, 3, 2, 6, 160),
    (1, 3, 1, 6, 320),
)
NORM = {'weight': 'params:scale', 'bias': 'params:bias', 'running_mean': 'batch_stats:mean', 'running_var': 'batch_stats:var'}


def mobilenet_v2(**changes) -> efficientnet.EfficientNetLite:
    """The network, of width 1 unless `changes` (blocks, stem, head, classes, dtype) say otherwise."""
    return efficientnet.EfficientNetLite(**{'blocks': BLOCKS, 'epsilon': 1e-5, 'symmetric': True, **changes})


def prepare(images: Float[Array, 'b h w 3'], size: int = SIZE) -> Float[Array, 'b s s 3']:
    """Square images in [0, 1] at `size` (efficientnet.resize), less ImageNet's mean, divided by its deviation."""
    return (efficientnet.resize(images, size) - jnp.asarray(MEAN)) / jnp.asarray(DEVIATION)


def torch_names(module: efficientnet.EfficientNetLite) -> dict[str, str]:
    """Path among our variables of each of torchvision's names, for example 'params/block_1/expand/kernel' of
    'features.2.conv.0.0.weight'; the counters of batches are left out."""
    pairs = _with_norm('features.0.0', 'features.0.1', 'stem')
    index = 0
    for repeats, _, _, expansion, _ in module.blocks:
        for _ in range(repeats):
            theirs, ours = f'features.{index + 1}.conv', f'block_{index}'
            activated = ('expand', 'depthwise') if expansion > 1 else ('depthwise',)
            for k, name in enumerate(activated):
                pairs |= _with_norm(f'{theirs}.{k}.0', f'{theirs}.{k}.1', f'{ours}/{name}')
            last = len(activated)
            pairs |= _with_norm(f'{theirs}.{last}', f'{theirs}.{last + 1}', f'{ours}/project')
            index += 1
    pairs |= _with_norm(f'features.{index + 1}.0', f'features.{index + 1}.1', 'head')
    return pairs | {'classifier.1.weight': 'params/classes/kernel', 'classifier.1.bias': 'params/classes/bias'}


def from_torch(arrays: dict[str, np.ndarray], module: efficientnet.EfficientNetLite) -> PyTree:
    """Variables (params and batch_stats) of `module` from arrays in the names and layouts of torchvision's state dictionary.

    Raises:
      UsageError: a name or a shape that is not of this network, or a value that is not finite; the message has the first ones.
    """
    names = torch_names(module)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    abstract = trees.flatten(jax.eval_shape(module.init, prng.key(0), images))
    turned = {}
    for name, value in arrays.items():
        if not name.endswith('.num_batches_tracked'):
            value = np.asarray(value, np.float32)
            turned[name] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    lines = trees.mismatch(turned, {name: abstract[path] for name, path in names.items()})
    if lines:
        raise UsageError(
            "these are not the weights of this MobileNetV2 (wanted the names of torchvision's mobilenet_v2-b0353104.pth; "
            'kernels below are [h, w, in, out]):\n' + '\n'.join(lines)
        )
    broken = [name for name, value in turned.items() if not np.isfinite(value).all()]
    if broken:
        raise UsageError(f'MobileNetV2 weights with NaN or infinity in {", ".join(broken[:3])}: install them again.')
    return trees.unflatten({path: turned[name] for name, path in names.items()})


def _with_norm(conv: str, norm: str, ours: str) -> dict[str, str]:
    """The names of a convolution without bias and of its batch norm."""
    stored = {f'{norm}.{leaf}': place.replace(':', f'/{ours}_norm/') for leaf, place in NORM.items()}
    return {f'{conv}.weight': f'params/{ours}/kernel', **stored}
