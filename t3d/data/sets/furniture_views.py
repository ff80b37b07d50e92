"""Renders catalogue objects: the rig of the views, colour words, recoloured variants, and the pool that does them all.

What a worker writes is an npz with PNG bytes of every (variant, view), depth in steps of DEPTH_STEP and a JSON `meta`; the
builder (data/sets/furniture.py) packs those. Nothing here needs TFDS.
"""

import dataclasses
import io
import json
import pathlib
import time
import zipfile

import numpy as np

from t3d.core import files, workers
from t3d.core.errors import UsageError
from t3d.data.sets import captions, objmesh, raycast, sweethome
from t3d.geom import cameras

VIEWS = 16
TRAIN_VIEWS = 12  # views 0 .. 11 train, 12 .. 15 are held out
CAMERA_RADIUS = 3.5
FOV = 0.7027699  # radians
OBJECT_RADIUS = 0.9
RING_ELEVATIONS = (0.0, 15.0, 30.0)  # degrees, in turn
RANDOM_ELEVATIONS = (-10.0, 45.0)  # degrees
SUPERSAMPLE = 2
DEPTH_STEP = 1.0 / 8192.0  # scene units
MAX_VARIANTS = len(captions.PALETTE) - 1
RECOLOUR_SHARE = 0.5  # of the visible pixels that a material needs to be recoloured
STATISTICS_VIEWS = (0, 2, 4, 5, 8, 10)  # all sides, level to 30 degrees, for colour words and visible materials
STATISTICS_SIZE = 64
LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)  # ITU-R BT.709


# -------------------------------------------------------------------------------------------------------------- views


def view_angles(object_id: str) -> tuple[np.ndarray, np.ndarray]:
    """(azimuth, elevation) float32 [VIEWS] in radians: the fixed ring, then the object's own random views."""
    ring = TRAIN_VIEWS
    rng = np.random.default_rng(sweethome.bucket(object_id, 2**32))
    azimuth = np.concatenate([np.arange(ring) * 360.0 / ring, rng.uniform(0.0, 360.0, VIEWS - ring)])
    elevation = np.concatenate([np.resize(RING_ELEVATIONS, ring), rng.uniform(*RANDOM_ELEVATIONS, VIEWS - ring)])
    return np.radians(azimuth).astype(np.float32), np.radians(elevation).astype(np.float32)


def rigs(object_ids: list[str]) -> list[dict[str, np.ndarray]]:
    """Cameras of every object: azimuth, elevation [V], world_from_cam [V, 4, 4], intrinsics [V, 3, 3]."""
    azimuth, elevation = (np.stack(angles) for angles in zip(*map(view_angles, object_ids)))
    rig = cameras.orbit(azimuth, elevation, CAMERA_RADIUS, FOV)
    arrays = {
        'azimuth': azimuth,
        'elevation': elevation,
        'world_from_cam': np.asarray(rig.world_from_cam),
        'intrinsics': np.asarray(rig.intrinsics),
    }
    return [{key: value[index] for key, value in arrays.items()} for index in range(len(object_ids))]


# ---------------------------------------------------------------------------------------------------------- rendering


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker needs to render one object."""

    library: sweethome.Library
    entry: sweethome.Entry
    rig: dict[str, np.ndarray]
    size: int
    variants: int
    target: pathlib.Path


def render_object(task: Task) -> str:
    """Renders all views and variants of an object into `task.target` (an npz, written whole or not at all); returns its id.

    An object that cannot be rendered leaves the reason in `skipped_file(task)` instead.
    """
    try:
        arrays = _render(task)
    except (UsageError, KeyError, ValueError, OverflowError, MemoryError, OSError) as error:
        skipped_file(task).write_text(str(error) or type(error).__name__, encoding='utf-8', errors='replace')
        return task.entry.object_id
    partial = files.part_of(task.target)  # a killed build may leave a worker at the same object, and hosts may share a folder
    with open(partial, 'wb') as file:
        np.savez(file, **arrays)
    partial.replace(task.target)
    return task.entry.object_id


def skipped_file(task: Task) -> pathlib.Path:
    """Where the reason stands if an object was left out."""
    return task.target.with_name(task.target.name + '.skipped')


def _render(task: Task) -> dict[str, np.ndarray]:
    mesh = objmesh.load(task.library.model(task.entry), task.library.read, task.library.locate)
    if not len(mesh.positions):
        raise UsageError(f'it has no triangle ({mesh.num_vertices} vertices, {mesh.dropped} faces that cannot be drawn)')
    mesh = sweethome.rotate(mesh, task.entry)
    mesh = dataclasses.replace(mesh, positions=raycast.fit_sphere(mesh.positions, OBJECT_RADIUS))
    scene = raycast.Scene(mesh, task.library.read)
    poses, lens = task.rig['world_from_cam'], task.rig['intrinsics']
    seen = [raycast.view_hits(scene, poses[view], lens[view], STATISTICS_SIZE, 1) for view in STATISTICS_VIEWS]
    statistics = _statistics(seen, len(mesh.parts))
    colours = _variant_colours(task.entry.object_id, statistics, task.variants)
    arrays, depth, visible = {}, [], False
    for view in range(VIEWS):
        hits = raycast.view_hits(scene, poses[view], lens[view], task.size, SUPERSAMPLE)
        for variant, colour in enumerate(['', *colours]):
            albedo = recolour(hits, statistics, captions.PALETTE[colour]) if colour else hits.albedo
            arrays[f'png_{variant}_{view}'] = _png(raycast.image(hits, albedo, task.size, SUPERSAMPLE))
        visible = visible or bool(hits.alpha.any())
        depth.append(raycast.planar_depth(scene, poses[view], lens[view], task.size))
    if not visible:
        raise UsageError('no view shows any of its triangles: they are all degenerate or invisible')
    meta = {
        'colours': [statistics['colour'], *colours],
        'signature': [len(mesh.positions), mesh.num_vertices, len(mesh.parts)],
        'missing': [*mesh.missing, *scene.unread],
        'dropped': mesh.dropped,
        'share': float(statistics['share']),
    }
    arrays['depth'] = np.round(np.stack(depth) / DEPTH_STEP).astype(np.uint16)
    arrays['meta'] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    return arrays


def _statistics(seen: list[raycast.Hits], num_parts: int) -> dict:
    """Over all rays: the colour word, the part most seen, its share of what is seen, its mean colour and luminance."""
    weights = np.concatenate([hits.weights().ravel() for hits in seen])
    part = np.concatenate([hits.part.ravel() for hits in seen])[weights > 0.0]
    albedo = np.concatenate([hits.albedo.reshape(-1, 3) for hits in seen])[weights > 0.0]
    weights = weights[weights > 0.0]
    if not len(weights):
        return {'colour': '', 'part': 0, 'share': 0.0, 'mean': np.zeros(3), 'luminance': 1.0}
    visible = np.bincount(part, weights, num_parts)
    main = int(visible.argmax())
    mean = np.average(albedo[part == main], axis=0, weights=weights[part == main])
    return {
        'colour': captions.colour_word(albedo, weights),
        'part': main,
        'share': visible[main] / visible.sum(),
        'mean': mean,
        'luminance': max(float(mean @ LUMINANCE), 1e-3),
    }


def _variant_colours(object_id: str, statistics: dict, count: int) -> list[str]:
    """Palette colours for `count` variants in the object's own order, without the one it has, spoken or nearly."""
    if not count or statistics['share'] <= RECOLOUR_SHARE:
        return []
    names = list(captions.PALETTE)
    distance = ((captions.lab(list(captions.PALETTE.values())) - captions.lab(statistics['mean'])) ** 2).sum(-1)
    nearest = names[int(distance.argmin())]
    names.remove(statistics['colour'] if statistics['colour'] in names else nearest)
    order = np.random.default_rng(sweethome.bucket(object_id + '|colours', 2**32)).permutation(len(names))
    return [names[index] for index in order[:count]]


def recolour(hits: raycast.Hits, statistics: dict, target) -> np.ndarray:
    """Albedo [L, N, 3] with the main part in the `target` colour, its texture kept as relative luminance."""
    relative = hits.albedo @ LUMINANCE / np.float32(statistics['luminance'])
    if statistics['luminance'] < 0.02:  # a black part has no texture to keep
        relative = np.ones_like(relative)
    tinted = np.clip(relative[..., None] * np.asarray(target, np.float32), 0.0, 1.0)
    return np.where((hits.part == statistics['part'])[..., None], tinted, hits.albedo)


def _png(pixels: np.ndarray) -> np.ndarray:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG')
    return np.frombuffer(buffer.getvalue(), np.uint8)


def render_all(tasks: list[Task], processes: int, label: str) -> None:
    """Renders what is neither rendered nor skipped yet, with a progress line every few seconds."""
    waiting = [task for task in tasks if not zipfile.is_zipfile(task.target) and not skipped_file(task).exists()]
    done = len(tasks) - len(waiting)
    if done:
        print(f'{label}: {done} of {len(tasks)} objects were rendered before', flush=True)
    if not waiting:
        return
    start = last = time.monotonic()
    for count, _ in enumerate(workers.results(render_object, waiting, processes, doing='rendering', done='rendered'), 1):
        now = time.monotonic()
        if now - last > 10.0 or count == len(waiting):
            last, rate = now, count / (now - start)
            left = (len(waiting) - count) / rate
            print(f'{label}: {done + count}/{len(tasks)} objects, {rate:.1f} a second, {left:.0f} s left', flush=True)
