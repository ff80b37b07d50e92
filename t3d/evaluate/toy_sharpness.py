"""How sharp text to 3D is on the toy set: held-out scenes of two objects, from free cameras, at a size of its own."""

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import rules
from t3d.data.sets import oracle, shapes, toy
from t3d.evaluate import drawing
from t3d.evaluate.toy_objects import refuse_split
from t3d.geom import cameras
from t3d.inference.loading import Loaded
from t3d.metrics import image
from t3d.metrics.scores import derangement

NAME = 'toy_sharpness'
PAIRED = True  # renders stand beside true views from the same cameras
CAPTIONED = True
NEEDS = {'data.name': 'toy', 'render.background': None}
LIMIT = rules.Whole(2, 1344, 'held-out scenes; a control needs another one')
SIZE, SUPERSAMPLE = 256, 3  # pixels of a view, and true rays along each side of one
SCENES, VIEWS = 50, 4  # unless `limit` says otherwise
COARSE = 32  # pixels of the control
REACH = 2  # pixels from an edge that belong to it


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """`sharp/psnr` over views, the share of the squared error near edges, and controls; `limit`: scenes.

    Controls: the true views of other scenes from the same cameras, and the true views themselves at COARSE pixels, drawn large
    by linear interpolation: what one would see of a model that had learned such pictures perfectly.
    """
    refuse_split(split)
    if limit is not None:
        rules.held('--limit', limit, LIMIT)
    scenes, angles = chosen(SCENES if limit is None else limit)
    renders = rendered(loaded, scenes, angles, log)
    others, background = derangement(len(scenes)), loaded.config.render.background
    quality, near, errors, controls = [], [], [], {'other_scenes': [], f'{COARSE}px': []}
    for k, scene in enumerate(scenes):
        true, edges = true_views(scene, *angles[k], background)
        wrong, _ = true_views(scenes[others[k]], *angles[k], background)
        quality.append(np.asarray(image.psnr(renders[k], true)))
        squared = np.mean(np.square(renders[k] - true), -1)
        near.append(squared[edges].sum())
        errors.append(squared.sum())
        controls['other_scenes'].append(np.asarray(image.psnr(wrong, true)))
        controls[f'{COARSE}px'].append(np.asarray(image.psnr(coarse(true), true)))
    return {
        'sharp/psnr': float(np.mean(quality)),
        'sharp/error_near_edges': float(np.sum(near) / max(np.sum(errors), 1e-12)),
        **{f'control/sharp/psnr_{name}': float(np.mean(values)) for name, values in controls.items()},
        'sharp/n': int(np.size(quality)),
    }


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """The same views and their truth; `limit`: scenes."""
    refuse_split(split)
    scenes, angles = chosen(SCENES if limit is None else limit)
    background = loaded.config.render.background
    true = np.stack([true_views(scene, *both, background)[0] for scene, both in zip(scenes, angles)])
    return drawing.Pictures([scene.captions[0] for scene in scenes], rendered(loaded, scenes, angles, log), true, True)


def chosen(count: int) -> tuple[list[shapes.Scene], np.ndarray]:
    """Held-out scenes of two objects, spread over all of them, and (azimuth, elevation) [N, 2, VIEWS] of their cameras."""
    every = shapes.pairs('test')
    scenes = [every[int(k)] for k in np.linspace(0, len(every) - 1, min(count, len(every)))]
    random = np.random.default_rng(0)
    low, high = toy.ELEVATION
    angles = np.stack(
        [random.uniform(0.0, 2.0 * np.pi, (len(scenes), VIEWS)), random.uniform(low, high, (len(scenes), VIEWS))], 1
    )
    return scenes, angles


def rendered(loaded: Loaded, scenes: list[shapes.Scene], angles: np.ndarray, log) -> np.ndarray:
    """Views [N, VIEWS, SIZE, SIZE, 3] of the scenes' captions."""
    log(f'rendering {len(scenes)} held-out scenes x {VIEWS} views of {SIZE} pixels')
    rigs = [toy.camera_arrays(*both, shapes.RADIUS, shapes.FOV) for both in angles]
    views = cameras.Cameras(*(np.stack(part) for part in zip(*rigs)))
    prompts, told = [scene.captions[0] for scene in scenes], drawing.progress(log, 'held-out scenes')
    return drawing.render_views(loaded, prompts, views, SIZE, evaluator=NAME, progress=told)


def true_views(scene: shapes.Scene, azimuth: np.ndarray, elevation: np.ndarray, background: float):
    """(views [V, SIZE, SIZE, 3] in [0, 1], which pixels lie within REACH of an edge [V, SIZE, SIZE])."""
    rig = toy.camera_arrays(azimuth, elevation, shapes.RADIUS, shapes.FOV)
    views = toy.render(scene, *rig, SIZE, SUPERSAMPLE)
    return oracle.composite(views['image'], background), near_edges(views['object'], views['normal'])


def near_edges(which: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Pixels [V, H, W] within REACH, along rows and columns, of one whose object is another or whose normal turns sharply."""
    size, found = which.shape[-1], np.zeros(which.shape, bool)
    for axis in (1, 2):
        ahead = np.roll(which, -1, axis) != which
        ahead |= (np.sum(np.roll(normal, -1, axis) * normal, -1) < 0.95) & (which >= 0)
        found |= ahead & (np.arange(size) < size - 1).reshape((1, -1, 1) if axis == 1 else (1, 1, -1))
    padded = np.pad(found, ((0, 0), (REACH, REACH), (REACH, REACH)))
    steps = range(2 * REACH + 1)
    return np.logical_or.reduce([padded[:, y : y + size, x : x + size] for y in steps for x in steps])


def coarse(views: np.ndarray) -> np.ndarray:
    """Views [V, SIZE, SIZE, 3] by way of COARSE pixels."""
    step = SIZE // COARSE
    small = views.reshape(len(views), COARSE, step, COARSE, step, 3).mean((2, 4))
    return np.asarray(jax.image.resize(jnp.asarray(small, jnp.float32), views.shape, 'linear'))
