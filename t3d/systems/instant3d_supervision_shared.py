"""What the supervisions of Instant3D have in common: what one is, its preview beside true views, and what it refuses."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t3d.core import numerics
from t3d.core.errors import UsageError
from t3d.fields.text_field import TextField
from t3d.geom import cameras


class Supervision(NamedTuple):
    """What renders are held to.

    Attributes:
      loss: `(params, extras, given, batch, key, step) -> (loss, (metrics, extras))`.
      extras: `() -> what the state carries beside the network`.
      preview: `(scenes, batch) -> images [B, H, W, 3]` of the contact sheet.
      batch_spec: what the data pipeline delivers.
      learned: `(key) -> parameters` beside those of the networks.
      noise: `(params, key, count) -> style noise [count, Z]` of what is generated; None for that of `model.noise`.
    """

    loss: Callable
    extras: Callable
    preview: Callable
    batch_spec: dict[str, jax.ShapeDtypeStruct]
    learned: Callable = lambda key: {}
    noise: Callable | None = None


def over(rgba: jax.Array, background) -> jax.Array:
    """uint8 straight-alpha RGBA over a grey level or colour: float32 in [0, 1]."""
    rgba = rgba.astype(jnp.float32) / 255.0
    return rgba[..., :3] * rgba[..., 3:] + background * (1.0 - rgba[..., 3:])


def refuse_given(given, name: str) -> None:
    """Raises UsageError for a model that was given to a supervision that reads none."""
    for key, one in given.items():
        raise UsageError(
            f'given.{key}={one.name!r}: supervision={name!r} learns from views alone: leave it out, or start from '
            'configs/instant3d.py:sds.'
        )


def beside_truth(config, model: TextField) -> Callable:
    """The preview of what learns from posed views: those rendered, and beside them the true ones."""

    def preview(scene, batch):
        views = cameras.Cameras(batch['world_from_cam'], batch['intrinsics'])
        height, width = batch['image'].shape[2:4]
        out = model.render_scene(scene, cameras.rays(views, height, width))
        rendered = jnp.clip(out.features, 0.0, 1.0)  # [B, V, H, W, 3]
        true = over(batch['image'], config.render.background)
        both = jnp.concatenate([rendered, true], 1)
        return numerics.side_by_side(both)

    return preview
