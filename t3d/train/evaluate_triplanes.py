"""Scores of text to triplanes, GANFusion's diffusion and RenderDiffusion alike: does each object show what its caption says?

One picture of each sample, from a random camera of the data set, after the upsampler where there is one. Controls: the other
captions, real pictures, and for GANFusion its stage-1 generator, which bounds what diffusion can reach (`ceiling`).
"""

import os

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import config as configs
from t3d.core import numerics, prng, tokens
from t3d.core.errors import UsageError
from t3d.data import shapes, single_view, triplanes
from t3d.geom import cameras
from t3d.metrics.scores import attribute_shares
from t3d.train import captioners, evaluate_gan, preview
from t3d.train.inference import Loaded

SYSTEMS = ('ganfusion_diffusion', 'renderdiffusion')
SAMPLES = 8  # of each caption
SCALES = (1.0, 2.0, 3.0, 5.0, 7.5)
SLOTS = ('colour', 'shape', 'size')
ROWS, TURNS = 8, 8  # of the sheet


class Painter:
    """Pictures of prompts by a loaded system, in batches of one shape."""

    def __init__(self, loaded: Loaded, batch: int = 16):
        import importlib

        module = importlib.import_module(f't3d.systems.{loaded.config.system}')
        self.model, self.params, self.batch = module.Model(loaded.config), loaded.params, batch
        self.tokenize = tokens.make(loaded.config.text)
        self._look = jax.jit(_through_generator if hasattr(self.model, 'generator') else _rendered, static_argnums=0)

    def pictures(self, prompts: list[str], labels: np.ndarray, *, seed: int = 0, scale: float | None = None) -> np.ndarray:
        """[N, S, S, 3] in [0, 1], one for each prompt from its label [N, 25]; picture k depends on seed and k alone.

        Args:
          scale: of the guidance; None for the config's.
        """
        ids, found = self.tokenize(list(prompts)), []
        for start in range(0, len(prompts), self.batch):
            index, planes = self._planes(ids, start, seed, scale)
            found.append(np.asarray(self._look(self.model, self.params, planes, jnp.asarray(labels[index]))))
        return np.concatenate(found)[: len(prompts)]

    def around(self, prompts: list[str], labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
        """[N, V, S, S, 3] in [0, 1]: one sample of each of at most `batch` prompts, from all the labels [V, 25]."""
        _, planes = self._planes(self.tokenize(list(prompts)), 0, seed, None)
        views = [jnp.broadcast_to(label, (self.batch, label.size)) for label in jnp.asarray(labels)]
        shown = [np.asarray(self._look(self.model, self.params, planes, view)) for view in views]
        return np.stack(shown, 1)[: len(prompts)]

    def _planes(self, ids: np.ndarray, start: int, seed: int, scale: float | None) -> tuple[np.ndarray, jax.Array]:
        """(places in `ids` [batch], the last repeated to fill up; their planes) of the batch from `start` on."""
        index = np.minimum(np.arange(start, start + self.batch), len(ids) - 1)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(prng.key(seed), jnp.asarray(index))
        return index, self.model.draw(self.params, jnp.asarray(ids[index]), keys, scale)


def _through_generator(model, params, planes, labels):
    """Of GANFusion: the frozen generator's renderer and its upsampler."""
    frozen, generator = params['frozen'], model.generator
    features = generator.render(frozen['generator'], planes, labels, size=generator.render_size).features
    w = model.style({'w_avg': frozen['buffers']['w_avg']}, len(labels))
    return numerics.to_unit(generator.upsample(frozen['generator'], features, w))


def _rendered(model, params, planes, labels):
    """Of RenderDiffusion: the planes' colour."""
    rays = cameras.rays(cameras.from_eg3d(labels), model.size, model.size)
    flat = jax.tree.map(lambda leaf: leaf.reshape(len(labels), -1, 3), rays)
    colour = jax.lax.map(lambda one: model.colour(params['decoder'], one[0][None], _one(one[1])).features[0], (planes, flat))
    return jnp.clip(colour.reshape(len(labels), model.size, model.size, 3), 0.0, 1.0)


def _one(rays):
    return jax.tree.map(lambda leaf: leaf[None], rays)


# -------------------------------------------------------------------------------------------------------------- scores


def evaluate(
    loaded: Loaded, log=lambda line: None, *, samples: int | None = None, scale: float | None = None
) -> dict[str, float]:
    """All scores of a run, and samples.png (`sheet`) where `loaded` is a run folder.

    - toy: shares of samples with their caption's colour, shape, size and both of the first two, of objects that were seen in
      training and of held-out ones apart, by the exact captioner (captioners.ToyReader); shuffled: all other captions.
    - FID-tiny and KID-tiny to real single-view pictures at one n, beside other real pictures and the stage-1 generator's.

    Args:
      samples: of each caption; None for 8.
      scale: of the guidance; None for the config's.
    """
    data, samples = data_config(loaded.config), SAMPLES if samples is None else samples
    if samples < 1:
        raise UsageError(f'--limit {samples}: wanted at least 1 sample of each caption.')
    objects = prompts_of(loaded.config, data)
    painter, scores, seen = Painter(loaded), {}, None
    for name, scenes in objects.items():
        log(f'drawing {samples} samples of each of {len(scenes)} captions ({name})')
        texts = [text for text, _ in scenes for _ in range(samples)]
        labels = evaluate_gan.drawn_labels(data, len(texts), seed=47)
        shown = painter.pictures(texts, labels, scale=scale)
        wanted = [attributes for _, attributes in scenes for _ in range(samples)]
        if evaluate_gan.knows_words(data):
            reader = captioners.ToyReader(data.render.background)
            scores.update(accuracy(name, reader(shown[:, None], labels[:, None]), wanted, samples))
        seen = shown if seen is None else seen
    true, others = evaluate_gan.real(data, len(seen))
    seen = seen[np.linspace(0, len(seen) - 1, len(true)).astype(int)]  # a small data set has fewer
    scores.update(evaluate_gan.distances(seen, true, others))
    if 'frozen' in loaded.params:
        scores.update(ceiling(loaded, data, true, others, seen))
    if loaded.run is not None:
        log(f'open {sheet(painter, [text for text, _ in next(iter(objects.values()))], data, loaded.run)}')
    return scores


def sheet(painter: Painter, captions: list[str], data, folder) -> str:
    """Writes samples.png into a folder: captions spread over the list, a sample of each from all sides. Its path.

    The same captions and cameras for every system that learned from the same set, so that sheets can lie side by side.
    """
    texts = [captions[k] for k in np.linspace(0, len(captions) - 1, min(ROWS, len(captions))).round().astype(int)]
    shown = painter.around(texts, np.asarray(cameras.to_eg3d(evaluate_gan.ring(data, TURNS))))
    path = os.path.join(os.fspath(folder), 'samples.png')
    preview.write(path, preview.sheet(shown, texts, title='a sample of each caption, from all sides'))
    return path


def ceiling(loaded: Loaded, data, true, others, seen) -> dict[str, float]:
    """Distances of the stage-1 generator's pictures to the real ones, and of the samples to those pictures.

    toy: also the shares of the generator's objects that are read alike from two random cameras. Captions come from pictures, so
    no model that learns from them is right more often than this, unless it makes clearer objects than the generator.
    """
    count = len(true)
    studio = evaluate_gan.Studio(data, {name: loaded.params['frozen'][name] for name in ('generator', 'buffers')})
    styles = studio.styles(evaluate_gan.FIRST + np.arange(2 * count), loaded.config.psi)
    labels = evaluate_gan.drawn_labels(data, 2 * count, seed=53)
    made = studio.images(styles, labels)
    found = evaluate_gan.distances(made[:count], true, others)
    scores = {f'ceiling/{name}': found[name] for name in ('fid_tiny', 'kid_tiny') if name in found}
    between = evaluate_gan.distances(seen, made[:count], made[count:])
    if evaluate_gan.knows_words(data):
        reader, around = captioners.ToyReader(data.render.background), evaluate_gan.drawn_labels(data, count, seed=59)
        first, again = reader(made[:count, None], labels[:count, None]), studio.images(styles[:count], around)
        both = list(zip(first, reader(again[:, None], around[:, None]), strict=True))
        alike = np.array([[a[slot] == b[slot] for slot in SLOTS] for a, b in both])
        scores |= {f'ceiling/{slot}': float(share) for slot, share in zip(SLOTS, alike.mean(0))}
        scores['ceiling/both'] = float((alike[:, 0] & alike[:, 1]).mean())
    return {**scores, **{f'to_ceiling/{name}': between[name] for name in ('fid_tiny', 'kid_tiny') if name in between}}


def accuracy(name: str, found: list[dict], wanted: list[dict], samples: int) -> dict[str, float]:
    """Shares of samples that show what the caption says; the control asks every other caption of the list instead."""
    slots = [{slot: labels[slot] for slot in SLOTS} for labels in found]
    own = np.arange(len(wanted)) // samples
    values, control = attribute_shares(slots, wanted[::samples], own, ('colour', 'shape'))
    scores = {f'{name}/{label}': value for label, value in values.items()}
    scores |= {f'control/{name}/{label}_shuffled': value for label, value in control.items()}
    far = np.array([labels['distance'] for labels in found])
    scores |= {f'{name}/distance': float(far.mean()), f'{name}/readable': float((far <= captioners.THRESHOLD).mean())}
    return {**scores, f'{name}/n': len(found)}


def prompts_of(config, data, limit: int = 64) -> dict[str, list[tuple[str, dict]]]:
    """(caption, attributes) of the objects to draw: 'seen' first, then 'held_out' where the data hold some back."""
    if evaluate_gan.knows_words(data):
        return {
            name: [(scene.captions[0], scene.attributes) for scene in shapes.singles(split)]
            for name, split in (('seen', data.data.split), ('held_out', 'test'))
            if name == 'seen' or data.data.split == 'train'
        }
    if config.data.name == 'triplanes':
        texts = [record['caption'] for record in triplanes.open_source(config.data).records]
    else:
        texts = list(single_view.open_set(config).captions())
    different = sorted(set(texts))
    chosen = np.random.default_rng(59).permutation(len(different))[:limit]
    return {'seen': [(different[k], {}) for k in chosen]}


def data_config(config):
    """The config of the single-view set that a run's objects come from: for pairs, that of the generator they were made with.

    Where the folder of pairs is not here and its words are those of toy, toy as the generator's tiny config has it.
    """
    if config.data.name != 'triplanes':
        return config
    try:
        return triplanes.generator_config(config.data.path)
    except FileNotFoundError:
        if not set(config.text.words) <= set(shapes.WORDS):
            raise UsageError(
                f'scores compare with the pictures that the generator learned from, and {config.data.path} (data.path), which '
                'names them, is not here: run it where the pairs are.'
            ) from None
    data = dict(name='toy', kind='single_view', mode='posed-known', split='all', scenes='singles', poses=64, seed=0)
    sr = config.generator.sr
    data |= dict(size=sr.input_size * 2 ** sum(sr.ups), supersample=3, path='', mirror=False)
    return configs.from_dict({**config.to_dict(), 'data': data})


def pictures(loaded: Loaded, samples: int | None = None) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(captions [N], samples [N, V, S, S, 3], as many real pictures), for the scores of train/scores.py; not view by view."""
    data, count = data_config(loaded.config), SAMPLES if samples is None else samples
    prompts = [text for text, _ in prompts_of(loaded.config, data)['seen']]
    labels = evaluate_gan.drawn_labels(data, len(prompts) * count, seed=47)
    shown = Painter(loaded).pictures([text for text in prompts for _ in range(count)], labels)
    true, others = evaluate_gan.real(data, len(shown))
    true = np.resize(np.concatenate([true, others]), shown.shape)
    grouped = (len(prompts), count, *shown.shape[1:])
    return prompts, shown.reshape(grouped), true.reshape(grouped)


def sweep(loaded: Loaded, scales=SCALES, log=lambda line: None, *, samples: int = 4) -> list[dict]:
    """`evaluate` at each guidance scale: a list of {'guidance': scale, **scores}."""
    rows = []
    for scale in scales:
        rows.append({'guidance': float(scale), **evaluate(loaded, samples=samples, scale=float(scale))})
        shown = ('seen/colour', 'seen/shape', 'held_out/both', 'fid_tiny', 'kid_tiny')
        log(f'guidance {scale:g}: ' + ', '.join(f'{name} {rows[-1][name]:.3f}' for name in shown if name in rows[-1]))
    return rows
