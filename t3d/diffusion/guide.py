"""A prior as the guide of renders: images and cameras in, a loss out whose gradient is that of score distillation.

What all systems share that learn from a text-to-image or a multi-view model through their renders. P objects are guided at
once, V views each, by one call of the prior for all of them; what one object gets does not depend on the others.

| prior | a view is told apart by | noise and time |
|---|---|---|
| `Prior` (pictures) | the words for its side (`words`) | its own for each view |
| `MultiViewPrior` | its camera | noise its own, one time for all views of an object (MVDream, arXiv 2308.16512, Sec. 3.4) |

Source: DreamFusion, arXiv 2209.14988, Sec. 3; guidance is uncond + scale (cond - uncond), its w is scale - 1.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import optim
from t3d.core.errors import UsageError
from t3d.core.system import NOT_FINITE, Given, require
from t3d.diffusion import distill, guidance, perp_neg, timesteps, view_prompts
from t3d.diffusion.prior import MultiViewPrior, Prior

METHODS = ('sds', 'reconstruction')
WORDS = ('none', 'nearest', 'interpolated')
NEGATIVES = ('none', 'fixed', 'adaptive')
KINDS = (Prior, MultiViewPrior)  # of models that can guide
WANTED = (
    'a text-to-image or multi-view model: image_diffusion-toy, toy, toy:SIZE, toy_marked, toy_patterns, mvdiffusion-toy, a run '
    'of one, or a Stable Diffusion folder'
)


class Options(NamedTuple):
    """The config section `distill`; numbers and names, static for the compiler.

    Attributes:
      method: 'sds', or 'reconstruction', which pulls towards x_0 (MVDream, Eq. 4).
      weighting: of t, one of distill.WEIGHTINGS; of 'sds' alone.
      scale: of guidance; 1 is the conditional model alone, at half the cost.
      rescale: share of x_0 with guidance that has the contrast of that without, for 'reconstruction'.
      low, high, high_last: ends of the times in thousandths of the schedule; the upper one moves to `high_last` ...
      anneal: ... in so many steps, linearly; 0: it stays.
      words: 'none', 'nearest' or 'interpolated': how a view's side is added to the prompt, also where there are negatives.
      negatives: 'none'; 'fixed': Perp-Neg with threestudio's weights; 'adaptive': these times least + C more, C the severity
        of Instant3D, which the caller tells.
      least, more: of 'adaptive'.
    """

    method: str = 'sds'
    weighting: str = 'sds'
    scale: float = 100.0
    rescale: float = 0.0
    low: int = timesteps.LOW
    high: int = timesteps.HIGH
    high_last: int = timesteps.HIGH
    anneal: int = 0
    words: str = 'none'
    negatives: str = 'none'
    least: float = 1.0
    more: float = 3.0


class Guided(NamedTuple):
    """What a guide says of images; each number a mean over all views.

    Attributes:
      loss: [] whose value means nothing and whose gradient is that of all objects, each divided by its views.
      metrics: scalars: 'distill/residual' the root mean square of eps_hat - eps, 'distill/gradient' the mean length of the
        gradient to the latents, 'distill/not_finite' the share of its numbers that were not finite and count as 0.
    """

    loss: jax.Array
    metrics: dict[str, jax.Array]


def prior_of(given: Mapping[str, Given]) -> Prior | MultiViewPrior:
    """The model that is given as 'prior'; UsageError where there is none that can guide."""
    return require(given, 'prior', KINDS, WANTED).functions


def make(prior: Prior | MultiViewPrior, options: Options) -> 'PictureGuide | ViewsGuide':
    """The guide that a prior is, for renders of any size.

    Raises:
      UsageError: options that do not go together.
    """
    for name, choices in (('method', METHODS), ('words', WORDS), ('negatives', NEGATIVES)):
        if getattr(options, name) not in choices:
            raise UsageError(f'distill.{name}={getattr(options, name)!r}: wanted one of {", ".join(choices)}.')
    ends = sorted((options.high, options.high_last))
    if not 0 <= options.low <= ends[0] <= ends[1] <= 1000:
        raise UsageError(
            f'distill.low={options.low}, distill.high={options.high}, distill.high_last={options.high_last}: wanted '
            'thousandths of the schedule, 0 to 1000, the lower end first.'
        )
    views = isinstance(prior, MultiViewPrior)
    if views and (options.words != 'none' or options.negatives != 'none'):
        raise UsageError(
            'distill.words and distill.negatives are for priors of pictures: a multi-view model knows its cameras.'
        )
    if options.negatives != 'none' and options.words == 'none':
        raise UsageError(f'distill.negatives={options.negatives!r} needs the words of sides: set distill.words=interpolated.')
    return (ViewsGuide if views else PictureGuide)(prior, options)


class PictureGuide:
    """A text-to-image model: every view is a picture of its own."""

    def __init__(self, prior: Prior, options: Options):
        self.prior, self.options, self.native = prior, options, prior.native

    def tokens(self, prompts: list[str]) -> dict[str, np.ndarray]:
        """{'text': ids [P, K, N] of each prompt with each of K sides (1 without words), 'none': [1, N]}, on the host."""
        tokenize = self.prior.tokenize
        plain = self.options.words == 'none'
        ids = np.asarray(tokenize(prompts))[:, None] if plain else view_prompts.tokens(tokenize, prompts)
        return {'text': ids, 'none': np.asarray(tokenize(['']))}

    def guide(self, given, tokens, images, drawn, keys, step, severity=None) -> Guided:
        """What the prior makes of images.

        Args:
          tokens: of `tokens`, as arrays. images: [P, V, H, W, 3] in [0, 1].
          drawn: the views' `cameras`, `azimuth` and `elevation`, each [P, V] (geom.camera_draws.Drawn).
          keys: [P]. step: of the optimisation; may be traced.
          severity: [P, V] in [0, 1] of the views (perp_neg.severity), for adaptive negatives.
        """
        options, prior = self.options, self.prior
        objects, views = images.shape[:2]
        z = prior.latents(given, 2.0 * resized(images.reshape(-1, *images.shape[2:]), self.native) - 1.0)
        each = jax.vmap(lambda key: timesteps.view_keys(key, jnp.arange(views)))(keys)
        t, noise = timesteps.draw(each.reshape(-1), prior.schedule, z.shape[1:], options.low, _high(options, step))
        text = jax.lax.stop_gradient(prior.encode(given, tokens['text'].reshape(-1, tokens['text'].shape[-1])))
        text = text.reshape(objects, -1, *text.shape[1:])  # [P, K, N, D]
        none = jnp.broadcast_to(prior.encode(given, tokens['none']), (objects * views, *text.shape[2:]))
        predict = lambda x, t, features: prior.predict(given, x, t, features)
        sides = jnp.repeat(text, views, axis=0)  # [P V, K, N, D]
        angles = drawn.azimuth.reshape(-1), drawn.elevation.reshape(-1)
        if options.negatives == 'none':
            denoise = _guided(predict, self.words(sides, *angles), none, options.scale)
        else:
            chosen = perp_neg.by_view(*angles)
            rows = perp_neg.rows(sides, none, chosen.shares).at[0].set(self.words(sides, *angles))
            weights = chosen.weights
            if options.negatives == 'adaptive':
                weights = perp_neg.adapted(weights, severity.reshape(-1), options.least, options.more)
            guided = perp_neg.guided(predict, rows, weights, options.scale)
            denoise = lambda x, t: (guided(x, t),) * 2
        return _result(denoise, prior.schedule, z, t, noise, options, views)

    def words(self, sides, azimuth, elevation):
        """Text features [B, N, D] of views, of those of the K sides [B, K, N, D]."""
        if self.options.words == 'none':
            return sides[:, 0]
        if self.options.words == 'nearest':
            return view_prompts.nearest(sides, azimuth, elevation)
        return view_prompts.mixed(sides, view_prompts.mixture(azimuth, elevation))


class ViewsGuide:
    """A multi-view model: all views of an object are judged together."""

    def __init__(self, prior: MultiViewPrior, options: Options):
        self.prior, self.options = prior, options
        self.native = prior.shape[0] * prior.pixels

    def tokens(self, prompts: list[str]) -> dict[str, np.ndarray]:
        """{'text': ids [P, N], 'none': [1, N]}, on the host."""
        return {'text': np.asarray(self.prior.tokenize(prompts)), 'none': np.asarray(self.prior.tokenize(['']))}

    def guide(self, given, tokens, images, drawn, keys, step, severity=None) -> Guided:
        """As PictureGuide.guide."""
        options, prior = self.options, self.prior
        objects, views = images.shape[:2]
        seen = resized(images.reshape(-1, *images.shape[2:]), self.native)
        z = prior.latents(given, seen.reshape(objects, views, *seen.shape[1:]))
        t, noise = timesteps.draw(keys, prior.schedule, z.shape[1:], options.low, _high(options, step))
        text = jax.lax.stop_gradient(prior.encode(given, tokens['text']))
        none = jnp.broadcast_to(prior.encode(given, tokens['none']), text.shape)
        inputs = prior.inputs(drawn.cameras, z.shape[2:])
        predict = lambda x, t, both: prior.predict(given, x, t, *both)
        denoise = _guided(predict, (text, inputs), (none, inputs), options.scale)
        return _result(denoise, prior.schedule, z, t, noise, options, views)


def surprise(metrics: dict[str, jax.Array]):
    """What is shown as the loss of distillation, whose value says nothing: |eps_hat - eps|, NaN where the prior fails."""
    return jnp.where(metrics['distill/not_finite'] > NOT_FINITE, jnp.nan, metrics['distill/residual'])


def resized(images, size: int):
    """Images [B, H, W, 3] at size x size, bilinear; its transpose is the backward pass."""
    if images.shape[1:3] == (size, size):
        return images
    return jax.image.resize(images, (images.shape[0], size, size, images.shape[3]), 'bilinear')


def _high(options: Options, step):
    """The upper end of the times at a step, in thousandths."""
    return optim.piecewise(step, ((0, options.high), (options.anneal, options.high_last))) if options.anneal else options.high


def _guided(predict: Callable, cond, uncond, scale: float) -> Callable:
    """(guided, conditional) outputs: the conditional model alone at scale 1, else one call of twice the batch."""
    if scale == 1.0:
        return lambda x, t: (predict(x, t, cond),) * 2
    return guidance.guided_pair(predict, cond, uncond, scale)


def _result(denoise, schedule, z, t, noise, options: Options, views: int) -> Guided:
    """The loss of latents z [B, ...], of which `views` belong to one object."""
    if options.method == 'sds':
        told = distill.sds_gradient(lambda x, t: denoise(x, t)[0], schedule, z, t, noise, options.weighting)
    else:
        told = distill.reconstruction_gradient(denoise, schedule, z, t, noise, options.rescale)
    gradient, told = told
    metrics = {
        'distill/residual': jnp.sqrt(jnp.mean(jnp.square(told.residual))),
        'distill/gradient': jnp.mean(told.norm),
        'distill/not_finite': told.broken / gradient.size,
    }
    return Guided(distill.inner(gradient, z) * (z.shape[0] / views), metrics)
