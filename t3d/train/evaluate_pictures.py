"""Scores of a text-to-image system on the toy set: does each sample show what its caption says, by the exact oracle?"""

import numpy as np

from t3d import systems
from t3d.core import config as configs
from t3d.core import prng
from t3d.core.errors import UsageError
from t3d.data import oracle, shapes, toy
from t3d.metrics.scores import attribute_shares
from t3d.train import inference

SAMPLES = 64  # of each caption
LABELS = ('shape', 'colour')


def evaluate(loaded: inference.Loaded, log=lambda line: None, *, samples: int | None = None) -> dict[str, float]:
    """Shares of samples with the caption's shape, colour and both, for held-out and for seen shape-colour pairs.

    The oracle is data.oracle.PictureOracle. Controls: all other captions of the group, and the oracle's own score
    on true pictures from random cameras. `distance` is the root mean square distance to the nearest true picture, in [0, 1];
    that of true pictures stands beside it.

    Args:
      samples: of each caption; None for 64.
    """
    things, held_out = pairs_of_toy(loaded)
    samples = SAMPLES if samples is None else samples
    judge = oracle.PictureOracle(loaded.config.data.size, loaded.config.render.background)
    log(f'drawing {samples} samples of each of {len(things)} captions')
    images = draw(loaded, [scene.captions[0] for scene in things], samples)
    found, distance = judge.read(images)
    scores = {}
    for name, chosen in (('held_out', np.flatnonzero(held_out)), ('seen', np.flatnonzero(~held_out))):
        rows = (chosen[:, None] * samples + np.arange(samples)).ravel()
        shown = [{label: found[row][label] for label in LABELS} for row in rows]
        own = np.repeat(np.arange(len(chosen)), samples)
        values, control = attribute_shares(shown, [things[k].attributes for k in chosen], own, LABELS)
        scores.update({f'{name}/{label}': value for label, value in values.items()})
        scores[f'{name}/distance'] = float(distance[rows].mean())
        scores.update({f'control/{name}/{label}_shuffled': value for label, value in control.items()})
        scores[f'{name}/n'] = len(rows)
    return {**scores, **_of_true_pictures(judge, loaded.config.data)}


def pairs_of_toy(loaded: inference.Loaded) -> tuple[list[shapes.Scene], np.ndarray]:
    """(the 32 large single objects, which of them are held out)."""
    if loaded.config.data.name != 'toy':
        raise UsageError(f'pictures of {loaded.config.data.name!r} have no exact labels: this score is for models of toy.')
    things = [scene for scene in shapes.singles('all') if scene.attributes['size'] == 'large']
    return things, np.array([shapes.is_held_out(scene.attributes['shape'], scene.attributes['colour']) for scene in things])


def draw(loaded: inference.Loaded, prompts: list[str], samples: int, *, batch: int = 64, seed: int = 0) -> np.ndarray:
    """Images [len(prompts) * samples, H, W, 3] in [0, 1], the samples of a prompt side by side."""
    import jax

    wanted = [prompt for prompt in prompts for _ in range(samples)]
    found = []
    for start in range(0, len(wanted), batch):
        some = wanted[start : start + batch]
        key = jax.random.fold_in(prng.key(seed), start)
        filled = some + [some[-1]] * (batch - len(some))  # one shape, one compilation
        pictures = loaded.system.generate(loaded.params, filled, key)
        found += [np.asarray(picture.image) for picture in pictures[: len(some)]]
    return np.stack(found)


def sampled_with(loaded: inference.Loaded, **changes) -> inference.Loaded:
    """The same weights with other values of the config's `sample` section, for example guidance=5.0 or steps=250."""
    tree = loaded.config.to_dict()
    unknown = sorted(set(changes) - set(tree['sample']))
    if unknown:
        raise UsageError(configs.unknown(unknown[0], tree['sample'], 'sampling option'))
    tree['sample'] = {**tree['sample'], **changes}
    config = configs.from_dict(tree)
    return loaded._replace(config=config, system=systems.make(config))


def sweep(loaded: inference.Loaded, scales, log=lambda line: None, *, samples: int = 16) -> list[dict]:
    """`evaluate` at each guidance scale: a list of {'guidance': scale, **scores}."""
    rows = []
    for scale in scales:
        scores = evaluate(sampled_with(loaded, guidance=float(scale)), samples=samples)
        rows.append({'guidance': float(scale), **scores})
        log(
            f'guidance {scale:g}: '
            + ', '.join(f'{name} {rows[-1][name]:.3f}' for name in ('seen/both', 'held_out/both', 'seen/distance'))
        )
    return rows


def _of_true_pictures(judge: oracle.PictureOracle, data, count: int = 256) -> dict[str, float]:
    """The oracle's score on renders from cameras that are not its own."""
    source = toy.ToySource('all', scenes='singles', size=data.size, views=1, poses=8, seed=991, supersample=data.supersample)
    records = [source[int(k)] for k in np.linspace(0, len(source) - 1, count).astype(int)]
    found, distance = judge.read(np.concatenate([oracle.composite(record['image']) for record in records]))
    right = [all(labels[name] == record['attributes'][name] for name in LABELS) for labels, record in zip(found, records)]
    return {
        'control/true_pictures/both': float(np.mean(right)),
        'control/true_pictures/distance': float(distance.mean()),
        'control/true_pictures/n': count,
    }
