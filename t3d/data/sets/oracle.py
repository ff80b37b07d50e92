"""The exact oracle of `toy`: which scene of the whole grammar does a set of rendered views show?

A render is compared, view by view and pixel by pixel, with the true renders of every candidate scene from the same cameras;
the nearest candidate (least squared error) is what the render shows. No network is involved, so a score cannot be gamed by
one, and chance is known: 1 / number of candidates for the whole scene, 1/4 for a shape, 1/8 for a colour, 1/3 for a relation.
"""

import numpy as np

from t3d.data.sets import shapes, toy


class Oracle:
    """Nearest-scene classifier over a list of candidates.

    Args:
      candidates: scenes to choose from, for example `shapes.pairs('all')`.
      azimuth, elevation: radians [V], of the views that will be judged.
      size, supersample: of the views, as in toy.record.
      background: grey level in [0, 1] behind the objects.
    """

    def __init__(
        self,
        candidates: list[shapes.Scene],
        azimuth: np.ndarray,
        elevation: np.ndarray,
        size: int,
        background: float = 1.0,
        supersample: int = 1,
    ):
        self.candidates = candidates
        images = [
            composite(toy.record(scene, azimuth, elevation, size, supersample)['image'], background) for scene in candidates
        ]
        self.targets = np.stack(images).reshape(len(candidates), -1).astype(np.float32)
        self.squares = np.sum(self.targets**2, -1)

    def nearest(self, images: np.ndarray) -> np.ndarray:
        """Index of the nearest candidate for each of images [N, V, H, W, 3] in [0, 1]."""
        flat = np.asarray(images, np.float32).reshape(len(images), -1)
        return np.argmin(self.squares[None] - 2.0 * flat @ self.targets.T, -1)

    def score(self, images: np.ndarray, scenes: list[shapes.Scene]) -> dict[str, float]:
        """Shares of right answers: each label by its name, and `all` of them together. n is len(images)."""
        answers = [self.candidates[k].attributes for k in self.nearest(images)]
        labels = scenes[0].attributes.keys()
        right = {
            label: [answer.get(label) == scene.attributes[label] for answer, scene in zip(answers, scenes, strict=True)]
            for label in labels
        }
        scores = {label: float(np.mean(values)) for label, values in right.items()}
        return {**scores, 'all': float(np.mean(np.all(list(right.values()), axis=0)))}


class PictureOracle:
    """Which single object, of the 64 of the grammar, does a picture from an unknown camera show?

    The nearest of the true renders of all objects from `azimuths` x `elevations` cameras over the source's range. On true
    renders from other cameras it is right about shape, colour and size alike (tests/test_toy.py). Chance is 1/4 for a shape,
    1/8 for a colour.
    """

    def __init__(self, size: int, background: float = 1.0, supersample: int = 1, azimuths: int = 24, elevations: int = 5):
        self.candidates = shapes.singles('all')
        azimuth, elevation = np.meshgrid(np.arange(azimuths) * (2.0 * np.pi / azimuths), np.linspace(-0.2, 0.9, elevations))
        self.views = azimuth.size
        images = [
            composite(toy.record(scene, azimuth.ravel(), elevation.ravel(), size, supersample)['image'], background)
            for scene in self.candidates
        ]
        self.targets = np.concatenate(images).reshape(self.views * len(images), -1).astype(np.float32)
        self.squares = np.sum(self.targets**2, -1)

    def read(self, images: np.ndarray) -> tuple[list[dict[str, str]], np.ndarray]:
        """(labels of the nearest object, root mean square distance to it [N]) of images [N, H, W, 3] in [0, 1]."""
        flat = np.asarray(images, np.float32).reshape(len(images), -1)
        squares = self.squares[None] - 2.0 * flat @ self.targets.T
        nearest = np.argmin(squares, -1)
        error = np.take_along_axis(squares, nearest[:, None], -1)[:, 0] + np.sum(flat**2, -1)
        labels = [self.candidates[index // self.views].attributes for index in nearest]
        return labels, np.sqrt(np.maximum(error, 0.0) / flat.shape[1])


def composite(rgba: np.ndarray, background: float = 1.0) -> np.ndarray:
    """uint8 straight-alpha RGBA [..., 4] over a grey level: float32 [..., 3] in [0, 1]."""
    rgba = rgba.astype(np.float32) / 255.0
    return rgba[..., :3] * rgba[..., 3:] + background * (1.0 - rgba[..., 3:])


def shrink(images: np.ndarray, size: int) -> np.ndarray:
    """Images [V, S, S, 3] averaged over whole blocks down to `size` pixels, where S is a multiple of it."""
    side = images.shape[1]
    if side <= size or side % size:
        return images
    return images.reshape(len(images), size, side // size, size, side // size, 3).mean((2, 4))
