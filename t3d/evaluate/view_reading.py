"""What scores of multi-view samples share: objects, views, the true renders beside them, and what the oracle reads in them."""

import functools

import jax
import numpy as np

from t3d.core import rules
from t3d.core.errors import UsageError
from t3d.data.sets import oracle, pattern_oracle, shapes, toy
from t3d.data.sets.pattern_oracle import Reading
from t3d.evaluate import drawing
from t3d.geom.cameras import Cameras
from t3d.inference.loading import Loaded
from t3d.metrics import image

LIMIT = rules.Whole(1, 2**31 - 1, 'samples of each caption')


def objects(sizes: tuple[str, ...] = ('large',)) -> tuple[list[shapes.Scene], np.ndarray]:
    """(the single objects of toy of some sizes, 32 of each, which of them are held out [N])."""
    things = [scene for scene in shapes.singles('all') if scene.attributes['size'] in sizes]
    return things, np.array([shapes.is_held_out(scene.attributes['shape'], scene.attributes['colour']) for scene in things])


def some_objects(count: int) -> list[shapes.Scene]:
    """At most `count` of the 32 large objects, evenly spread over shapes and colours."""
    things, _ = objects()
    return [things[int(k)] for k in np.linspace(0, len(things) - 1, min(count, len(things)))]


def appearance(loaded: Loaded) -> dict[str, float]:
    """{'background', 'supersample'} of a model's views; of a config that has no data of its own, white and 3 x 3 rays."""
    render, data = loaded.config.get('render', {}), loaded.config.get('data', {})
    return {'background': render.get('background', 1.0), 'supersample': data.get('supersample', 3)}


def draw(loaded: Loaded, prompts: list[str], log=lambda line: None, *, evaluator: str) -> tuple[np.ndarray, Cameras]:
    """(images [N, V, S, S, 3], cameras [N, V]) of prompts; UsageError for a model of other data, whose views have no labels."""
    if set_name(loaded) not in ('toy', 'toy_patterns'):
        raise UsageError(f'views of {set_name(loaded)!r} have no exact labels: this score is for models of toy.')
    background = appearance(loaded)['background']
    return drawing.views(loaded, prompts, evaluator=evaluator, background=background, log=log)


def true_views(
    scenes: list[shapes.Scene],
    cameras: Cameras,
    size: int,
    background: float = 1.0,
    supersample: int = 3,
    albedo=lambda _: None,
) -> np.ndarray:
    """True renders [N, V, size, size, 3] in [0, 1] of N scenes from cameras [N, V].

    Args:
      albedo: `scene -> the albedo of toy.render`.
    """
    known, images = {}, []
    for k, scene in enumerate(scenes):
        poses = np.asarray(cameras.world_from_cam[k]), np.asarray(cameras.intrinsics[k])
        key = (scene.captions[0], poses[0].tobytes(), poses[1].tobytes())
        if key not in known:
            rgba = toy.render(scene, *poses, size, supersample, albedo(scene))['image']
            known[key] = oracle.composite(rgba, background)
        images.append(known[key])
    return np.stack(images)


def read(
    images: np.ndarray, cameras: Cameras, names: tuple[str, ...] = ('plain',), background: float = 1.0, supersample: int = 3
) -> list[list[Reading]]:
    """Readings [N][V] of images [N, V, S, S, 3] from cameras [N, V]; objects with the same cameras share an oracle."""
    groups = {}
    for k in range(len(images)):
        key = tuple(np.asarray(leaf[k], np.float32).tobytes() for leaf in (cameras.world_from_cam, cameras.intrinsics))
        groups.setdefault(key, []).append(k)
    readings = [None] * len(images)
    for (world_from_cam, intrinsics), rows in groups.items():
        judge = _judge(world_from_cam, intrinsics, images.shape[1], images.shape[2], background, supersample, names)
        for k, views in zip(rows, judge.read(images[rows]), strict=True):
            readings[k] = views
    return readings


@functools.lru_cache(4)
def _judge(world_from_cam: bytes, intrinsics: bytes, views, size, background, supersample, names) -> pattern_oracle.ViewsOracle:
    """The oracle of cameras, kept: it is asked several times about one rig."""
    poses = (np.frombuffer(part, np.float32).reshape(views, n, n) for part, n in ((world_from_cam, 4), (intrinsics, 3)))
    return pattern_oracle.ViewsOracle(*poses, size, background=background, supersample=supersample, names=names)


def psnr_of_views(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio [N, V], in dB, of images and truth [N, V, S, S, 3]."""
    return jax.device_get(image.psnr(images, truth))


def psnr(images: np.ndarray, truth: np.ndarray) -> float:
    """Mean over views of the peak signal-to-noise ratio, in dB, of images and truth [N, V, S, S, 3]."""
    return float(np.mean(psnr_of_views(images, truth)))


def set_name(loaded: Loaded) -> str:
    """The data set of a model; joint samplers have none of their own and are asked for toy's objects."""
    return loaded.config.get('data', {}).get('name', 'toy')
