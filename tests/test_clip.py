"""The CLIP towers against transformers on random weights, their parameter counts, and what reads their outputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights

from t3d.checkpoint import convert_clip
from t3d.core import tree as trees
from t3d.nets import clip
from t3d.nets.judges import clip_vision

TEXT = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=77,
    projection_dim=24,
    eos_token_id=63,
    bos_token_id=62,
)
VISION = dict(
    image_size=42,
    patch_size=14,
    hidden_size=32,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    projection_dim=24,
)


@pytest.fixture(scope='module')
def transformers():
    pytest.importorskip('torch')
    return pytest.importorskip('transformers')


def randomize(module, scale=1.0, seed=0):
    """Random weights with fan-in scaling, norm scales about 1 and biases, both with a deviation of 0.3."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            offset = 1.0 if parameter.ndim == 1 and name.endswith('weight') else 0.0
            fan_in = 0.3 if parameter.ndim <= 1 or 'embedding' in name else parameter[0].numel() ** -0.5
            parameter.copy_(offset + scale * fan_in * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def quiet(module):
    """Low-variance probe: residual branches and biases nearly vanish, so that each norm sees a deviation of about 3e-3."""
    import torch

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if 'embed' in name or 'out_proj' in name or 'fc2' in name or name.endswith('pre_layrnorm.weight'):
                parameter.mul_(3e-3 if not name.endswith('out_proj.weight') else 3e-3)
            elif name.endswith('bias') and 'norm' not in name or name.endswith('pre_layrnorm.bias'):
                parameter.zero_()
    return module


def state(module):
    return {name: value.numpy() for name, value in module.state_dict().items()}


def text_pair(transformers, activation):
    theirs = randomize(transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**TEXT, hidden_act=activation)))
    return theirs, convert_clip.text_module(TEXT | {'hidden_act': activation})


def text_params(theirs, module):
    arrays = {name.removeprefix('text_model.'): value for name, value in state(theirs).items()}
    projection = arrays.pop('text_projection.weight').T
    arrays.pop('embeddings.position_ids', None)
    return convert_clip.to_ours(arrays, convert_clip.text_names(3), convert_clip.text_shapes(module), 'test'), projection


def vision_params(theirs, module):
    arrays = {name.removeprefix('vision_model.'): value for name, value in state(theirs).items()}
    arrays.pop('embeddings.position_ids', None)
    return convert_clip.to_ours(arrays, convert_clip.vision_names(3, True), convert_clip.vision_shapes(module), 'test')


@pytest.fixture(scope='module')
def ids():
    """Two rows of 77 ids: the end mark is the highest id, repeated as padding in one row, followed by 0 in the other."""
    rows = np.random.default_rng(0).integers(1, 60, (2, 77)).astype(np.int32)
    rows[:, 0], rows[0, 9:], rows[1, 30], rows[1, 31:] = 62, 63, 63, 0
    return rows


@pytest.mark.parametrize('activation', ['quick_gelu', 'gelu'])
def test_the_text_tower_and_its_sentence_vector(transformers, ids, activation):
    import torch

    theirs, module = text_pair(transformers, activation)
    run = jax.jit(lambda params, rows: module.apply({'params': params}, rows))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long())
    params, projection = text_params(theirs, module)
    features = run(params, ids)
    np.testing.assert_allclose(features, expected.last_hidden_state.numpy(), atol=2e-5)
    for end in (None, 63):
        vectors = clip.embed(features, ids, projection, end)
        np.testing.assert_allclose(vectors, expected.text_embeds.numpy(), atol=2e-5)
    quiet(theirs)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long()).last_hidden_state.numpy()
    np.testing.assert_allclose(run(text_params(theirs, module)[0], ids), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize('activation', ['quick_gelu', 'gelu'])
def test_the_vision_tower(transformers, activation):
    import torch

    config = transformers.CLIPVisionConfig(**VISION, hidden_act=activation)
    theirs = randomize(transformers.CLIPVisionModelWithProjection(config))
    module = convert_clip.vision_module(VISION | {'hidden_act': activation}, 24)
    images = np.random.default_rng(1).normal(size=(2, 42, 42, 3)).astype(np.float32)
    run = jax.jit(lambda params, images: module.apply({'params': params}, images))
    for probe in (lambda x: x, quiet):
        probe(theirs)
        with torch.no_grad():
            expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)))
        got = run(vision_params(theirs, module), images)
        scale = np.abs(expected.last_hidden_state.numpy()).max()
        np.testing.assert_allclose(got.hidden, expected.last_hidden_state.numpy(), atol=min(2e-5, 1e-5 * scale))
        np.testing.assert_allclose(got.pooled, expected.image_embeds.numpy(), atol=2e-5)
    assert clip_vision.grid(got).shape == (2, 9, 32)
    np.testing.assert_array_equal(clip_vision.grid(got)[:, 4], got.hidden[:, 5])


@pytest.mark.parametrize(
    'module, expected',
    [
        (clip.TextTower(**clip.TEXT['L/14']), 123_060_480),
        (clip.TextTower(**clip.TEXT['H/14']), 340_387_840),
        (clip_vision.VisionTower(**clip_vision.VISION['L/14']), 303_966_208),
        (clip_vision.VisionTower(**clip_vision.VISION['H/14']), 632_076_800),
    ],
)
def test_released_sizes_have_their_parameter_counts(module, expected):
    text = isinstance(module, clip.TextTower)
    assert trees.count((convert_clip.text_shapes if text else convert_clip.vision_shapes)(module)) == expected


def test_the_vision_tower_refuses_another_size():
    module = clip_vision.VisionTower(image=42, patch=14, width=32, layers=1, heads=4, mlp_width=64)
    with pytest.raises(ValueError, match='28 x 28 given, 42 x 42 wanted'):
        jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 28, 28, 3), jnp.float32))


@pytest.mark.parametrize('shape', [(40, 40), (90, 61), (224, 300)])
def test_images_are_prepared_as_transformers_does(transformers, shape):
    from PIL import Image

    rows, columns = np.mgrid[: shape[0], : shape[1]]
    picture = 127.5 + 120 * np.stack([np.sin(rows / 5), np.cos(columns / 7), np.sin((rows + columns) / 9)], -1)
    picture = np.round(picture).astype(np.uint8)
    short = {'shortest_edge': 56}
    processor = transformers.models.clip.CLIPImageProcessorPil(size=short, crop_size={'height': 56, 'width': 56})
    expected = np.asarray(processor(Image.fromarray(picture), return_tensors='np')['pixel_values'])[0].transpose(1, 2, 0)
    got = clip_vision.prepare(jnp.asarray(picture[None] / 255.0, jnp.float32), 56)[0]
    # Theirs rounds to 8 bits after resizing: half a step of 1/255, over the smallest deviation 0.261, twice (two passes).
    np.testing.assert_allclose(got, expected, atol=1.5 / 255 / 0.26)


def wrong_epsilon(monkeypatch, bad):
    """Gives the norm named `bad` Flax's default epsilon instead of CLIP's."""
    real = nn.LayerNorm

    def norm(epsilon, name, **others):
        return real(1e-6 if name == bad else epsilon, name=name, **others)

    monkeypatch.setattr(clip.nn, 'LayerNorm', norm)


@pytest.mark.parametrize('bad', ['norm_1', 'norm_2', 'final_norm'])
def test_a_wrong_epsilon_fails_the_text_probe(transformers, ids, monkeypatch, bad):
    import torch

    theirs, module = text_pair(transformers, 'gelu')
    quiet(theirs)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long()).last_hidden_state.numpy()
    params = text_params(theirs, module)[0]
    wrong_epsilon(monkeypatch, bad)
    error = np.abs(jax.jit(module.apply)({'params': params}, ids) - expected).max() / np.abs(expected).max()
    assert error > 3e-5, error


@pytest.mark.parametrize('bad', ['pre_norm', 'norm_1', 'norm_2', 'post_norm'])
def test_a_wrong_epsilon_fails_the_vision_probe(transformers, monkeypatch, bad):
    import torch

    theirs = quiet(randomize(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION))))
    module = convert_clip.vision_module(VISION, 24)
    images = np.random.default_rng(1).normal(size=(2, 42, 42, 3)).astype(np.float32)
    with torch.no_grad():
        out = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    params = vision_params(theirs, module)
    wrong_epsilon(monkeypatch, bad)
    got = jax.jit(module.apply)({'params': params}, images)
    pairs = (got.hidden, out.last_hidden_state.numpy()), (got.pooled, out.image_embeds.numpy())
    assert max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs) > 3e-5


def test_the_bias_of_the_keys_neither_acts_nor_learns():
    layer = clip.Layer(heads=4, mlp_width=64, activation='gelu', dtype=jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, 5, 32))
    shapes = jax.eval_shape(layer.init, jax.random.key(1), x, None)['params']
    params = random_weights.drawn(shapes)
    run = lambda params: layer.apply({'params': params}, x, None)[0]
    moved = {**params, 'key': {**params['key'], 'bias': params['key']['bias'] + 1.0}}
    np.testing.assert_allclose(run(moved), run(params), rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda params: jnp.sum(run(params) ** 2))(params)
    assert np.all(gradient['key']['bias'] == 0.0) and np.all(gradient['query']['bias'] != 0.0)
    assert np.all(gradient['key']['kernel'] != 0.0)
