"""Which solids does a picture of `toy_endless` show? An exact reader: comparison with true objects, no network involved.

Every shape in every size, and every shape on top of every other, is drawn with `each` proportions and turns from the cameras of
`labels()`; of each drawing the colours are the least-squares ones, in closed form. The drawing with the least squared error
over all views of an object is what they show, its colours the nearest of shapes.COLOURS. As chance there are 1/4 for a shape,
1/8 for a colour, 1/2 for a size and for the number of solids.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np

from t3d.core.errors import UsageError
from t3d.data.sets import camera_labels, endless, oracle, shapes, toy

SIZE, RAYS = 32, 2  # px of what is compared, rays per side of one
EACH_SINGLE, EACH_PAIR = 64, 32  # proportions and turns of a shape in a size, of a pair of shapes
CAMERAS, GOLDEN = 8, 2.399963  # how many, and radians from one azimuth to the next
LOW, HIGH = -0.1, 0.8  # radians of elevation
BRIGHTEST = 1.05  # a colour's channel
MIDDLE = float(np.mean(endless.ALL_CHANNELS))  # of what an object's colour is times that of its name


def labels() -> np.ndarray:
    """float32 [8, 25]: the cameras that are known."""
    number = np.arange(CAMERAS)
    elevation = LOW + (HIGH - LOW) * (number * 3 % CAMERAS) / (CAMERAS - 1)
    return camera_labels.concatenate(*toy.camera_arrays(GOLDEN * number, elevation, shapes.RADIUS, shapes.FOV))


class Bank(NamedTuple):
    """Drawings of C candidates from one camera, P pixels each.

    Attributes:
      light: [C, 2, P], what multiplies the colour of the first and the second solid. hidden: [C, P], of the background.
    """

    light: np.ndarray
    hidden: np.ndarray


def candidates(singles: int, pairs: int, seed: int = 7) -> list[tuple[shapes.Scene, dict[str, str]]]:
    """(scene of one red solid, or of a red one on a green one; its words without colours), so many of each kind."""
    random, made = np.random.default_rng(seed), []
    for shape, size in itertools.product(shapes.SHAPES, shapes.SIZES):
        for _ in range(singles):
            made.append((_marked(endless.one(random, shape, 'red', size)), {'shape': shape, 'size': size}))
    for upper, lower in itertools.product(shapes.SHAPES, shapes.SHAPES):
        for _ in range(pairs):
            scene = endless.two(random, (upper, 'red'), (lower, 'green'))
            made.append((_marked(scene), {'shape': upper, 'shape_b': lower}))
    return made


def _marked(scene: shapes.Scene) -> shapes.Scene:
    """The same with the first solid in the red channel and the second in the green one."""
    marks = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    return scene._replace(objects=tuple(solid._replace(rgb=rgb) for solid, rgb in zip(scene.objects, marks)))


class Reader:
    """Reads pictures from the cameras of `labels()`.

    Args:
      background: grey level in [0, 1] behind the objects.
      singles, pairs: drawings of each kind; the default ones take half a minute at the first reading.
    """

    def __init__(self, background: float, *, singles: int = EACH_SINGLE, pairs: int = EACH_PAIR):
        self.background, self.labels = background, labels()
        self.things = candidates(singles, pairs)
        self.colours, self.names = np.array(list(shapes.COLOURS.values())), list(shapes.COLOURS)

    @functools.cached_property
    def banks(self) -> list[Bank]:
        """One for each camera."""
        poses, lenses = camera_labels.parts(self.labels)
        light = np.zeros((len(poses), len(self.things), 2, SIZE * SIZE), np.float32)
        alpha = np.zeros((len(poses), len(self.things), SIZE * SIZE), np.float32)
        for number, (scene, _) in enumerate(self.things):
            image = toy.render(scene, poses, lenses, SIZE * RAYS)['image'] / np.float32(255.0)
            drawn = np.concatenate([image[..., :2] * image[..., 3:], image[..., 3:]], -1)
            red, green, cover = np.moveaxis(oracle.shrink(drawn, SIZE).reshape(len(poses), -1, 3), -1, 0)
            light[:, number], alpha[:, number] = np.stack([red, green], 1), cover
        return [Bank(shine, self.background * (1.0 - cover)) for shine, cover in zip(light, alpha)]

    def __call__(self, images: np.ndarray, seen_from: np.ndarray) -> list[dict]:
        """What N objects are: number of solids, shape, colour, size (of one), shape_b, colour_b (of the lower), distance.

        `distance` is the root of the squared error by what the object adds to the background: 0 for the truth, 1 for nothing.

        Args:
          images: [N, V, S, S, 3] in [0, 1], S a multiple of 32. seen_from: [N, V, 25], labels of `labels()`.
        Raises:
          UsageError: a label of another camera, or pictures that do not shrink to 32 px.
        """
        images, count = np.asarray(images, np.float32), len(self.things)
        (views, side), cameras = images.shape[1:3], self.cameras(seen_from)
        if side % SIZE:
            raise UsageError(
                f'pictures of {side} px do not shrink to {SIZE} by whole blocks: give {SIZE}, {2 * SIZE} or {4 * SIZE}.'
            )
        pixels = oracle.shrink(images.reshape(-1, *images.shape[2:]), SIZE).reshape(len(images), views, -1, 3)
        slots = []
        for picture, own in zip(pixels, cameras, strict=True):
            power, both = np.zeros((count, 2)), np.zeros(count)
            shine, error = np.zeros((count, 2, 3)), np.zeros(count)
            for flat, camera in zip(picture, own):
                bank, fixed = self.banks[camera], self._fixed[camera]
                power += fixed.power
                both += fixed.both
                shine += np.einsum('ckp,pd->ckd', bank.light, flat, optimize=True) - fixed.shaded[..., None]
                error += np.sum(flat**2) - 2.0 * bank.hidden @ flat.sum(-1) + 3.0 * fixed.square
            colour = _least_squares(power, both, shine)
            error += np.sum(colour**2 * power[..., None] - 2.0 * colour * shine, (1, 2))
            error += 2.0 * both * np.sum(colour[:, 0] * colour[:, 1], -1)
            best = int(np.argmin(error))
            slots.append(self._words(best, colour[best], error[best], own))
        return slots

    @functools.cached_property
    def _fixed(self):
        """Of each camera, sums over pixels that no picture changes."""
        return [
            _Sums(
                np.sum(light**2, -1),
                np.sum(light[:, 0] * light[:, 1], -1),
                np.einsum('ckp,cp->ck', light, hidden),
                np.sum(hidden**2, -1),
            )
            for light, hidden in self.banks
        ]

    def cameras(self, seen_from: np.ndarray) -> np.ndarray:
        """[N, V] numbers of the cameras of labels [N, V, 25]."""
        far = np.abs(np.asarray(seen_from)[..., None, :] - self.labels).max(-1)
        if far.min(-1).max() > 1e-4:
            raise UsageError('a picture is from a camera that this reader does not know: draw from endless_reader.labels().')
        return far.argmin(-1)

    def _words(self, best: int, colour: np.ndarray, error: float, cameras) -> dict:
        _, words = self.things[best]
        names = [self.names[int(np.argmin(np.sum((self.colours * MIDDLE - rgb) ** 2, -1)))] for rgb in colour]
        added = 0.0
        for camera in cameras:
            light, hidden = self.banks[camera].light[best], self.banks[camera].hidden[best]
            added += np.sum((light.T @ colour - (self.background - hidden)[:, None]) ** 2)
        lower = {'colour_b': names[1]} if 'shape_b' in words else {}
        distance = float(np.sqrt(max(error, 0.0) / max(added, 1e-9)))
        return {'solids': 1 + bool(lower), **words, 'colour': names[0], **lower, 'distance': round(distance, 4)}


class _Sums(NamedTuple):
    power: np.ndarray  # [C, 2]
    both: np.ndarray  # [C], of pixels that show the edge between two solids
    shaded: np.ndarray  # [C, 2]
    square: np.ndarray  # [C]


def _least_squares(power: np.ndarray, both: np.ndarray, shine: np.ndarray) -> np.ndarray:
    """[C, 2, 3]: the colours c for which sum |light c - pixels|^2 is least, held in range."""
    first, second = np.maximum(power, 1e-6).T[..., None]
    cross, one, two = both[:, None], shine[:, 0], shine[:, 1]
    scale = first * second - cross**2
    solved = np.stack([(second * one - cross * two) / scale, (first * two - cross * one) / scale], 1)
    return np.clip(solved, 0.0, BRIGHTEST)


def caption(slots: dict, choice: int = 0) -> str:
    """One of the captions of what was read; choice 0 is the plainest."""
    if slots['solids'] == 1:
        texts = shapes.single(slots['shape'], slots['colour'], slots['size']).captions
    else:
        upper, lower = (slots['shape'], slots['colour']), (slots['shape_b'], slots['colour_b'])
        texts = shapes.pair(upper, 'on top of', lower).captions
    return texts[choice % len(texts)]
