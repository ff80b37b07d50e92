"""A text-to-image model as functions: the one form in which it is handed to whatever samples it or distils it.

A `Prior` is made of a trained system (`System.functions` of image_diffusion), of a Stable Diffusion folder of the user's, or of
anything else with these functions. It holds no parameters: those are the first argument of each function, so that a prior can
be another system's `given`. x is what the network denoises, pixels or latents; a sampler never knows its rank.
"""

from collections.abc import Callable
from typing import NamedTuple

from t3d.diffusion.schedules import Schedule


class Prior(NamedTuple):
    """A text-to-image model, whatever it is made of.

    Attributes:
      schedule: its noise levels, and what the network predicts.
      tokenize: prompts -> int32 [B, N], on the host.
      encode: (params, ids) -> text features [B, N, D].
      predict: (params, x [B, H, W, C], t [B] or scalar, features) -> the network's output, in the schedule's prediction type.
      decode: (params, x) -> images [B, S, S, 3], about [-1, 1].
      shape: pixels per side -> (H, W, C) of x; raises UsageError for a side it cannot make.
      latents: (params, images [B, S, S, 3] in [-1, 1]) -> x; differentiable. The identity for a model of pixels.
      native: pixels per side it was trained at.
      guidance: the scale to take where none is asked for.
    """

    schedule: Schedule
    tokenize: Callable
    encode: Callable
    predict: Callable
    decode: Callable
    shape: Callable
    latents: Callable
    native: int
    guidance: float = 7.5  # usual for Stable Diffusion


class MultiViewPrior(NamedTuple):
    """A multi-view model, whatever it is made of; x is [B, V, H, W, C], V free at every call.

    Attributes:
      schedule: its noise levels, and what the network predicts.
      tokenize: prompts -> int32 [B, N], on the host.
      encode: (params, ids) -> text features [B, N, D].
      predict: (params, x, t [B] or scalar, features, inputs) -> the network's output, in the schedule's prediction type.
      inputs: (Cameras [B, V], shape of x or None) -> what `predict` is told of them; nets.mv_unet.NO_VIEWS with V = 1 is the
        2D mode.
      decode: (params, x) -> images [B, V, S, S, 3] in [0, 1].
      latents: (params, images [B, V, S, S, 3] in [0, 1]) -> x; differentiable. The identity up to scale for a model of pixels.
      shape: (H, W, C) of one view of x.
      pixels: of an image, for each position of x.
      rig: number of objects -> the Cameras [B, V] of generated views.
      guidance: the scale to take where none is asked for.
    """

    schedule: Schedule
    tokenize: Callable
    encode: Callable
    predict: Callable
    inputs: Callable
    decode: Callable
    latents: Callable
    shape: tuple[int, int, int]
    pixels: int
    rig: Callable
    guidance: float = 7.5
