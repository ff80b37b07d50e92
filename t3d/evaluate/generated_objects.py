"""Scores and sheets of a triplane GAN (systems/ganfusion_gan.py): distance to real pictures, variety, solidity.

Every score has its n and something to be read against: real pictures against other real pictures, the untrained generator,
and the true objects' own geometry from the same cameras. The sheets go into the run folder.
"""

import copy
import os

import jax
import jax.numpy as jnp
import numpy as np

from t3d.build import captioners
from t3d.core import config as configs
from t3d.core import numerics, prng
from t3d.core.errors import UsageError
from t3d.data.adapters import single_view
from t3d.data.sets import camera_labels, oracle, shapes, toy
from t3d.evaluate import drawing
from t3d.export import sheets
from t3d.fields.triplane_generator import Generator
from t3d.geom import cameras
from t3d.inference.loading import Loaded
from t3d.metrics import consistency, fid, geometry

NAME = 'generated_objects'
PAIRED = False  # objects of its own, which have no true views
CAPTIONED = False
SAMPLES = 1024  # pictures a distance is taken from
FIRST = 2**31  # seeds from here on: pairs for stage 2 are made from those below
SOLID, RING, SIDE = 16, 8, 64  # objects, views around each, and pixels of a view for the 3-D checks
OUTLINED = 64  # objects whose outlines are compared with true ones
APPEARS = 0.01  # share of samples from which a colour or shape counts as one that the generator makes
PSI = (0.0, 0.5, 0.7, 1.0)
ROWS, STEPS = 6, 8  # of the sheets


class GanRenderer:
    """Pictures of a generator with given weights {'generator', 'buffers'}, in batches of one shape."""

    def __init__(self, generator: Generator, tree, batch: int = 16):
        self.tree, self.batch, self.generator = tree, batch, generator
        self.size = generator.image_size

        def styles(tree, seeds, psi):
            return generator.ws(tree['generator'], tree['buffers'], generator.z_of_seed(seeds), psi=psi)

        def images(tree, ws, labels):
            return numerics.to_unit(generator.image(tree['generator'], tree['buffers'], ws, labels)[0])

        def raw(tree, ws, labels):
            planes = generator.planes(tree['generator'], tree['buffers'], ws)
            rendered = generator.render(tree['generator'], planes, labels, size=SIDE, multiplier=2)
            return numerics.to_unit(rendered.features[..., :3]), rendered.depth, rendered.opacity

        self._styles, self._images, self._raw = jax.jit(styles), jax.jit(images), jax.jit(raw)

    def with_weights(self, tree) -> 'GanRenderer':
        """The same with other weights, compiled once for both."""
        other = copy.copy(self)
        other.tree = tree
        return other

    def styles(self, seeds, psi: float = 1.0) -> np.ndarray:
        """[N, num_ws, W] of seeds [N]."""
        return self._batched(lambda seeds: self._styles(self.tree, seeds, psi), np.asarray(seeds, np.uint32))

    def images(self, styles, labels) -> np.ndarray:
        """[N, S, S, 3] in [0, 1], each of styles [N, num_ws, W] from its label [N, 25]."""
        return self._batched(lambda *some: self._images(self.tree, *some), styles, labels)

    def raw(self, styles, labels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(colour [N, s, s, 3] in [0, 1], depth along the ray, opacity [N, s, s]) at `SIDE` pixels, without the upsampler."""
        return self._batched(lambda *some: self._raw(self.tree, *some), styles, labels)

    def _batched(self, run, *rows):
        outputs = []
        for start in range(0, len(rows[0]), self.batch):
            some = [np.asarray(row[start : start + self.batch]) for row in rows]
            count = len(some[0])
            padded = [np.concatenate([row, np.repeat(row[-1:], self.batch - count, axis=0)]) for row in some]
            outputs.append(jax.tree.map(lambda leaf, count=count: np.asarray(leaf)[:count], run(*padded)))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """All scores of a GAN run, and its sheets where `loaded` is a run folder.

    Args:
      limit: pictures on each side of a distance (default 1,024, or as many as the data set has).
    """
    config = loaded.config
    refuse_split(split)
    renderer = renderer_of(loaded)
    true, others = real(config, SAMPLES if limit is None else limit)
    count = len(true)
    labels = drawn_labels(config, count)
    seeds = FIRST + np.arange(count)
    log(f'drawing {count} pictures of the generator and as many of the untrained one')
    images = renderer.images(renderer.styles(seeds), labels)
    params, buffers = jax.jit(renderer.generator.init)(prng.key(config.seed))
    fresh = renderer.with_weights({'generator': params, 'buffers': buffers})
    scores = distances(images, true, others, fresh.images(fresh.styles(seeds), labels))
    if config.generator.sr_style == 'w':
        scores.update(style_gate(config, loaded.weights, seeds, labels, true))
    reader = captioners.ToyReader(config.render.background) if knows_words(config) else None
    if reader is not None:
        log(f'reading {count} pictures')
        scores.update(variety(reader, images, labels))
    log(f'3-D checks of {SOLID} objects from {RING} sides')
    scores.update(solidity(renderer, config, reader))
    if reader is not None:
        scores.update(outlines(renderer, config, reader))
    if loaded.run is not None:
        for path in write_sheets(renderer, config, loaded.run):
            log(f'open {path}')
    return scores


def renderer_of(loaded: Loaded) -> GanRenderer:
    """The renderer of a system that offers a triplane generator; UsageError for other systems, which cannot be judged here."""
    if not isinstance(loaded.system.functions, Generator):
        raise UsageError(
            f'evaluate={NAME!r} walks the latents of a triplane generator, and {loaded.config.system} has none: name another '
            'evaluator, with `t3d eval RUN --evaluate NAME`.'
        )
    return GanRenderer(loaded.system.functions, loaded.weights)


def refuse_split(split: str | None) -> None:
    """Raises UsageError for a split: single views have no splits of objects."""
    if split is not None:
        raise UsageError(f'split {split!r}: this system is scored on the pictures it was trained on: leave it out.')


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """A picture of each of `limit` (1,024) objects and as many real ones; the prompts are names."""
    refuse_split(split)
    renderer = renderer_of(loaded)
    true, _ = real(loaded.config, SAMPLES if limit is None else limit)
    seeds = FIRST + np.arange(len(true))
    images = renderer.images(renderer.styles(seeds), drawn_labels(loaded.config, len(true)))
    return drawing.Pictures([f'seed {seed}' for seed in seeds], images[:, None], true[:, None], False)


def knows_words(config) -> bool:
    """Whether pictures show the single objects of toy, which can be read exactly."""
    return config.data.name == 'toy' and config.data.scenes == 'singles'


def real(config, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """(pictures [n, S, S, 3] in [0, 1], n others) of the data set, chosen at random; n is `samples`, or half of a small set.

    Mirrored copies are left out: they would make the two halves more alike than other pictures are.
    """
    if samples < 2:
        raise UsageError(f'--limit {samples}: a distance between sets wants at least 2 pictures, FID-tiny 65.')
    tree = config.to_dict()
    source = single_view.open_set(configs.from_dict({**tree, 'data': {**tree['data'], 'mirror': False}}))
    count = min(samples, len(source) // 2)
    if count < 2:
        raise UsageError(f'{len(source)} pictures in the data set: distances between sets want 4 at least.')
    chosen = np.random.default_rng(41).permutation(len(source))[: 2 * count]
    pictures = np.stack([source[int(k)]['image'] for k in chosen]).astype(np.float32) / 255.0
    return pictures[:count], pictures[count:]


def drawn_labels(config, count: int, seed: int = 43) -> np.ndarray:
    """[count, 25] labels of the data set, at random."""
    table = single_view.labels(config)
    return table[np.random.default_rng(seed).integers(len(table), size=count)]


def distances(
    images: np.ndarray, true: np.ndarray, others: np.ndarray, untrained: np.ndarray | None = None
) -> dict[str, float]:
    """FID-tiny and KID-tiny to real pictures: of those shown, other real ones, and the untrained generator's, at one n."""
    extractor = fid.tiny()
    sets = {'': images, 'control/real/': others} | ({} if untrained is None else {'control/untrained/': untrained})
    target, scores = fid.extract(extractor, true), {}
    for name, pictures in sets.items():
        features = fid.extract(extractor, pictures)
        if min(len(target), len(features)) > extractor.dim:
            scores[f'{name}fid_tiny'] = fid.frechet(fid.moments(features), fid.moments(target))
        scores[f'{name}kid_tiny'] = fid.kernel_distance(features, target)[0]
    if untrained is not None and 'fid_tiny' in scores:
        scores['untrained_over_fid_tiny'] = scores['control/untrained/fid_tiny'] / scores['fid_tiny']
    return {**scores, 'fid_tiny_n': len(true)}


def style_gate(config, tree, seeds, labels, true: np.ndarray) -> dict[str, float]:
    """Distances of a generator whose upsampler reads w, with the constants that stand in for w in stage 2, which has none.

    `sr_style/<style>/gap` is the relative change; beyond 0.1 the upsampler is to be trained on with the constant before any
    diffusion run starts (ganfusion.md, section 7.6).
    """
    extractor, scores = fid.tiny(), {}
    target = fid.extract(extractor, true)
    use_fid = len(true) > extractor.dim

    def measure(style: str) -> float:
        made = configs.from_dict({**config.to_dict(), 'generator': {**config.generator.to_dict(), 'sr_style': style}})
        renderer = GanRenderer(Generator(made), tree)
        features = fid.extract(extractor, renderer.images(renderer.styles(seeds), labels))
        return fid.frechet(fid.moments(features), fid.moments(target)) if use_fid else fid.kernel_distance(features, target)[0]

    reference = measure('w')
    for style in ('ones_w', 'w_avg'):
        scores[f'sr_style/{style}/{"fid_tiny" if use_fid else "kid_tiny"}'] = value = measure(style)
        scores[f'sr_style/{style}/gap'] = value / reference - 1.0
    return scores


# ------------------------------------------------------------------------------------------------------------- variety


def variety(reader: captioners.ToyReader, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Which colours, shapes and sizes appear, by the toy captioner: each in at least 1 % of the pictures that can be read.

    `readable` is the share of pictures within captioners.THRESHOLD of a true object; `distance` its mean.
    """
    readings = reader(images[:, None], labels[:, None])
    clear = [slots for slots in readings if slots['distance'] <= captioners.THRESHOLD]
    scores = {
        'readable': len(clear) / len(readings),
        'distance': float(np.mean([slots['distance'] for slots in readings])),
        'readable_n': len(readings),
    }
    for slot, words in (('colour', tuple(shapes.COLOURS)), ('shape', shapes.SHAPES), ('size', tuple(shapes.SIZES))):
        share = {word: sum(slots[slot] == word for slots in clear) / max(len(clear), 1) for word in words}
        scores[f'{slot}s'] = sum(value >= APPEARS for value in share.values())
        scores[f'control/{slot}s_there_are'] = len(words)
        scores.update({f'share/{word}': value for word, value in share.items()})
    return scores


# ------------------------------------------------------------------------------------------------------------ solidity


def ring(config, count: int) -> cameras.Cameras:
    """`count` cameras around the object as far as the data set's go, at its median elevation and distance."""
    table = single_view.labels(config)
    views = cameras.from_eg3d(table)
    azimuth, elevation, radius = (np.asarray(value) for value in cameras.angles(views.world_from_cam))
    low, high = np.quantile(azimuth, (0.05, 0.95))
    if high - low > 5.0:  # all around
        low, high = 0.0, 2.0 * np.pi * (count - 1) / count
    around = cameras.orbit(np.linspace(low, high, count), float(np.median(elevation)), float(np.median(radius)), 1.0)
    return around.replace(intrinsics=jnp.broadcast_to(views.intrinsics[0], (count, 3, 3)))


def solidity(renderer: GanRenderer, config, reader: captioners.ToyReader | None) -> dict[str, float]:
    """metrics.consistency of `SOLID` objects of the generator from a ring of cameras, raw colour, means over the objects.

    Of toy, `control/true/` are the same of the true objects that the pictures show, from the same cameras.
    """
    views = ring(config, RING)
    labels = np.asarray(cameras.to_eg3d(views))
    styles = renderer.styles(FIRST + np.arange(SOLID))
    measured = jax.jit(measure)
    measurements, true = [], []
    for style in styles:
        rgb, depth, opacity = renderer.raw(np.repeat(style[None], RING, axis=0), labels)
        measurements.append(measured(rgb, depth, opacity, views))
        if reader is not None:
            slots = reader(rgb[None], labels[None])[0]
            true.append(measured(*of_toy(slots, labels, config.render.background), views))
    mean = lambda rows: {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    scores = {f'solid/{name}': value for name, value in mean(measurements).items()}
    if true:
        scores.update({f'control/true/solid/{name}': value for name, value in mean(true).items()})
    return {**scores, 'solid_n': SOLID, 'solid_views': RING}


def outlines(renderer: GanRenderer, config, reader: captioners.ToyReader) -> dict[str, float]:
    """How objects fill the outlines of the true object that they are read as from all sides: mean IoU over a ring of cameras.

    By shape too, where one is read. `control/other_shape/outline` is what the likest true object of another shape reaches
    against that true object: below it a cube is no more a cube than something else.
    """
    labels = np.asarray(cameras.to_eg3d(ring(config, RING)))
    kinds = [(shape, size) for shape in shapes.SHAPES for size in shapes.SIZES]
    masks, plain = {}, {'colour': next(iter(shapes.COLOURS))}
    for shape, size in kinds:
        masks[shape, size] = (
            of_toy(plain | {'shape': shape, 'size': size}, labels, config.render.background)[2] > consistency.SOLID
        )
    likest = {kind: max(geometry.iou(masks[kind], masks[it]) for it in kinds if it[0] != kind[0]) for kind in kinds}
    read, filled = [], []
    for style in renderer.styles(FIRST + np.arange(OUTLINED)):
        rgb, _, opacity = renderer.raw(np.repeat(style[None], RING, axis=0), labels)
        slots = reader(rgb[None], labels[None])[0]
        read.append((slots['shape'], slots['size']))
        filled.append(geometry.iou(opacity > consistency.SOLID, masks[read[-1]]))
    control = [likest[kind] for kind in read]
    scores = {'outline': float(np.mean(filled)), 'control/other_shape/outline': float(np.mean(control)), 'outline_n': OUTLINED}
    of = lambda shape: [value for value, kind in zip(filled, read, strict=True) if kind[0] == shape]
    return scores | {f'outline/{shape}': float(np.mean(of(shape))) for shape in shapes.SHAPES if of(shape)}


def measure(rgb, depth, opacity, views: cameras.Cameras) -> dict[str, jax.Array]:
    """All of metrics.consistency, of one object."""
    relief, agreement = consistency.relief(depth, opacity, views), consistency.agreement(rgb, depth, opacity, views)
    return {
        'depth_deviation': relief.depth,
        'bent': relief.bent,
        'half_opaque': consistency.half_opaque(opacity),
        'agreement_error': agreement.colour,
        'agreement_seen': agreement.seen,
        'agreement_overlap': agreement.overlap,
    }


def of_toy(slots: dict, labels: np.ndarray, background: float):
    """(colour, depth along the ray, opacity) of a true object from labels [V, 25], at `SIDE` pixels."""
    poses, lenses = camera_labels.parts(labels)
    rendered = toy.render(shapes.single(slots['shape'], slots['colour'], slots['size']), poses, lenses, SIDE)
    views = cameras.Cameras(jnp.asarray(poses), jnp.asarray(lenses))
    depth = consistency.ray_depth(jnp.asarray(rendered['depth']), views)
    return oracle.composite(rendered['image'], background), depth, rendered['image'][..., 3] / np.float32(255.0)


# -------------------------------------------------------------------------------------------------------------- sheets


def write_sheets(renderer: GanRenderer, config, folder) -> list[str]:
    """Writes truncation.png, interpolation.png and yaw.png into a folder; their paths."""
    labels = np.asarray(cameras.to_eg3d(ring(config, STEPS)))
    seeds = FIRST + np.arange(ROWS)
    side = labels[1]
    cut = np.stack([renderer.styles(seeds, psi) for psi in PSI], 1)  # [rows, psi, num_ws, W]
    whole = renderer.styles(FIRST + np.arange(2 * ROWS))
    mix = np.linspace(0.0, 1.0, STEPS, dtype=np.float32)[None, :, None, None]
    between = (1.0 - mix) * whole[::2, None] + mix * whole[1::2, None]
    turned = np.repeat(renderer.styles(seeds)[:, None], STEPS, axis=1)
    written = []
    for name, styles, views, title in (
        ('truncation', cut, side, 'psi ' + ', '.join(f'{psi:g}' for psi in PSI)),
        ('interpolation', between, side, 'w from one object to another'),
        ('yaw', turned, labels, 'one object a row, from all sides'),
    ):
        rows, columns = styles.shape[:2]
        where = np.broadcast_to(views, (rows, columns, views.shape[-1])).reshape(rows * columns, -1)
        images = renderer.images(styles.reshape(rows * columns, *styles.shape[2:]), where)
        path = os.path.join(os.fspath(folder), f'{name}.png')
        sheets.write(path, sheets.sheet(images.reshape(rows, columns, *images.shape[1:]), title=title))
        written.append(path)
    return written
