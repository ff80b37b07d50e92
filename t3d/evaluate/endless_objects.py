"""Scores of text to triplanes on `toy_endless`: does an object that was never seen show what its caption says?

Captions are those of objects of the test split, one sample of each, read by data.sets.endless_reader from one camera, and from
another one for whether both views show one thing. Controls: what other captions say, the true objects from the same cameras;
for distances between sets, true objects that share nothing with those of the target; for GANFusion its stage-1 generator, which
is scored alone where it is what was loaded.
"""

import os

import numpy as np

from t3d.core.errors import UsageError
from t3d.data.sets import camera_labels, endless, endless_reader, oracle, shapes, toy
from t3d.evaluate import captioned_objects, drawing, generated_objects
from t3d.export import sheets
from t3d.fields.triplane_generator import Generator
from t3d.geom import cameras
from t3d.inference.loading import Loaded
from t3d.metrics.scores import attribute_shares

NAME = 'endless_objects'
PAIRED = True  # every caption is of an object of the test split
CAPTIONED = True
NEEDS = {'data.name': 'toy_endless', 'render.background': None}
data_config = captioned_objects.data_config
SAMPLES = 512  # captions
SLOTS = ('shape', 'colour', 'size', 'shape_b', 'colour_b')
CLEAR = 0.5  # distances up to here are objects of the grammar; true ones from all cameras are below 0.45
VIEWS = 2
ROWS, TURNS = 6, 8  # of the sheet


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """All scores of a run, and samples.png where `loaded` is a run folder.

    - shares of samples with the shape, colour and size of their caption, over the `_n` captions that have them: one solid alone
      has a size, the lower of two `shape_b` and `colour_b`. `solids`: the right number of them; `both`: all shapes and colours,
      and no more. shuffled: all other captions.
    - `alike/`: shares of which two views show the same. `clear`: of which a picture is within CLEAR of a true object.
    - `test/`: FID-tiny and KID-tiny to as many true objects; control: as many further ones. A picture of each, and no object or
      camera is in two of these sets; words are drawn anew for each object.

    Args:
      limit: captions, and objects of each set; None for 512.
    """
    generated_objects.refuse_split(split)
    data, count = data_config(loaded), SAMPLES if limit is None else limit
    if count < 2:
        raise UsageError(f'--limit {count}: wanted at least 2 captions.')
    reader = endless_reader.Reader(data.render.background)
    labels, scenes = views_of(count), asked_for(data, count)
    known = labels[:, :VIEWS]
    log(f'drawing {3 * count} true objects')
    true, (target, others) = true_pictures(scenes, known, data), true_sets(data, count)
    texts = [scene.captions[0] for scene in scenes]
    alone = isinstance(loaded.system.functions, Generator)
    log(f'drawing {count} samples from {VIEWS + 1} sides')
    images = of_generator(loaded.system.functions, loaded.weights, labels, 1.0) if alone else draw(loaded, texts, labels, data)
    scores = readings(reader, images[:, :VIEWS], known, None if alone else scenes)
    scores |= {f'control/true/{name}': value for name, value in readings(reader, true, known, scenes).items()}
    scores |= under('test', generated_objects.distances(images[:, VIEWS], target, others))
    if generators := [one for one in loaded.given.values() if isinstance(one.functions, Generator)]:
        ceiling = of_generator(generators[0].functions, generators[0].params, labels, loaded.config.psi)
        measured = readings(reader, ceiling[:, :VIEWS], known, None)
        measured |= under('test', generated_objects.distances(ceiling[:, VIEWS], target, others))
        scores |= {f'ceiling/{name}': value for name, value in measured.items() if 'control' not in name}
    if loaded.run is not None and not alone:
        log(f'open {write_sheet(loaded, data, loaded.run)}')
    return scores


def under(name: str, scores: dict[str, float]) -> dict[str, float]:
    """Scores under a name, so that those of another evaluator stand beside them; controls stay controls."""
    control = 'control/'
    moved = lambda key: f'{control}{name}/{key.removeprefix(control)}' if key.startswith(control) else f'{name}/{key}'
    return {moved(key): value for key, value in scores.items()}


def seen_from(count: int) -> np.ndarray:
    """float32 [count, 2, 25]: two different cameras of the reader for each object."""
    known, random = endless_reader.labels(), np.random.default_rng(61)
    return known[np.stack([random.permutation(len(known))[:VIEWS] for _ in range(count)])]


def free_views(count: int) -> np.ndarray:
    """float32 [count, 25]: a camera for each object, drawn as those of the set are; of fewer objects the first ones."""
    low, high = np.array([0.0, toy.ELEVATION[0]]), np.array([2.0 * np.pi, toy.ELEVATION[1]])
    azimuth, elevation = np.random.default_rng(67).uniform(low, high, (count, 2)).T
    return camera_labels.concatenate(*toy.camera_arrays(azimuth, elevation, shapes.RADIUS, shapes.FOV))


def views_of(count: int) -> np.ndarray:
    """float32 [count, 3, 25]: of each sample two cameras of the reader, and a free one for distances between sets."""
    return np.concatenate([seen_from(count), free_views(count)[:, None]], 1)


def asked_for(data, count: int, first: int = 0) -> list[shapes.Scene]:
    """Objects of the test split, those of the captions first."""
    return [endless.scene(data.data.seed, 'test', index) for index in range(first, first + count)]


def true_sets(data, count: int) -> list[np.ndarray]:
    """Two sets [count, S, S, 3] of true objects that no caption asks for, each seen from a camera of its own."""
    views = free_views(3 * count)[:, None]  # the first `count` are those of the samples
    starts = (count, 2 * count)
    return [true_pictures(asked_for(data, count, first), views[first : first + count], data)[:, 0] for first in starts]


def draw(loaded: Loaded, prompts: list[str], labels: np.ndarray, data) -> np.ndarray:
    """[N, V, S, S, 3] in [0, 1]: pictures of each prompt from its labels [N, V, 25]."""
    views = cameras.from_eg3d(labels)
    return drawing.pictures(loaded, prompts, views, data.data.size, evaluator=NAME)


def of_generator(functions: Generator, params, labels: np.ndarray, psi: float) -> np.ndarray:
    """The same of as many objects of a generator."""
    renderer = generated_objects.GanRenderer(functions, params)
    styles = renderer.styles(generated_objects.FIRST + np.arange(len(labels)), psi)
    return np.stack([renderer.images(styles, labels[:, view]) for view in range(labels.shape[1])], 1)


def true_pictures(scenes, labels: np.ndarray, data) -> np.ndarray:
    """The same of true objects."""
    made = []
    for scene, own in zip(scenes, labels, strict=True):
        made.append(toy.render(scene, *camera_labels.parts(own), data.data.size, data.data.supersample)['image'])
    return oracle.composite(np.stack(made), data.render.background)


def readings(reader: endless_reader.Reader, images: np.ndarray, labels: np.ndarray, scenes) -> dict[str, float]:
    """Scores of pictures [N, 2, S, S, 3] of objects that should be `scenes`, or of whatever objects they are (None)."""
    first, second = (reader(images[:, view, None], labels[:, view, None]) for view in range(VIEWS))
    same = [{slot: a.get(slot) == b.get(slot) for slot in SLOTS} for a, b in zip(first, second, strict=True)]
    shapes_alike = [one['shape'] and one['shape_b'] for one in same]
    colours_alike = [one['colour'] and one['colour_b'] for one in same]
    scores = {
        'alike/shape': float(np.mean(shapes_alike)),
        'alike/colour': float(np.mean(colours_alike)),
        'alike/both': float(np.mean(np.logical_and(shapes_alike, colours_alike))),
        'distance': float(np.mean([slots['distance'] for slots in first])),
        'clear': float(np.mean([slots['distance'] <= CLEAR for slots in first])),
        'objects_n': len(images),
    }
    if scenes is not None:
        said = [{'solids': len(scene.objects), **scene.attributes} for scene in scenes]
        shown = [{slot: slots.get(slot) for slot in ('solids', *SLOTS)} for slots in first]
        joint = ('shape', 'colour', 'shape_b', 'colour_b')
        values, control = attribute_shares(shown, said, np.arange(len(said)), joint)
        scores |= values | {f'control/{name}_shuffled': value for name, value in control.items()}
        scores |= {f'{slot}_n': sum(slot in one for one in said) for slot in SLOTS if slot in values}
    return scores


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """A sample of each of `limit` (512) captions from two sides, and the true objects."""
    generated_objects.refuse_split(split)
    data, count = data_config(loaded), SAMPLES if limit is None else limit
    labels, scenes = seen_from(count), asked_for(data, count)
    texts = [scene.captions[0] for scene in scenes]
    return drawing.Pictures(texts, draw(loaded, texts, labels, data), true_pictures(scenes, labels, data), True)


def write_sheet(loaded: Loaded, data, folder) -> str:
    """Writes samples.png into a folder: a sample of each of the first captions from all sides, the true object below it."""
    views = generated_objects.ring(data, TURNS)
    scenes = asked_for(data, ROWS)
    texts = [scene.captions[0] for scene in scenes]
    labels = np.broadcast_to(np.asarray(cameras.to_eg3d(views)), (ROWS, TURNS, 25))
    rows = np.stack([draw(loaded, texts, labels, data), true_pictures(scenes, labels, data)], 1)
    names = [name for text in texts for name in (text, 'true')]
    path = os.path.join(os.fspath(folder), 'samples.png')
    sheets.write(path, sheets.sheet(rows.reshape(-1, *rows.shape[2:]), names, title='a sample of each caption from all sides'))
    return path
