"""Extractors of features whose weights are the user's: a file of Inception-v3's, or an installed package's."""

import functools
import pathlib

import jax

from t3d.core.errors import UsageError
from t3d.metrics import fid

POOLED = 1280  # numbers of EfficientNet-Lite0's features, and of MobileNetV2's


def inception(path: str | None) -> fid.Extractor:
    """The FID Inception-v3 with the weights of a safetensors file."""
    from t3d.checkpoint import torch_files
    from t3d.nets.judges import inception as net

    convert = torch_files.TO_SAFETENSORS.format('pt_inception-2015-12-05-6726825d.pth', 'inception.safetensors')
    if path is None or not pathlib.Path(path).is_file():
        needs = 'weights, which t3d cannot ship' if path is None else f'weights, and {path} is no file'
        raise UsageError(
            f'fid and kid need {needs}: give --inception-weights FILE, the FID Inception-v3 of 2015-12-05 as safetensors; from '
            f'pt_inception-2015-12-05-6726825d.pth of pytorch-fid, in its folder: {convert} . '
            'fid_tiny and kid_tiny need no file.'
        )
    params = jax.device_put(net.from_torch(torch_files.read(path)))
    apply = jax.jit(lambda params, images: net.Inception().apply({'params': params}, 2.0 * images - 1.0))
    digest = torch_files.digest(path)[:8]
    return fid.Extractor(f'Inception-v3 2015-12-05, weights {digest}', net.FEATURES, functools.partial(apply, params))


def effnet() -> fid.Extractor:
    """EfficientNet-Lite0's pooled features, with the weights of an installed package."""
    return _pooled('EfficientNet-Lite0', 'effnet', lambda judges: judges.image_encoder())


def mobilenet() -> fid.Extractor:
    """MobileNetV2's pooled features, with the weights of an installed package."""
    return _pooled('MobileNetV2', 'mobilenet', lambda judges: judges.second_image_encoder())


def _pooled(name: str, short: str, load) -> fid.Extractor:
    from t3d.checkpoint import judges

    try:
        encode = load(judges)
    except judges.MissingJudge as error:
        raise UsageError(f'fd_{short} and kd_{short}: {error}') from error
    return fid.Extractor(name, POOLED, lambda images: encode(images)[0])
