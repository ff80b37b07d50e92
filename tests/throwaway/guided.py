"""Two given priors sampled together; nothing is trained, and the output is views."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import common
from t3d.core import tokens
from t3d.core.outputs import Views, only_prompts
from t3d.core.system import System, require
from t3d.diffusion import samplers
from t3d.diffusion.prior import Prior
from t3d.geom import cameras

VIEWS, STEPS = 3, 4


def get_config():
    config = common.defaults()
    config.update({'system': 'throwaway.guided', 'variant': 'tiny', 'mix': 0.5, 'given': {'one': '', 'other': ''}})
    config.export = {'prompts': ('a red cube',)}
    return config.lock()


def make(config, given) -> System:
    one, other = (require(given, name, Prior, 'a text-to-image model').functions for name in ('one', 'other'))

    @jax.jit
    def sample(params, ids, noise):
        first, second = (prior.encode(params[name], ids) for name, prior in (('one', one), ('other', other)))

        def denoise(x, t):
            t = jnp.broadcast_to(t, x.shape[:1])
            a, b = one.predict(params['one'], x, t, first), other.predict(params['other'], x, t, second)
            return config.mix * a + (1.0 - config.mix) * b

        return jnp.clip(0.5 + 0.5 * samplers.ddim(denoise, one.schedule, noise, steps=STEPS), 0.0, 1.0)

    def generate(weights, requests, keys, given):
        views = cameras.turntable(VIEWS, elevation=0.3, radius=3.0, fov=0.7)
        made = []
        for request, key in zip(requests, keys):
            noise = jax.random.normal(key, (VIEWS, *one.shape(one.native)), jnp.float32)
            images = sample(given, jnp.asarray(np.repeat(one.tokenize([request.prompt]), VIEWS, 0)), noise)
            made.append(Views(request.prompt, images, views.world_from_cam, views.intrinsics))
        return made

    def check(requests):
        tokens.refuse_empty(only_prompts(requests, config.system))
        one.tokenize([request.prompt for request in requests])

    return System(lambda key, batch, given: {}, None, None, generate, check, (), (), {})
