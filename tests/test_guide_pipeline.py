"""A Stable Diffusion folder as the guide of renders: the whole gradient, through autoencoder and words, against PyTorch's."""

import jax
import numpy as np
import pytest
import small_pipeline

from t3d.core import prng
from t3d.diffusion import guide, timesteps
from t3d.diffusion.guide import Options
from t3d.geom import camera_draws
from t3d.inference import priors

PROMPTS, VIEWS, SIZE, SCALE = ['a red hat', 'sea'], 2, 11, 7.5


@pytest.mark.parametrize(('linear', 'prediction'), ((False, 'epsilon'), (True, 'v_prediction')))
def test_the_gradient_is_that_of_diffusers_and_torch(tmp_path_factory, linear, prediction):
    """Random weights in Stable Diffusion's shapes, 1.5 and 2.1: renders of 11 pixels -> 16 -> latents of 8 -> CFG -> SDS."""
    torch = pytest.importorskip('torch')
    folder, pipe = small_pipeline.saved(tmp_path_factory.getbasetemp() / 'guide', linear, prediction)
    given = priors.open_pipeline(folder)
    prior, options = given.functions, Options(scale=SCALE)
    made = guide.make(prior, options)
    tokens, keys = made.tokens(PROMPTS), jax.random.split(prng.key(3), len(PROMPTS))
    assert tokens['text'].shape == (2, 1, 77)
    drawn = jax.vmap(lambda key: camera_draws.draw(key, VIEWS, camera_draws.Ranges()))(keys)
    images = jax.random.uniform(prng.key(4), (len(PROMPTS), VIEWS, SIZE, SIZE, 3))
    loss = jax.jit(lambda images, params: made.guide(params, tokens, images, drawn, keys, 0).loss)
    ours = jax.jit(jax.grad(loss))(images, given.params)

    each = jax.vmap(lambda key: timesteps.view_keys(key, np.arange(VIEWS)))(keys).reshape(-1)
    t, noise = timesteps.draw(each, prior.schedule, (8, 8, 4), options.low, options.high)
    pictures = torch.tensor(np.asarray(images).reshape(-1, SIZE, SIZE, 3).transpose(0, 3, 1, 2)).requires_grad_()
    larger = torch.nn.functional.interpolate(pictures, (16, 16), mode='bilinear', align_corners=False)
    latents = pipe.vae.encode(2.0 * larger - 1.0).latent_dist.mean * pipe.vae.config.scaling_factor
    with torch.no_grad():
        noise = torch.tensor(np.asarray(noise).transpose(0, 3, 1, 2))
        steps = torch.tensor(np.asarray(t)).long()
        noisy = pipe.scheduler.add_noise(latents, noise, steps)
        level = pipe.scheduler.alphas_cumprod[steps].reshape(-1, 1, 1, 1)
        ids = lambda texts: pipe.tokenizer(texts, padding='max_length', max_length=77, return_tensors='pt').input_ids
        text = pipe.text_encoder(ids([prompt for prompt in PROMPTS for _ in range(VIEWS)]))[0]
        outputs = [pipe.unet(noisy, steps, features).sample for features in (text, pipe.text_encoder(ids([''] * len(t)))[0])]
        if prediction == 'v_prediction':
            outputs = [level.sqrt() * output + (1.0 - level).sqrt() * noisy for output in outputs]
        guided = outputs[1] + SCALE * (outputs[0] - outputs[1])
        gradient = (1.0 - level) * (guided - noise)
    (gradient * latents).sum().div(VIEWS).backward()
    theirs = pictures.grad.numpy().transpose(0, 2, 3, 1).reshape(images.shape)
    assert np.abs(theirs).max() > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-3 * np.abs(theirs).max())
