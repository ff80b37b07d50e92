"""Pictures prepared for judges against PIL and transformers themselves: sharp edges, odd sizes, up and down, cropped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from t3d.nets import pil_resize
from t3d.nets.judges import clip_vision, efficientnet, mobilenet

SIZES = [  # before (height, width), after: up, down, both, one axis alone, odd, tiny, far down
    ((128, 128), (224, 224)),
    ((300, 201), (64, 64)),
    ((33, 200), (100, 50)),
    ((17, 61), (17, 24)),
    ((61, 17), (24, 17)),
    ((3, 2), (31, 29)),
    ((1, 1), (5, 4)),
    ((257, 129), (7, 5)),
    ((50, 50), (51, 49)),
    ((200, 60), (90, 40)),  # Pillow 13 does the columns first here
    ((60, 200), (40, 90)),
]


def picture(name, size):
    """uint8 [H, W, 3]: what overshoots (a disc, a board, noise of 0 and 255), and what does not."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    random = np.random.default_rng(0)
    if name == 'disc':
        inside = (rows - size[0] / 2) ** 2 + (columns - size[1] / 2) ** 2 < (min(size) / 3) ** 2
        return np.where(inside[..., None], np.array([230, 20, 20]), 255).astype(np.uint8)
    if name == 'board':
        return np.repeat(255 * ((rows // 3 + columns // 2) % 2)[..., None], 3, -1).astype(np.uint8)
    if name == 'noise':
        return 255 * random.integers(0, 2, (*size, 3), np.uint8)
    return random.integers(0, 256, (*size, 3), np.uint8)


@pytest.mark.parametrize('name', ['disc', 'board', 'noise', 'any'])
@pytest.mark.parametrize(('before', 'after'), SIZES)
def test_every_pixel_is_that_of_pil(name, before, after):
    image = picture(name, before)
    got = pil_resize._rounded(jnp.asarray(image[None] / 255.0, jnp.float32), *after)[0]
    expected = Image.fromarray(image).resize(after[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.round(255.0 * np.asarray(got)), np.asarray(expected))


@pytest.mark.parametrize('name', ['disc', 'board', 'noise'])
@pytest.mark.parametrize('size', [(128, 128), (40, 61), (90, 61), (225, 301), (224, 500), (800, 300)])
def test_clip_reads_what_transformers_gives_it(name, size):
    """From the picture to the numbers: resized, cropped, scaled, normalised."""
    transformers = pytest.importorskip('transformers')
    image = picture(name, size)
    processor = transformers.models.clip.CLIPImageProcessorPil(
        size={'shortest_edge': 224}, crop_size={'height': 224, 'width': 224}
    )
    expected = np.asarray(processor(Image.fromarray(image), return_tensors='np')['pixel_values'])[0].transpose(1, 2, 0)
    got = clip_vision.prepare(jnp.asarray(image[None] / 255.0, jnp.float32), 224)[0]
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize('size', [64, 225, 300])
def test_the_other_judges_read_the_same_pixels(size):
    image = picture('disc', (size, size))
    pixels = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC), np.float32)
    images = jnp.asarray(image[None] / 255.0, jnp.float32)
    np.testing.assert_allclose(efficientnet.prepare(images)[0], (pixels - 127.0) / 128.0, atol=2e-6)
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    np.testing.assert_allclose(mobilenet.prepare(images)[0], (pixels / 255.0 - mean) / deviation, atol=2e-6)


def test_gradients_pass_and_native_sizes_are_untouched():
    x = jnp.asarray(np.random.default_rng(0).uniform(0.3, 0.7, (1, 6, 5, 3)), jnp.float32)
    weight = np.random.default_rng(1).normal(size=(1, 9, 8, 3)).astype(np.float32)
    got = jax.grad(lambda x: jnp.sum(weight * pil_resize.bicubic(x, 9, 8)))(x)
    expected = jax.grad(lambda x: jnp.sum(weight * jax.image.resize(x, (1, 9, 8, 3), 'bicubic', antialias=True)))(x)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_array_equal(pil_resize.bicubic(x, 6, 5), x)
