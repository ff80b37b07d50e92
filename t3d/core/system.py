"""The contract between a text-to-3D system and everything that runs it.

A system is a `NamedTuple` of pure functions, as an optax transformation is. The training loop, the command line and the
exporters know these names and nothing else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import jax

from t3d.core.typing import PyTree

Metrics = dict[str, jax.Array]  # scalars by name; 'loss' is the total, 'loss/<part>' its parts


@flax.struct.dataclass
class TrainState:
    """Everything a training step reads and writes; the whole of it is checkpointed."""

    step: jax.Array  # int32 scalar, number of finished steps
    params: PyTree  # float32
    opt_state: PyTree
    ema: PyTree  # exponential moving average of params; never aliases them
    extras: PyTree  # what else a system carries: caches, a second network; {} for most


class System(NamedTuple):
    """A text-to-3D method as pure functions.

    Attributes:
      init: `(key, batch) -> TrainState`; jitted by the loop with sharded outputs.
      train_step: `(state, batch, key) -> (state, metrics)`; pure, traced once, its state donated.
      preview: `(params, batch, key) -> images [N, H, W, 3]` in [0, 1], one image per row of the contact sheet.
      generate: `(params, prompts, key) -> list[Asset]`, one asset for each prompt; list[Picture] where a system makes pictures.
      sharding: `((path regex, PartitionSpec), ...)`; first match wins, the rest falls back to parallel.sharding's rule.
      batch_spec: name -> `jax.ShapeDtypeStruct` of the global batch: what the data pipeline must deliver.
    """

    init: Callable[..., TrainState]
    train_step: Callable[..., tuple[TrainState, Metrics]]
    preview: Callable[..., jax.Array]
    generate: Callable[..., list['Asset'] | list['Picture']]
    sharding: tuple
    batch_spec: dict[str, jax.ShapeDtypeStruct]


class Picture(NamedTuple):
    """One generated picture, of a system that makes no 3D object."""

    prompt: str
    image: jax.Array  # [H, W, 3] in [0, 1]


class Asset(NamedTuple):
    """One generated object, in the form that t3d.export writes.

    `field` and `render` are jit-compatible functions of `scene`, so that every asset of a system shares one compiled program.

    Attributes:
      prompt: the text it was made from.
      scene: pytree of arrays.
      field: `(scene, points [N, 3]) -> (density [N] >= 0 per scene unit, rgb [N, 3] in [0, 1])`; world coordinates.
      render: `(scene, rays) -> geom.volume.RenderOutput`; rays is a geom.rays.Rays of any leading shape, the colour is
        composited over the background and in [0, 1].
      bound: half the side of the world cube that holds the object.
      camera: `{'radius': float, 'fov': float}` the orbit the system was trained for, scene units and radians.
      picture: `(scene, cameras [V]) -> images [V, S, S, 3]` in [0, 1], for systems whose pictures are more than the colours of
        the field (an upsampler behind the renderer): what turntables show. None for the others.
    """

    prompt: str
    scene: PyTree
    field: Callable
    render: Callable
    bound: float
    camera: dict[str, Any]
    picture: Callable | None = None
