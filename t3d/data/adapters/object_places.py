"""Rays of objects that have places of their own under each caption: the batch of the adapter `rays`, and in 'place' a place.

A caption that is true of n objects gives each of them an n-th of `places.count` places: in one order of all objects, drawn
once from `data.seed`, so that an object has nearly the same places under captions of as many objects. A caption and a place
then show one object. Of a caption of more objects than there are places some share one.
"""

from collections.abc import Callable

import numpy as np

from t3d.data.adapters import object_rays, rays

NEEDS = (*rays.NEEDS, 'data.seed', 'places.count')
words, captions, preview = rays.words, rays.captions, rays.preview


def make(config, split: str | None = None, batch_spec: dict | None = None) -> tuple[object, Callable]:
    """(source, transform) of a config."""
    source, of_rays = rays.make(config, split, batch_spec)
    numbered = object_rays.Numbered(source)
    own = Places(numbered, config.places.count, config.data.seed)

    def transform(record: dict, random: np.random.Generator) -> dict[str, np.ndarray]:
        caption = record['captions'][random.integers(len(record['captions']))]
        first, end = own.of(caption, int(record['index']))
        place = np.int32(random.integers(first, end))
        return {**of_rays({**record, 'captions': (caption,)}, random), 'place': place}

    return numbered, transform


class Places:
    """The places of objects under the captions of a numbered source (`object_rays.Numbered`)."""

    def __init__(self, numbered, count: int, seed: int):
        order = np.random.default_rng(seed).permutation(numbered.objects)
        self.count = count
        self.ranks = {caption: sorted(objects, key=order.__getitem__) for caption, objects in numbered.named().items()}

    def of(self, caption: str, number: int) -> tuple[int, int]:
        """[first, end) of the places of an object under a caption that is true of it.

        All places, where the set was not known to say so: a record that stands in for a damaged one.
        """
        among = self.ranks.get(caption, [])
        if number not in among:
            return 0, self.count
        rank, objects = among.index(number), len(among)
        first, end = -(-rank * self.count // objects), -(-(rank + 1) * self.count // objects)
        return (first, end) if end > first else (rank * self.count // objects, rank * self.count // objects + 1)
