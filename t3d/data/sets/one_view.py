"""Procedural scenes and built furniture as single pictures with camera labels: one view of each, chosen by a seed."""

import functools

import numpy as np

from t3d.data.sets import furniture_source, shapes, sweethome, toy
from t3d.data.sets.camera_labels import concatenate as to_labels


class Toy:
    """One view of every record of a source of one view; its cameras are known before anything is rendered."""

    def __init__(self, source: toy.ToySource):
        self.source, self.size = source, source.size
        angles = [source.angles(index) for index in range(len(source))]
        yaw, pitch = (np.concatenate(values) for values in zip(*angles))
        self.labels = to_labels(*toy.camera_arrays(yaw, pitch, shapes.RADIUS, shapes.FOV))

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> np.ndarray:
        return self.source[index]['image'][0]

    def text(self, index: int) -> dict:
        scene = self.source.scene(index)
        return {'captions': scene.captions, 'attributes': scene.attributes, 'name': scene.captions[0]}


def of_toy(data, split: str) -> Toy:
    """One view of every scene of toy, `data.poses` times."""
    options = {key: data[key] for key in ('scenes', 'size', 'poses', 'seed', 'supersample')}
    return Toy(toy.ToySource(split, views=1, **options))


class Furniture:
    """One view of every record of furniture_source.FurnitureSource, all read at the start: a record is stored whole.

    Args:
      views: how many of a record's views to choose from, the first ones; 0 means all.
    """

    def __init__(self, path: str, split: str, size: int, variants: int, seed: int, views: int, background: float):
        source = furniture_source.FurnitureSource(path or None, split, size=size, variants=variants)
        self.folder, self.images, self.texts, self.size, poses, lenses = source.folder, [], [], size, [], []
        for index in range(len(source)):
            record = source[index]
            view = chosen_view(index, seed, views or len(record['image']))
            self.images.append(composite(record['image'][view], background))
            self.texts.append({key: record[key] for key in ('captions', 'attributes', 'name')})
            poses.append(record['world_from_cam'][view])
            lenses.append(record['intrinsics'][view])
        self.labels = to_labels(np.stack(poses), np.stack(lenses))

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> np.ndarray:
        return self.images[index]

    def text(self, index: int) -> dict:
        return self.texts[index]


@functools.lru_cache(2)
def furniture(root, *key) -> Furniture:
    """Cached: a start reads the set three times (vocabulary, training, preview), and each reading takes seconds."""
    return Furniture(*key)


def chosen_view(index: int, seed: int, views: int) -> int:
    """Which of its views a record shows."""
    return sweethome.bucket(f'{seed}/{index}', views)


def composite(image: np.ndarray, background: float) -> np.ndarray:
    """uint8 [S, S, 3] of straight-alpha RGBA over a grey of `background` in [0, 1]; RGB passes."""
    if image.shape[-1] == 3:
        return image
    alpha = image[..., 3:].astype(np.float32) / 255.0
    return np.round(image[..., :3] * alpha + 255.0 * background * (1.0 - alpha)).astype(np.uint8)
