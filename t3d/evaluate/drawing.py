"""Renders and pictures of what a loaded model generates, in batches of one shape."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d import systems
from t3d.core import config as configs
from t3d.core import prng
from t3d.core.errors import UsageError
from t3d.core.outputs import Field, Picture, Views, kind_of
from t3d.geom import cameras
from t3d.inference.loading import Loaded

EVERY = 3.0  # seconds between lines of progress


class Pictures(NamedTuple):
    """What a model shows and what is true.

    Attributes:
      prompts: [N].
      shown: [N, V, H, W, 3] in [0, 1], V views (or samples) of each prompt.
      true: the same shape; from the same cameras where `paired`.
    """

    prompts: list[str]
    shown: np.ndarray
    true: np.ndarray
    paired: bool


def generate(loaded: Loaded, prompts: list[str], keys, kind: type, evaluator: str) -> list:
    """Outputs of one kind; UsageError where the system makes another, which this evaluator cannot judge."""
    outputs = loaded.generate(prompts, keys)
    for output in outputs:
        if not isinstance(output, kind):
            raise UsageError(
                f'evaluate={evaluator!r} judges a {kind.__name__.lower()}, and {loaded.config.system} makes a '
                f'{kind_of(output)}: name another evaluator, with `t3d eval RUN --evaluate NAME`.'
            )
    return outputs


def render_views(
    loaded: Loaded,
    prompts: list[str],
    views: cameras.Cameras,
    size: int,
    *,
    evaluator: str,
    batch: int = 32,
    seed: int = 0,
    progress=lambda done, total: None,
) -> np.ndarray:
    """Renders of each prompt: [N, V, size, size, 3] in [0, 1] over the config's background.

    Args:
      views: leading shape [V] (the same for all) or [N, V].
      evaluator: the name of who asks, for messages.
    """
    shared = views.world_from_cam.ndim == 3
    draw, images = None, []
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        some = some + [some[-1]] * (batch - len(some))  # one shape, one compilation
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(prng.key(seed), start), jnp.arange(batch))
        fields = generate(loaded, some, keys, Field, evaluator)
        draw = draw or _renderer(fields[0].render, size)
        for k, field in enumerate(fields[: len(prompts) - start]):
            own = views if shared else jax.tree.map(lambda leaf, n=start + k: leaf[n], views)
            images.append(np.asarray(draw(field.scene, own)))
        progress(len(images), len(prompts))
    return np.stack(images)


def samples(loaded: Loaded, prompts: list[str], *, evaluator: str, batch: int = 64, seed: int = 0) -> np.ndarray:
    """Pictures [N, H, W, 3] in [0, 1] of prompts, by a system that makes pictures without a camera."""
    images = []
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        filled = some + [some[-1]] * (batch - len(some))  # one shape, one compilation
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(prng.key(seed), start), jnp.arange(batch))
        made = generate(loaded, filled, keys, Picture, evaluator)
        images += [np.asarray(picture.image) for picture in made[: len(some)]]
    return np.stack(images)


def views(
    loaded: Loaded,
    prompts: list[str],
    *,
    evaluator: str,
    background: float = 1.0,
    batch: int = 16,
    seed: int = 0,
    log=lambda line: None,
) -> tuple[np.ndarray, cameras.Cameras]:
    """(images [N, V, H, W, 3] in [0, 1], their cameras [N, V]) of prompts, by a system that makes posed views.

    Object k depends on its prompt, the seed and k alone.

    Args:
      background: grey level behind views with alpha.
    """
    made, tell = [], progress(log, 'drawing views')
    for start in range(0, len(prompts), batch):
        index = np.minimum(np.arange(start, start + batch), len(prompts) - 1)  # one shape, one compilation
        keys = jax.vmap(jax.random.fold_in, (None, 0))(prng.key(seed), jnp.asarray(index))
        outputs = generate(loaded, [prompts[k] for k in index], keys, Views, evaluator)
        made += outputs[: len(prompts) - start]
        tell(len(made), len(prompts))
    images = np.stack([np.asarray(output.images, np.float32) for output in made])
    if images.shape[-1] == 4:
        images = images[..., :3] * images[..., 3:] + background * (1.0 - images[..., 3:])
    poses = [np.stack([np.asarray(getattr(output, name)) for output in made]) for name in ('world_from_cam', 'intrinsics')]
    return np.clip(images, 0.0, 1.0), cameras.Cameras(*poses)


def pictures(
    loaded: Loaded, prompts: list[str], views: cameras.Cameras, size: int, *, evaluator: str, batch: int = 16, seed: int = 0
) -> np.ndarray:
    """Pictures [N, V, S, S, 3] in [0, 1] of prompts, as the system shows them: after an upsampler where there is one.

    Object k depends on its prompt, the seed and k alone.

    Args:
      views: [N, V] cameras, or [V] for all objects alike.
      size: S of systems whose pictures are renders of the field; others have a size of their own.
    """
    if views.world_from_cam.ndim == 3:
        views = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(prompts), *leaf.shape)), views)
    parts, look = [], None
    for start in range(0, len(prompts), batch):
        index = np.minimum(np.arange(start, start + batch), len(prompts) - 1)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(prng.key(seed), jnp.asarray(index))
        fields = generate(loaded, [prompts[k] for k in index], keys, Field, evaluator)
        look = look or _look(fields[0], size)
        scenes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[field.scene for field in fields])
        parts.append(np.asarray(look(scenes, jax.tree.map(lambda leaf, index=index: jnp.asarray(leaf)[index], views))))
    return np.concatenate(parts)[: len(prompts)]


def with_sampling(loaded: Loaded, **changes) -> Loaded:
    """The same weights with other values of the config's `sample` section, for example guidance=5.0 or steps=250."""
    config = loaded.config.to_dict()
    unknown = sorted(set(changes) - set(config.get('sample', {})))
    if unknown:
        raise UsageError(configs.unknown(unknown[0], config.get('sample', {}), 'sampling option'))
    changed = configs.from_dict({**config, 'sample': {**config['sample'], **changes}})
    return loaded._replace(config=changed, system=systems.make(changed, loaded.given))


def _look(field: Field, size: int):
    """(stacked scenes [B], cameras [B, V]) -> pictures [B, V, S, S, 3], one object after the other."""

    def one(item):
        scene, views = item
        if field.picture is not None:
            return field.picture(scene, views)
        return jax.lax.map(lambda ray: jnp.clip(field.render(scene, ray).features, 0.0, 1.0), cameras.rays(views, size, size))

    return jax.jit(lambda scenes, views: jax.lax.map(one, (scenes, views)))


def progress(log, what: str):
    """A `progress` of `render_views` that tells `log` how far `what` is, every few seconds, and when it will be done."""
    began, told = time.perf_counter(), 0.0

    def tell(done: int, total: int) -> None:
        nonlocal told
        passed = time.perf_counter() - began
        if passed > told + EVERY or (told and done == total):
            log(f'{what}: {done}/{total} prompts  {passed:.0f} s  eta {passed / done * (total - done):.0f} s')
            told = passed

    return tell


def _renderer(render, size):
    @jax.jit
    def draw(scene, views):
        rays = cameras.rays(views, size, size)
        return jax.lax.map(lambda ray: jnp.clip(render(scene, ray).features, 0.0, 1.0), rays)

    return draw
