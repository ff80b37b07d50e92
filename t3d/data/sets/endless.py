"""The `toy_endless` source: as many different objects as are asked for, each seen once, from a camera of its own.

What GANFusion's paper trains on (arXiv 2412.16717): single pictures of people no two of whom are alike, so that nothing can be
learned by heart from several sides of one object. Here object i is a pure function of (seed, split, i): a solid of `toy`, or
one on top of another, each with proportions, a turn about its axis, a size and a hue of its own. Captions say what words say
of it, as those of `toy` do: shape, colour and size, or the two solids and how they stand.

| drawn | uniform in |
|---|---|
| number of solids | 1 (three of four), 2 |
| shape and colour of each | those of `toy` |
| stretch along x, y, z | exp(-0.15) to exp(0.15), each for itself; a sphere the same along x and z |
| turn about y | -pi to pi |
| size of a single solid | `small` or `large`, times 0.75 to 0.9; of two, that of `toy` times 0.8 |
| colour | its rgb of `toy`, times 0.8 to 1.05 for all channels and 0.9 to 1.1 for each |
| camera | all around, elevation as `toy` |

All lie within 0.8 of the origin along each axis.
"""

import math

import numpy as np

from t3d.core.config import unknown
from t3d.core.errors import UsageError
from t3d.data.sets import shapes, toy

WORDS = toy.WORDS
light = toy.light
TWO = 0.25  # share of objects of two solids
STRETCH, ONE_SIZE, TWO_SIZE = 0.15, (0.75, 0.9), 0.8
ALL_CHANNELS, EACH_CHANNEL = (0.8, 1.05), (0.9, 1.1)
SPLITS = {'train': 0, 'test': 1}  # numbers that objects are drawn from


def scene(seed: int, split: str, index: int) -> shapes.Scene:
    """Object `index` of a split."""
    if split not in SPLITS:
        raise UsageError(unknown(split, tuple(SPLITS), 'split of toy_endless (data.split)'))
    random = np.random.default_rng((seed, SPLITS[split], index))
    chosen = [(_any(random, shapes.SHAPES), _any(random, shapes.COLOURS)) for _ in range(2)]
    if random.random() >= TWO:
        return one(random, *chosen[0], _any(random, shapes.SIZES))
    return two(random, *chosen)


def one(random: np.random.Generator, shape: str, colour: str, size: str) -> shapes.Scene:
    """A solid of a shape, a colour and a size, as none other is."""
    plain = shapes.single(shape, colour, size)
    [solid] = plain.objects
    return plain._replace(objects=(_varied(random, solid, solid.scale * random.uniform(*ONE_SIZE)),))


def two(random: np.random.Generator, upper: tuple[str, str], lower: tuple[str, str]) -> shapes.Scene:
    """A solid on top of another, each (shape, colour), as none other are."""
    plain = shapes.pair(upper, 'on top of', lower)
    above, below = (_varied(random, solid, solid.scale * TWO_SIZE) for solid in plain.objects)
    heights = [solid.scale * shapes.HALF_HEIGHT[solid.shape] * solid.stretch[1] for solid in (above, below)]
    above, below = above._replace(centre=(0.0, heights[1], 0.0)), below._replace(centre=(0.0, -heights[0], 0.0))
    return plain._replace(objects=(above, below))


def _any(random: np.random.Generator, of):
    return list(of)[random.integers(len(of))]


def _varied(random: np.random.Generator, solid: shapes.Object, scale: float) -> shapes.Object:
    """A solid with proportions, a turn and a hue of its own."""
    stretch = np.exp(random.uniform(-STRETCH, STRETCH, 3))
    if solid.shape == 'sphere':
        stretch[2] = stretch[0]
    rgb = np.asarray(shapes.COLOURS[solid.colour]) * random.uniform(*ALL_CHANNELS) * random.uniform(*EACH_CHANNEL, 3)
    turn = float(random.uniform(-math.pi, math.pi))
    return solid._replace(scale=scale, stretch=tuple(stretch.tolist()), turn=turn, rgb=tuple(np.clip(rgb, 0.0, 1.0).tolist()))


class Endless(toy.ToySource):
    """Random access to `count` objects, each from `views` free cameras; else as toy.ToySource."""

    def __init__(self, split: str, *, count: int, size: int, seed: int, supersample: int, views: int = 1):
        super().__init__('all', size=size, views=views, seed=seed, supersample=supersample)
        self.split, self.length = split, count
        scene(seed, split, 0)  # refuses another split

    def scene(self, index: int) -> shapes.Scene:
        return scene(self.seed, self.split, index)

    def angles(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng((self.seed, SPLITS[self.split], index, 1))
        return random.uniform(0.0, 2.0 * math.pi, self.views), random.uniform(*self.elevation, self.views)


def open_set(data, split: str) -> Endless:
    """The source of a config's `data` section: `data.count` objects."""
    if not data.get('count', 0):
        raise UsageError(
            "data.name='toy_endless' needs data.count, the number of objects, at least 1: "
            'configs/ganfusion_gan.py:endless and configs/renderdiffusion.py:endless have it.'
        )
    options = {name: data[name] for name in ('size', 'seed', 'supersample')}
    return Endless(split, count=data.count, views=data.get('views', 1), **options)


def preview_records(data, count: int, views: int) -> list[dict]:
    """Objects of the test split from `views` sides."""
    azimuth, elevation = toy.around(views)
    scenes = [scene(data.seed, 'test', index) for index in range(count)]
    return [toy.record(one, azimuth, elevation, data.size, data.supersample) for one in scenes]
