"""Places of objects under captions: every object has its own, a caption and a place are one object, and noises are theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_instant3d_rays

from t3d import systems
from t3d.core import config as configs
from t3d.core import prng
from t3d.core.errors import UsageError
from t3d.data import sources
from t3d.data.adapters import object_places, object_rays
from t3d.systems import instant3d_supervision_rays as by_rays
from t3d.systems import instant3d_supervision_seeds as seeds

SMALL = (*test_instant3d_rays.SMALL, 'places.count=16', 'data.poses=3')


class Named:
    """Records of numbered objects with captions, several of one object."""

    def __init__(self, captions, per=1):
        self.captions, self.objects, self.per = captions, len(captions), per

    def number(self, index):
        return int(index) % self.objects

    def __len__(self):
        return self.objects * self.per

    def __getitem__(self, index):
        return {'captions': self.captions[self.number(index)]}


@pytest.mark.parametrize('count', [1, 7, 16, 64])
@pytest.mark.parametrize('objects', [1, 2, 5, 16, 23])
def test_places_of_a_caption_are_shared_out(count, objects):
    own = object_places.Places(object_rays.Numbered(Named([('a chair', f'chair {k}') for k in range(objects)], 2)), count, 3)
    ranges = [own.of('a chair', k) for k in range(objects)]
    counted = np.zeros(count, int)
    for first, end in ranges:
        assert 0 <= first < end <= count
        counted[first:end] += 1
    assert np.all(counted >= 1) and all(own.of(f'chair {k}', k) == (0, count) for k in range(objects))
    if objects <= count:
        assert np.all(counted == 1)
        sizes = [end - first for first, end in ranges]
        assert max(sizes) - min(sizes) <= 1
    else:
        assert counted.sum() == objects


def test_a_record_that_stands_in_for_a_damaged_one_has_any_place():
    own = object_places.Places(object_rays.Numbered(Named([('a chair',), ('a table',)])), 16, 0)
    assert own.of('a table', 0) == own.of('a lamp', 1) == own.of('a chair', 0) == (0, 16)


def test_the_order_is_one_for_all_captions_and_depends_on_the_seed():
    captions = [('a chair', 'a red chair') if k % 2 else ('a chair',) for k in range(12)]
    orders = []
    for seed in (0, 1):
        own = object_places.Places(object_rays.Numbered(Named(captions)), 48, seed)
        orders.append(sorted(range(12), key=lambda k, own=own: own.of('a chair', k)))
        red = sorted(range(1, 12, 2), key=lambda k, own=own: own.of('a red chair', k))
        assert red == [k for k in orders[-1] if k % 2]
    assert orders[0] != orders[1] and sorted(orders[0]) == list(range(12))


@pytest.mark.parametrize('truth', ['solids', 'pixels'])
def test_a_caption_and_a_place_show_one_object(truth):
    config = configs.load(
        'configs/instant3d.py:toy_places', ['loss.rays=4', 'data.poses=3', 'data.size=8', f'rays.truth={truth}']
    )
    config = sources.resolve(config)
    batch_spec = {**by_rays.batch_spec(config), 'place': None}
    source, transform = sources.make(config, None, batch_spec)
    shown, random = {}, np.random.default_rng(0)
    for _ in range(1500):
        index = int(random.integers(len(source)))
        row = transform(source[index], random)
        assert row['place'].dtype == np.int32 and 0 <= row['place'] < config.places.count
        shown.setdefault((tuple(row['tokens']), int(row['place'])), set()).add(index % 32)
    assert len(shown) > 500 and all(len(objects) == 1 for objects in shown.values())
    assert set.union(*shown.values()) == set(range(32))


def test_a_row_learns_by_the_noise_of_its_place():
    config = configs.load('configs/instant3d.py:toy_places', SMALL)
    system = systems.make(config)
    assert system.batch_spec['place'].shape == (config.batch,) and 'index' not in system.batch_spec
    table = np.asarray(seeds.place_noises(config))
    assert table.shape == (16, config.decoder.style_width)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(table), -1)), config.noise, rtol=1e-5)
    apart = np.linalg.norm(table - np.roll(table, 1, 0), axis=-1)
    np.testing.assert_allclose(apart, apart[0], rtol=1e-5)  # no place is the first
    assert 0.0 < apart[0] < 0.6 * np.linalg.norm(table - np.roll(table, 8, 0), axis=-1).min()

    class Recorded:
        def scene_from_noise(self, params, tokens, noise):
            np.testing.assert_array_equal(noise, table[[3, 0, 3]])
            raise StopIteration

    with pytest.raises(StopIteration):
        seeds.places_fn(config, Recorded(), None)(
            {}, {}, {}, {'tokens': None, 'place': jnp.array([3, 0, 3])}, jax.random.key(0), 0
        )


def test_the_first_eight_seeds_lie_all_around():
    """So that what people try first differs; as `generate` draws, one key for each seed."""
    config = configs.load('configs/instant3d.py:toy_places', SMALL)
    table = np.asarray(seeds.place_noises(config))
    drawn = [np.asarray(seeds.at_random(config, prng.each(prng.key(seed), 1)[0], 1)[0]) for seed in range(8)]
    places = np.sort([int(np.argmin(np.linalg.norm(table - noise, axis=-1))) for noise in drawn])
    assert np.diff([*places, places[0] + 16]).min() >= 1
    assert len(set(places * 4 // 16)) == 4


def test_seeds_draw_every_place_and_nothing_else():
    config = configs.load('configs/instant3d.py:toy_places', SMALL)
    drawn = np.asarray(seeds.at_random(config, jax.random.key(0), 400))
    table = np.asarray(seeds.place_noises(config))
    nearest = np.argmin(np.linalg.norm(drawn[:, None] - table, axis=-1), 1)
    np.testing.assert_array_equal(drawn, table[nearest])
    counts = np.bincount(nearest, minlength=16)
    assert counts.min() >= 8 and counts.max() <= 50  # 25 on average


def test_what_does_not_fit_is_refused():
    words = 'text.words=("a",)'
    with pytest.raises(UsageError, match="supervision='places' reads the section 'places'.*toy_places"):
        systems.make(configs.load('configs/instant3d.py:toy_mean', [words, 'supervision=places']))
    with pytest.raises(UsageError, match=r'data.kind=.object_places. reads places.count'):
        sources.make(configs.load('configs/instant3d.py:scenes_rays', ['data.kind=object_places']))
    with pytest.raises(UsageError, match='places.count'):
        configs.load('configs/instant3d.py:toy_places', ['places.count=0'])
