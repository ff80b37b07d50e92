"""Guided multi-view diffusion: views sampled by a multi-view and a text-to-image model together; nothing is trained.

prompt -> x_T for V views -> at each step both models' predictions of x_t, mixed by lambda(t) -> DDIM or DPM-Solver -> views.
Source: Guided multi-view diffusion, Sec. 3.3 and 3.4.

Differences from the paper:
- The paper says neither which lambda it takes nor how it rises: `mixing` has four schedules, by default linear from 0.5 to 1.
- The 2D model is the multi-view model itself without cameras (`branch='self2d'`), another model at the same size ('sd'), or one
  at its own size, at which the multi-view model is run too ('sd_hires'); the paper runs Stable Diffusion.
- Its Eq. 3, a product of two distributions, holds where both have one covariance; see t3d.diffusion.joint.
- `eps_consis`, which it defines and does not use, is `mixing.form='consistency'`.
- Each model has guidance of its own; views of the 2D model can be told their side in words (`suffixes`).
"""

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core.errors import UsageError
from t3d.core.outputs import Views, only_prompts
from t3d.core.system import System, require
from t3d.diffusion import guidance, joint, samplers, schedules, view_prompts
from t3d.diffusion.prior import MultiViewPrior, Prior
from t3d.geom import cameras as camera_tools
from t3d.nets.mv_unet import NO_VIEWS

TAKES = {'views': (MultiViewPrior,), 'pictures': (Prior,)}
BRANCHES = ('self2d', 'sd', 'sd_hires')
FORMS = ('mix', 'consistency')
EDGE = 1e-4  # radians: cameras of a rig at 45 degrees, where sectors meet, see the front, and at 135 the back
SECTORS = view_prompts.Thresholds(front=np.pi / 4 + EDGE, back=np.pi / 4 + EDGE)


def make(config, given) -> System:
    """The system of a config (configs/guided_mv.py): sections mixing, sample.

    Args:
      given: {'views': a multi-view model, 'pictures': a text-to-image model}, the second for the branches 'sd' and 'sd_hires'.
    """
    sampler = Sampler(config, given)

    def generate(weights, requests, keys, given) -> list[Views]:
        prompts = only_prompts(requests, config.system)
        views = sampler.views.rig(len(prompts))
        images = sampler.draw(given, sampler.tokens(prompts, views), views, keys)
        poses = (images, views.world_from_cam, views.intrinsics)
        return [Views(prompt, *one) for prompt, one in zip(prompts, zip(*poses, strict=True), strict=True)]

    def check(requests) -> None:
        prompts = only_prompts(requests, config.system)
        sampler.tokens(prompts, sampler.views.rig(len(prompts)))

    return System(None, None, None, generate, check, (), (), {})


class Sampler:
    """The two models of a config as one sampler."""

    def __init__(self, config, given):
        mixing = config.mixing
        if mixing.branch not in BRANCHES:
            raise UsageError(f'mixing.branch={mixing.branch!r}: wanted one of {", ".join(BRANCHES)}.')
        if mixing.form not in FORMS:
            raise UsageError(f'mixing.form={mixing.form!r}: wanted one of {", ".join(FORMS)}.')
        wanted = 'a multi-view model: mvdiffusion-toy, or a run or weights folder of mvdiffusion'
        self.config, self.views = config, require(given, 'views', MultiViewPrior, wanted).functions
        self.schedule, self.pictures = self.views.schedule, None
        if mixing.branch != 'self2d':
            wanted = (
                'a text-to-image model (image_diffusion-toy, toy, toy_patterns, a run of image_diffusion, a Stable Diffusion '
                "folder), or mixing.branch='self2d', which takes the multi-view model's own"
            )
            self.pictures = require(given, 'pictures', Prior, wanted).functions
            names = (given['views'].name, given['pictures'].name)
            joint.refuse_other_levels(self.schedule, self.pictures.schedule, names)
        self.shape = self.views.shape
        if mixing.branch == 'sd_hires':
            self.shape = self.pictures.shape(self.pictures.native)
        elif mixing.branch == 'sd' and self._flat_shape() != self.shape:
            raise UsageError(
                f'given.pictures denoises {self._flat_shape()} and given.views {self.shape}: wanted two models of one size and '
                "one autoencoder, or mixing.branch='sd_hires'."
            )
        self.weight = joint.weights(
            mixing.schedule, mixing.first, mixing.last, self.schedule.length, power=mixing.power, at=mixing.at
        )
        curve = np.unique(self.weight(np.arange(self.schedule.length)))
        self.only = curve[0] if len(curve) == 1 and curve[0] in (0.0, 1.0) else None
        self.draw = jax.jit(self._draw)

    def _flat_shape(self):
        return tuple(self.pictures.shape(self.pictures.native))

    def tokens(self, prompts: list[str], views) -> dict:
        """{'views': ids [B, N], 'pictures': ids [B, V, M]} and those of empty prompts; each model has its own tokenizer."""
        plain = [' '.join(word for word in text.split() if word.lower() not in self.config.unknown_words) for text in prompts]
        sides = self.sides(views) if self.config.suffixes else None
        flat = [
            f'{text}, {side}' if sides else text
            for text, row in zip(prompts, sides or [[''] * self.count(views)] * len(prompts), strict=True)
            for side in row
        ]
        if self.pictures is None:
            tokenize, flat = self.views.tokenize, [text for text in plain for _ in range(self.count(views))]
        else:
            tokenize = self.pictures.tokenize
        lead = (len(prompts), self.count(views))
        return {
            'views': jnp.asarray(self.views.tokenize(plain)),
            'no_views': jnp.asarray(self.views.tokenize([''] * len(prompts))),
            'pictures': jnp.asarray(tokenize(flat)).reshape(*lead, -1),
            'no_pictures': jnp.asarray(tokenize([''] * len(flat))).reshape(*lead, -1),
        }

    @staticmethod
    def count(views) -> int:
        """V."""
        return views.intrinsics.shape[-3]

    def sides(self, views) -> list[list[str]]:
        """The words for the side that each camera sees, [B][V]: within 45 degrees of the front, of the back, or between."""
        azimuth, elevation, _ = camera_tools.angles(views.world_from_cam)
        which = np.asarray(view_prompts.sector(azimuth, elevation, SECTORS))
        return [[view_prompts.SUFFIXES[sector] for sector in row] for row in which]

    # ------------------------------------------------------------------------------------------------------------- branches

    def of_views(self, params, ids, views):
        """`predict(x, t)` of the multi-view model, all views together, with its guidance."""
        inputs = self.views.inputs(views, self.shape)
        text, none = self.views.encode(params, ids['views']), self.views.encode(params, ids['no_views'])

        def predict(x, t, condition):
            return self.views.predict(params, x, jnp.broadcast_to(t, x.shape[:1]), *condition)

        return self._guided(predict, (text, inputs), (none, inputs), self.config.sample.guidance)

    def alone(self, params, ids):
        """`predict(x, t)` of the multi-view model in its 2D mode: each view a picture of its own, without a camera."""
        flat = lambda value: value.reshape(-1, value.shape[-1])
        text, none = self.views.encode(params, flat(ids['pictures'])), self.views.encode(params, flat(ids['no_pictures']))

        def predict(x, t, text):
            return self.views.predict(params, x[:, None], jnp.broadcast_to(t, x.shape[:1]), text, NO_VIEWS)[:, 0]

        return self._flattened(self._guided(predict, text, none, self.config.sample.flat_guidance))

    def of_pictures(self, params, ids):
        """`predict(x, t)` of the text-to-image model, each view a picture of its own, in the prediction type of the views."""
        flat = lambda value: value.reshape(-1, value.shape[-1])
        text, none = (self.pictures.encode(params, flat(ids[name])) for name in ('pictures', 'no_pictures'))

        def predict(x, t, text):
            return self.pictures.predict(params, x, jnp.broadcast_to(t, x.shape[:1]), text)

        denoise = self._flattened(self._guided(predict, text, none, self.config.sample.flat_guidance))

        def converted(x, t):
            levels = schedules.levels(self.schedule, t)
            return joint.as_prediction(denoise(x, t), self.pictures.schedule.prediction, self.schedule.prediction, x, *levels)

        return converted

    @staticmethod
    def _guided(predict, text, none, scale: float):
        if scale == 1.0:
            return lambda x, t: predict(x, t, text)
        return guidance.guided(predict, text, none, scale)

    @staticmethod
    def _flattened(denoise):
        return lambda x, t: denoise(x.reshape(-1, *x.shape[2:]), t).reshape(x.shape)

    # ------------------------------------------------------------------------------------------------------------- sampling

    def prediction(self, given, ids, views):
        """`predict(x, t)` of both models together.

        A mixture whose lambda is 1 (or 0) at all times asks one model only: the same program as that model's own sampler, hence
        the same bits, however XLA would fuse and round a program of both.
        """
        mixing, params = self.config.mixing, given['views']
        together = self.of_views(params, ids, views)
        flat = self.alone(params, ids) if self.pictures is None else self.of_pictures(given['pictures'], ids)
        if mixing.form == 'mix' and self.only is not None:
            return together if self.only == 1.0 else flat
        if mixing.form == 'mix':
            return lambda x, t: joint.mix(together(x, t), flat(x, t), self.weight(t))
        plain = {**ids, 'pictures': self._each(ids['views'], ids), 'no_pictures': self._each(ids['no_views'], ids)}
        alone = self.alone(params, plain)
        return lambda x, t: joint.consistency(flat(x, t), together(x, t), alone(x, t), self.weight(t))

    @staticmethod
    def _each(value, ids):
        return jnp.broadcast_to(value[:, None], (*ids['pictures'].shape[:2], value.shape[-1]))

    def _draw(self, given, ids, views, keys):
        """Images [B, V, S, S, 3] in [0, 1], each object a function of its prompt, cameras and key alone."""
        sample, count = self.config.sample, self.count(views)
        noise = jax.vmap(lambda key: jax.random.normal(key, (count, *self.shape), jnp.float32))(keys)
        sampler = {'ddim': samplers.ddim, 'dpm_solver_2m': samplers.dpm_solver_2m}[sample.sampler]
        x = noise if not sample.blob else self.from_blob(given['views'], noise, sample.steps)
        x = sampler(self.prediction(given, ids, views), self.schedule, x, steps=sample.steps)
        return self.views.decode(given['views'], x)

    def from_blob(self, params, noise, steps: int):
        """x at the first time, of a white picture with a dark Gaussian blob: schedules that keep some signal at T - 1 would
        turn pure noise into grey backgrounds (SPAD, arXiv 2402.05235, released sampler)."""
        side = self.shape[0] * self.views.pixels
        place = (jnp.arange(side, dtype=jnp.float32) + 0.5) / side * 2.0 - 1.0
        blob = jnp.exp(-(place[:, None] ** 2 + place[None, :] ** 2) / (2.0 * 0.5**2))
        image = jnp.broadcast_to((1.0 - blob)[..., None], (1, 1, side, side, 3))
        clean = jnp.broadcast_to(self.views.latents(params, image), noise.shape)
        t = int(samplers.intervals(self.schedule, steps)[0][0])
        return schedules.q_sample(self.schedule, clean, jnp.full(noise.shape[:1], t, jnp.int32), noise)
