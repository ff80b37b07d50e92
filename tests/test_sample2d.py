"""`t3d sample2d` against diffusers' own pipeline on the same folder and the same first noise."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights
import small_pipeline

from t3d import cli
from t3d.checkpoint import torch_files, weights
from t3d.core.errors import UsageError
from t3d.inference import sample2d
from t3d.inference.sample2d import Settings

PROMPT, NEGATIVE = 'a red car', 'dim'


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    pytest.importorskip('torch'), pytest.importorskip('diffusers')
    return tmp_path_factory.mktemp('sample2d')


@pytest.fixture(scope='module')
def noise():
    return np.random.default_rng(0).standard_normal((2, 8, 8, 4), np.float32)


def theirs(pipe, noise, prompts, **options):
    """diffusers' images [B, H, W, 3] in [0, 1]."""
    import torch

    latents = torch.from_numpy(noise[: len(prompts)]).permute(0, 3, 1, 2).contiguous()
    return pipe(prompts, latents=latents, height=16, width=16, output_type='np', **options).images


@pytest.fixture(scope='module')
def model(root):
    return sample2d.open_model(small_pipeline.saved(root)[0])


def informative(images):
    """Neither black nor white nor flat: a comparison of clipped pictures would show nothing."""
    return images.std() > 0.05 and np.mean((images > 0) & (images < 1)) > 0.5


def test_ddim_is_that_of_diffusers(root, model, noise):
    prompts = [PROMPT, 'a cube']
    settings = Settings(steps=4, guidance=3.0, negative=NEGATIVE)
    images = np.asarray(sample2d.sample(model, prompts, settings, noise))
    pipe = small_pipeline.saved(root)[1]
    expected = theirs(pipe, noise, prompts, num_inference_steps=4, guidance_scale=3.0, negative_prompt=[NEGATIVE] * 2)
    assert images.shape == expected.shape == (2, 16, 16, 3) and informative(expected)
    np.testing.assert_allclose(images, expected, atol=2e-5)  # seen 1.2e-6
    other = theirs(pipe, noise, prompts, num_inference_steps=4, guidance_scale=3.0, negative_prompt=[''] * 2)
    assert np.abs(other - expected).max() > 2e-3  # the negative prompt is seen
    other = theirs(pipe, noise, ['a rod', 'a cube'], num_inference_steps=4, guidance_scale=3.0, negative_prompt=[NEGATIVE] * 2)
    assert np.abs(other - expected)[0].max() > 2e-3  # and the prompt
    again = np.asarray(sample2d.sample(model, prompts, settings, noise))
    np.testing.assert_array_equal(images, again)


def test_velocity_and_the_fast_solver_are_those_of_diffusers(root, noise):
    import diffusers

    folder, pipe = small_pipeline.saved(root, True, 'v_prediction')
    kept = pipe.scheduler
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(kept.config, timestep_spacing='linspace')
    expected = theirs(pipe, noise, [PROMPT], num_inference_steps=5, guidance_scale=1.0)
    pipe.scheduler = kept
    model = sample2d.open_model(folder)
    images = sample2d.sample(model, [PROMPT], Settings(steps=5, sampler='dpm', guidance=1.0), noise[:1])
    assert model.functions.schedule.prediction == 'v' and informative(expected)
    np.testing.assert_allclose(images, expected, atol=2e-4)


def test_seeds_decide_and_every_sampler_runs(model):
    settings = Settings(steps=2, sampler='ddpm', guidance=1.0)
    one, two, other = (sample2d.sample(model, [PROMPT], settings._replace(seed=seed)) for seed in (0, 0, 1))
    solved = [sample2d.sample(model, [PROMPT], settings._replace(sampler=name, steps=5)) for name in ('dpm', 'dpm-karras')]
    assert np.isfinite(solved).all() and not np.allclose(*solved, atol=1e-3)
    np.testing.assert_array_equal(one, two)
    assert np.isfinite(one).all() and not np.array_equal(one, other)


def test_the_command_writes_a_picture_that_says_how_it_was_made(root, tmp_path, capsys):
    from PIL import Image

    out = tmp_path / 'new' / 'image.png'
    words = [PROMPT, '--weights', str(small_pipeline.saved(root)[0]), '--steps', '2', '--negative', NEGATIVE, '--seed', '3']
    assert cli.main(['sample2d', *words, '--out', str(out)]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert 'predicts eps' in said and f'open {out}' in said and '16 px, 2 steps of ddim, guidance 7.5' in said
    with Image.open(out) as image:
        assert image.size == (16, 16) and image.mode == 'RGB' and image.text['prompt'] == PROMPT
        about = json.loads(image.text['t3d'])
    assert about['prompt'] == PROMPT and about['negative'] == NEGATIVE and about['seed'] == 3 and about['steps'] == 2
    assert about['weights'] == 'conv_epsilon' and about['prediction'] == 'eps' and about['guidance'] == 7.5
    assert about['sampler'] == 'ddim' and about['size'] == 16 and 't3d' in about


def test_pixels_and_metadata_of_a_png(model, tmp_path):
    from PIL import Image

    image = jnp.asarray([[[0.0, 0.5, 1.0], [-1.0, 2.0, 0.25]]])
    sample2d.write_png(tmp_path / 'a.png', image, 'ein roter Würfel', Settings(), model)
    with Image.open(tmp_path / 'a.png') as picture:
        assert np.asarray(picture).tolist() == [[[0, 128, 255], [0, 255, 64]]]
        assert picture.text['prompt'] == 'ein roter Würfel'


@pytest.mark.parametrize(
    'settings, says',
    [
        (Settings(sampler='euler'), "Unknown sampler 'euler': choose one of ddim, ddpm, dpm, dpm-karras"),
        (Settings(steps=0), '--steps 0'),
        (Settings(steps=1001), '--steps 1001'),
        (Settings(size=17), '--size 17: wanted a multiple of 2, for example 16'),
        (Settings(size=-2), '--size -2'),
        (Settings(seed=-1), '--seed -1'),
        (Settings(guidance=float('nan')), '--guidance nan'),
    ],
)
def test_settings_that_cannot_be(model, settings, says):
    with pytest.raises(UsageError) as error:
        sample2d.sample(model, [PROMPT], settings)
    assert says in str(error.value)


def test_prompts_that_cannot_be(model, root, capsys):
    with pytest.raises(UsageError, match='would be dropped'):
        sample2d.sample(model, ['word ' * 30], Settings())
    folder = str(small_pipeline.saved(root)[0])
    assert cli.main(['sample2d', ' ', '--weights', folder]) == 2 and 'empty prompt' in capsys.readouterr().err
    assert cli.main(['sample2d', PROMPT, '--weights', folder, '--dtype', 'int8']) == 2
    assert 'choose one of float32' in capsys.readouterr().err


def test_noise_of_another_shape(model, noise):
    with pytest.raises(UsageError, match='noise of shape'):
        sample2d.sample(model, [PROMPT], Settings(size=32), noise)


def test_folders_that_are_none(tmp_path, capsys):
    assert cli.main(['sample2d', PROMPT, '--weights', str(tmp_path / 'nowhere')]) == 2
    assert 'does not exist' in capsys.readouterr().err


def test_broken_weights_are_named(root, tmp_path, capsys):
    folder = shutil.copytree(small_pipeline.saved(root)[0], tmp_path / 'copy')
    path = folder / 'vae' / 'diffusion_pytorch_model.safetensors'
    tensors = {key: np.array(value) for key, value in torch_files.map_file(path).items()}
    tensors['decoder.conv_in.bias'][0] = np.nan
    torch_files.write(path, tensors)
    assert cli.main(['sample2d', PROMPT, '--weights', str(folder)]) == 2
    said = capsys.readouterr().err
    assert str(path) in said and 'decoder.conv_in.bias' in said and 'not finite' in said


def test_a_single_file_beside_settings(root, noise, tmp_path, capsys):
    folder = small_pipeline.saved(root)[0]
    small_pipeline.save_single_file(folder, tmp_path / 'plain.safetensors', tmp_path / 'sd.safetensors')
    settings = shutil.copytree(folder, tmp_path / 'settings', ignore=shutil.ignore_patterns('*.safetensors'))
    chosen = Settings(steps=2, guidance=2.0)
    model = sample2d.open_model(tmp_path / 'sd.safetensors', config=settings)
    expected = sample2d.sample(sample2d.open_model(folder), [PROMPT], chosen, noise[:1])
    np.testing.assert_array_equal(sample2d.sample(model, [PROMPT], chosen, noise[:1]), expected)
    file = shutil.copy(tmp_path / 'sd.safetensors', settings)
    words = ['sample2d', PROMPT, '--steps', '2', '--out', str(tmp_path / 'image.png'), '--weights']
    assert cli.main([*words, file]) == 0 and 'sd.safetensors: predicts eps' in capsys.readouterr().out  # settings lie beside it

    def refused(*arguments):
        assert cli.main([*words, *map(str, arguments)]) == 2
        return capsys.readouterr().err

    said = refused(tmp_path / 'sd.safetensors')
    assert 'unet, vae, text_encoder, tokenizer not in it' in said and 'give --config DIR' in said
    said = refused(folder / 'unet' / 'diffusion_pytorch_model.safetensors', '--config', folder)
    assert 'no whole single-file checkpoint' in said and 'model.diffusion_model.' in said
    assert 'plain.safetensors has no text' in refused(tmp_path / 'plain.safetensors', '--config', settings)
    assert 'takes its settings from elsewhere' in refused(folder, '--config', settings)
    (tmp_path / 'sd.ckpt').write_bytes(b'PK')
    assert 'is a pickle' in refused(tmp_path / 'sd.ckpt', '--config', settings)
    shutil.rmtree(settings / 'tokenizer')
    assert 'tokenizer not in it' in refused(tmp_path / 'sd.safetensors', '--config', settings)


def test_weights_of_our_own_system(tmp_path):
    """A folder of `image_diffusion` is sampled as its own generate does it."""
    from configs import image_diffusion as small_config
    from t3d import systems
    from t3d.systems import image_diffusion

    config = small_config.tiny()
    config.text.update(words=('a', 'red', 'cube'), width=16)
    config.unet.update(block_out_channels=(16,), cross_attention_dim=16, attention_levels=(True,))
    config.data.size = 8
    config.lock()
    shapes = jax.eval_shape(systems.make(config).init, jax.random.key(0), image_diffusion.batch_spec(config)).params
    params = random_weights.drawn(shapes, 0.2)
    weights.save(tmp_path, params, config)
    model = sample2d.open_model(tmp_path)
    assert model.functions.native == 8 and model.functions.schedule.prediction == 'v'
    noise = np.random.default_rng(0).standard_normal((1, 8, 8, 3), np.float32)
    images = sample2d.sample(model, ['a red cube'], Settings(steps=3, guidance=3.0), noise)
    net = image_diffusion.Model(config)
    run = jax.jit(net.sample_from, static_argnames=('steps', 'scale'))
    expected = np.asarray(
        run(params, jnp.asarray(model.functions.tokenize(['a red cube'])), jnp.asarray(noise), steps=3, scale=3.0)
    )
    assert informative(expected)
    np.testing.assert_allclose(images, expected, atol=1e-4)
    with pytest.raises(UsageError, match='of 8 pixels only'):
        sample2d.sample(model, ['a red cube'], Settings(size=16))
    for name in (tmp_path, 'toy'):
        with pytest.raises(UsageError, match='--variant fp16: .* is of t3d and has one set of files'):
            sample2d.open_model(name, variant='fp16')
        with pytest.raises(UsageError, match='--dtype float16: .* is of t3d and computes as it was trained'):
            sample2d.open_model(name, dtype=jnp.dtype('float16'))


@pytest.mark.parametrize('out', ['x.jpg', 'x', 'a.b/x.txt'])
def test_a_name_of_another_format_is_refused_before_the_work(capsys, monkeypatch, tmp_path, out):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample2d, 'open_model', lambda *words, **more: pytest.fail('the model was read first'))
    assert cli.main(['sample2d', 'a red cube', '--out', out]) == 2
    assert 'wanted a name that ends in .png. Nearest: --out ' in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_other_systems_make_no_pictures():
    with pytest.raises(UsageError, match='makes no pictures from text alone'):
        sample2d.open_model('instant3d-scenes')
