"""Golden files of the StyleGAN2 networks: parameters by dotted name, channels first, to our trees."""

import numpy as np

from t3d.core import tree


def nhwc(x):
    return np.asarray(x).transpose(0, 2, 3, 1)


def trees(data: dict) -> tuple[dict, dict]:
    """(params, buffers) of the `param/...` entries; what is no parameter of ours (filters, w_avg) is left out."""
    params, buffers = {}, {}
    for name, value in data.items():
        path, last = name.removeprefix('param/').replace('.', '/'), name.rsplit('.', 1)[-1]
        if not name.startswith('param/') or last.endswith(('resample_filter', 'w_avg')):
            continue
        if last == 'weight':
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        if last == 'const':
            value = value.transpose(1, 2, 0)
        (buffers if last == 'noise_const' else params)[path] = value
    return tree.unflatten(params), tree.unflatten(buffers)


def modulated(x, weight, styles, *, up=False, demodulate=True, epsilon=1e-8):
    """Modulated convolution with a kernel for each sample, by loops over pixels, in float64. Layout as ours, NHWC and HWIO."""
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16.0
    out = []
    for image, style in zip(x.astype(np.float64), styles.astype(np.float64)):
        kernel = weight.astype(np.float64) * style[:, None]
        if demodulate:
            kernel = kernel / np.sqrt(np.square(kernel).sum((0, 1, 2)) + epsilon)
        size, height, width = len(kernel), *image.shape[:2]
        if not up:
            padded = np.pad(image, [(size // 2, size // 2)] * 2 + [(0, 0)])
            out.append(windows(padded, kernel, height, width))
            continue
        spread = np.zeros((2 * height + 1, 2 * width + 1, kernel.shape[-1]))
        for i in range(height):
            for j in range(width):
                spread[2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += np.einsum('i,klio->klo', image[i, j], kernel)
        padded = np.pad(spread, [(1, 1), (1, 1), (0, 0)])
        filters = taps[:, :, None, None] * np.eye(kernel.shape[-1])
        out.append(windows(padded, filters, 2 * height, 2 * width))
    return np.stack(out)


def windows(image, kernel, height, width):
    """Correlation of one image [H, W, I] with [k, k, I, O], one pixel at a time."""
    size = len(kernel)
    rows = range(height)
    return np.stack([[np.einsum('klc,klco->o', image[i : i + size, j : j + size], kernel) for j in range(width)] for i in rows])
