"""`t3d sample2d`: a prompt to a picture, with any text-to-image weights in a local folder.

A prior (t3d.diffusion.prior) is a few functions and, apart, their parameters; `open_model` makes one from a folder, `sample`
runs it. Every folder of diffusers' Stable Diffusion layout is read by `t3d.checkpoint.convert`.
"""

import functools
import io
import json
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d import __version__
from t3d.core import files, limits, prng
from t3d.core.errors import UsageError
from t3d.core.system import Given
from t3d.core.typing import Array, Float, Key
from t3d.diffusion import guidance, samplers
from t3d.diffusion.prior import Prior
from t3d.diffusion.schedules import Schedule

SAMPLERS = ('ddim', 'ddpm', 'dpm', 'dpm-karras')
DEFAULT = 'image_diffusion-toy'  # of the shipped weights
DTYPES = limits.DTYPES


class Settings(NamedTuple):
    """How to sample.

    steps: network calls are twice that with guidance, in one batch. sampler: one of SAMPLERS. guidance: 1 is none, None
    the model's own.
    seed: of the first noise. size: pixels per side, None for the model's own. negative: what to steer away from.
    """

    steps: int = 30
    sampler: str = 'ddim'
    guidance: float | None = None
    seed: int = 0
    size: int | None = None
    negative: str = ''


def open_model(folder, *, config=None, variant: str | None = None, dtype=jnp.float32) -> Given:
    """The prior of a local folder: diffusers' layout, or a run or weights folder of t3d; None for the shipped weights.

    Args:
      folder: or one .safetensors file in ldm names, or 'toy', the model in closed form.
      config: for such a file, the folder with its settings, tokenizer and schedule; None: where the file lies.
    Raises:
      UsageError: neither, or it does not load; the message names file and key.
    """
    from t3d.inference import loading, priors, toy_pictures

    if toy_pictures.is_toy(folder):
        _only_pipelines(folder, variant, dtype)
        return toy_pictures.open_toy(folder)
    path = pathlib.Path(folder or '')
    if folder is not None and path.is_file():
        return priors.open_pipeline(path.parent if config is None else config, file=path, variant=variant, dtype=dtype)
    if config is not None:
        raise UsageError(f'--config {config}: only a single .safetensors file takes its settings from elsewhere, not {folder}.')
    ours = (path / 'checkpoints').is_dir() or ((path / 'model.safetensors').is_file() and not (path / 'unet').is_dir())
    if folder is not None and str(folder) not in loading.shipped() and not ours:
        return priors.open_pipeline(path, variant=variant, dtype=dtype)
    loaded = loading.load(folder or DEFAULT)
    if not isinstance(loaded.system.functions, Prior):
        raise UsageError(
            f'{folder} holds the system {loaded.config.system}, which makes no pictures from text alone. Give a '
            'text-to-image folder in diffusers layout, or a run of a text-to-image system; for assets of this one: '
            '`t3d generate PROMPT --run DIR`.'
        )
    _only_pipelines(loaded.name, variant, dtype)
    return Given(loaded.system.functions, loaded.weights, loaded.config, loaded.name)


def _only_pipelines(name, variant: str | None, dtype) -> None:
    """Raises UsageError for options that a model of t3d's own would not follow."""
    if variant is not None:
        raise UsageError(f'--variant {variant}: {name} is of t3d and has one set of files: leave it out.')
    if jnp.dtype(dtype) != jnp.float32:
        raise UsageError(f'--dtype {jnp.dtype(dtype)}: {name} is of t3d and computes as it was trained: leave it out.')


def sample(model: Given, prompts: list[str], settings: Settings, noise=None) -> Float[Array, 'b h w 3']:
    """Images in [0, 1] of prompts.

    Args:
      noise: the first x, [B, H, W, C] standard normal; None draws it from the seed.
    """
    settings = completed(model, settings)
    ids, empty = model.functions.tokenize(prompts), model.functions.tokenize([settings.negative])
    key_noise, key_steps = jax.random.split(prng.key(settings.seed))
    shape = (len(prompts), *model.functions.shape(settings.size or model.functions.native))
    noise = jax.random.normal(key_noise, shape, jnp.float32) if noise is None else jnp.asarray(noise, jnp.float32)
    if noise.shape != shape:
        raise UsageError(f'noise of shape {noise.shape}: wanted {shape} for {len(prompts)} prompts.')
    features = _encode(model.functions.encode, model.params, np.concatenate([ids, empty]))
    text, negative = features[:-1], jnp.broadcast_to(features[-1:], features[:-1].shape)
    plan = (settings.steps, settings.sampler, settings.guidance != 1.0)
    x = _denoise(
        model.functions.predict,
        plan,
        model.params,
        model.functions.schedule,
        noise,
        text,
        negative,
        settings.guidance,
        key_steps,
    )
    return _decode(model.functions.decode, model.params, x)


def completed(model: Given, settings: Settings) -> Settings:
    """The settings with the model's own guidance where none is given; UsageError for those that cannot be sampled with."""
    if settings.guidance is None:
        settings = settings._replace(guidance=model.functions.guidance)
    if settings.sampler not in SAMPLERS:
        raise UsageError(f'Unknown sampler {settings.sampler!r}: choose one of {", ".join(SAMPLERS)}.')
    if not 1 <= settings.steps <= model.functions.schedule.length:
        raise UsageError(
            f'--steps {settings.steps}: the model was trained at {model.functions.schedule.length} times, choose 1 to that.'
        )
    if not 0 <= settings.seed < 2**32:
        raise UsageError(f'--seed {settings.seed}: wanted 0 to 2^32 - 1.')
    if not np.isfinite(settings.guidance):
        raise UsageError(f'--guidance {settings.guidance}: wanted a number; 1 is none, 7.5 is usual.')
    model.functions.shape(settings.size or model.functions.native)
    return settings


def write_png(path, image, prompt: str, settings: Settings, model: Given) -> None:
    """Writes [H, W, 3] in [0, 1] as PNG, with the prompt and all settings as text in its metadata."""
    from PIL import Image, PngImagePlugin

    about = {'prompt': prompt, **settings._asdict(), 'size': image.shape[0], 'weights': model.name}
    about |= {'prediction': model.functions.schedule.prediction, 't3d': __version__}
    info = PngImagePlugin.PngInfo()
    info.add_itxt('prompt', prompt)
    info.add_itxt('t3d', json.dumps(about, ensure_ascii=False))
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(jnp.round(jnp.clip(image, 0.0, 1.0) * 255.0)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format='png', pnginfo=info)
    files.write(path, buffer.getvalue())


def run(
    prompt: str, weights, out, settings: Settings, *, config=None, variant: str | None = None, dtype: str = 'float32'
) -> None:
    """The command: loads, samples, writes one PNG, and says what it did."""
    if not prompt.strip():
        raise UsageError('empty prompt: give words, in quotes.')
    if pathlib.Path(out).suffix.lower() != '.png':
        near = pathlib.Path(out).with_suffix('.png')
        raise UsageError(f'--out {out}: a PNG is written: wanted a name that ends in .png. Nearest: --out {near}.')
    if dtype not in DTYPES:
        near = limits.LIMITS['dtype'].nearest(dtype)
        raise UsageError(f'--dtype {dtype}: choose one of {", ".join(DTYPES)}.{f" Nearest: --dtype {near}." if near else ""}')
    start = time.perf_counter()
    model = open_model(weights, config=config, variant=variant, dtype=jnp.dtype(dtype))
    loaded, settings = time.perf_counter(), completed(model, settings)
    image = jax.block_until_ready(sample(model, [prompt], settings)[0])
    if not bool(jnp.isfinite(image).all()):
        raise UsageError(
            f'the picture is not finite: `t3d weights check {weights}` looks for broken weights; '
            f'{"--dtype float32 has more range than float16." if dtype == "float16" else "a lower --guidance may help."}'
        )
    write_png(out, image, prompt, settings, model)
    size, seconds = image.shape[0], time.perf_counter() - loaded
    print(f'{model.name}: predicts {model.functions.schedule.prediction}, loaded in {loaded - start:.1f} s')
    how = f'{settings.steps} steps of {settings.sampler}, guidance {settings.guidance:g}'
    print(f'{size} px, {how}: {seconds:.1f} s with compilation')
    print(f'open {out}')


@functools.partial(jax.jit, static_argnums=0)
def _encode(encode, params, ids):
    return encode(params, ids)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _denoise(predict, plan, params, schedule: Schedule, noise, text, negative, scale, key: Key):
    """x_0 from noise. plan: (steps, sampler, whether guided)."""
    steps, sampler, guided = plan

    def conditioned(x, t, features):
        return predict(params, x, t, features)

    if guided:
        network = guidance.guided(conditioned, text, negative, scale)
    else:
        network = lambda x, t: conditioned(x, t, text)
    if sampler == 'ddim':
        return samplers.ddim(network, schedule, noise, steps=steps)
    if sampler == 'ddpm':
        return samplers.ddpm(network, schedule, noise, steps=steps, key=key)
    spacing = 'karras' if sampler == 'dpm-karras' else 'linspace'
    return samplers.dpm_solver_2m(network, schedule, noise, steps=steps, spacing=spacing)


@functools.partial(jax.jit, static_argnums=0)
def _decode(decode, params, x):
    return jnp.clip(0.5 + 0.5 * decode(params, x), 0.0, 1.0)
