"""How sharp text to 3D is on the toy set: held-out scenes, from free cameras, at a size of its own.

The scenes have two objects each; of weights that learned single objects (`data.scenes='singles'`) they have one.

What is judged are pictures as people get them (export/renders.py): where a picture changes, a pixel is the mean of several
rays, as it is in the truth. One ray through the middle of each pixel is told too: of the true solids themselves it gives 35 dB.
"""

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import prng, rules
from t3d.core.outputs import Field
from t3d.data.sets import oracle, shapes, toy
from t3d.evaluate import drawing
from t3d.evaluate.toy_objects import refuse_split
from t3d.export import renders
from t3d.geom import cameras, meshing
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
BATCH, GRID = 8, 96  # scenes generated at once; cells a side of what tells where a field is empty


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """`sharp/psnr` over views, the share of the squared error near edges, and controls; `limit`: scenes.

    Controls: the true views of other scenes from the same cameras, and the true views themselves at COARSE pixels, drawn large
    by linear interpolation: what one would see of a model that had learned such pictures perfectly. `sharp/psnr_one_ray` is of
    the same fields by a ray for each pixel, and `control/sharp/psnr_one_ray_of_truth` of the true solids.
    """
    refuse_split(split)
    if limit is not None:
        rules.held('--limit', limit, LIMIT)
    scenes, angles = chosen(loaded.config, SCENES if limit is None else limit)
    renders = rendered(loaded, scenes, angles, log)
    others, background = derangement(len(scenes)), loaded.config.render.background
    quality, plain, near, errors = [], [], [], []
    controls = {'other_scenes': [], f'{COARSE}px': [], 'one_ray_of_truth': []}
    for k, scene in enumerate(scenes):
        true, edges = true_views(scene, *angles[k], background)
        wrong, _ = true_views(scenes[others[k]], *angles[k], background)
        smooth, single = renders[k]
        quality.append(np.asarray(image.psnr(smooth, true)))
        plain.append(np.asarray(image.psnr(single, true)))
        squared = np.mean(np.square(smooth - true), -1)
        near.append(squared[edges].sum())
        errors.append(squared.sum())
        controls['other_scenes'].append(np.asarray(image.psnr(wrong, true)))
        controls[f'{COARSE}px'].append(np.asarray(image.psnr(coarse(true), true)))
        hard, _ = true_views(scene, *angles[k], background, supersample=1)
        controls['one_ray_of_truth'].append(np.asarray(image.psnr(hard, true)))
    return {
        'sharp/psnr': float(np.mean(quality)),
        'sharp/psnr_one_ray': float(np.mean(plain)),
        'sharp/error_near_edges': float(np.sum(near) / max(np.sum(errors), 1e-12)),
        **{f'control/sharp/psnr_{name}': float(np.mean(values)) for name, values in controls.items()},
        'sharp/n': int(np.size(quality)),
    }


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """The same views and their truth; `limit`: scenes."""
    refuse_split(split)
    scenes, angles = chosen(loaded.config, SCENES if limit is None else limit)
    background = loaded.config.render.background
    true = np.stack([true_views(scene, *both, background)[0] for scene, both in zip(scenes, angles)])
    shown = np.stack([smooth for smooth, _ in rendered(loaded, scenes, angles, log)])
    return drawing.Pictures([scene.captions[0] for scene in scenes], shown, true, True)


def chosen(config, count: int) -> tuple[list[shapes.Scene], np.ndarray]:
    """Held-out scenes, spread over all of their kind, and (azimuth, elevation) [N, 2, VIEWS] of their cameras."""
    every = shapes.singles('test') if config.data.get('scenes') == 'singles' else shapes.pairs('test')
    scenes = [every[int(k)] for k in np.linspace(0, len(every) - 1, min(count, len(every)))]
    random = np.random.default_rng(0)
    low, high = toy.ELEVATION
    angles = np.stack(
        [random.uniform(0.0, 2.0 * np.pi, (len(scenes), VIEWS)), random.uniform(low, high, (len(scenes), VIEWS))], 1
    )
    return scenes, angles


def rendered(loaded: Loaded, scenes: list[shapes.Scene], angles: np.ndarray, log) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each scene's caption (views [VIEWS, SIZE, SIZE, 3] as people get them, the same by a ray for each pixel)."""
    log(f'rendering {len(scenes)} held-out scenes x {VIEWS} views of {SIZE} pixels')
    prompts, told = [scene.captions[0] for scene in scenes], drawing.progress(log, 'held-out scenes')
    images = []
    for start in range(0, len(scenes), BATCH):
        some = np.minimum(np.arange(start, start + BATCH), len(scenes) - 1)  # one shape, one compilation
        keys = jax.vmap(jax.random.fold_in, (None, 0))(prng.key(0), jnp.asarray(some))
        for k, field in zip(
            some[: len(scenes) - start], drawing.generate(loaded, [prompts[k] for k in some], keys, Field, NAME)
        ):
            views = cameras.Cameras(*toy.camera_arrays(*angles[k], shapes.RADIUS, shapes.FOV))
            grid = meshing.density_grid(field.field, field.scene, field.bound, GRID)
            single = renders.render_views(field, views, SIZE, grid=grid)
            images.append((renders.smoothed(field, views, single).rgb, single.rgb))
            told(len(images), len(scenes))
    return images


def true_views(
    scene: shapes.Scene, azimuth: np.ndarray, elevation: np.ndarray, background: float, supersample: int = SUPERSAMPLE
):
    """(views [V, SIZE, SIZE, 3] in [0, 1], which pixels lie within REACH of an edge [V, SIZE, SIZE])."""
    rig = toy.camera_arrays(azimuth, elevation, shapes.RADIUS, shapes.FOV)
    views = toy.render(scene, *rig, SIZE, supersample)
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
