"""Captioned triplanes from a trained generator: seed -> planes -> pictures -> captioner -> manifest, and channel statistics.

The folder's format is that of data/adapters/triplanes.py. What is stored is the seed; the planes are made again from it in
training, so what is computed here is the pictures, which the captioner sees, and the mean and deviation of each plane channel
over all pairs, in float64.
"""

import hashlib
import json
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.build import captioners, triplane_shares
from t3d.core import config as configs
from t3d.core import shares
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.data.adapters import triplanes
from t3d.export import sheets
from t3d.fields.triplane_generator import Generator
from t3d.inference import loading
from t3d.metrics import fid

SHEET = 'pairs.png'
SHOWN = 32  # pairs on the sheet


def channel_moments(values: np.ndarray) -> fid.Moments:
    """Statistics of values [N, K], in two passes: each channel alone, so `scatter` is [K]."""
    values = np.asarray(values, np.float64)
    mean = values.mean(0)
    return fid.Moments(len(values), mean, np.sum((values - mean) ** 2, 0))


def channels_of(planes: np.ndarray) -> np.ndarray:
    """[N, 3 C] rows of planes [B, 3, R, R, C]: channel k is feature k % C of plane k // C."""
    batch, count, height, width, channels = planes.shape
    rows = np.asarray(planes, np.float64).transpose(0, 2, 3, 1, 4)
    return rows.reshape(batch * height * width, count * channels)


def run(
    source,
    out,
    *,
    pairs: int = 1000,
    captioner: str = 'toy',
    psi: float = 1.0,
    batch: int = 16,
    seed0: int = 0,
    views: int = 1,
    weights=None,
    template: str = 'objects',
    share: shares.Share | None = None,
    log=print,
) -> pathlib.Path:
    """Makes pairs with seeds seed0, seed0 + 1, ..., or goes on with a folder that holds fewer; returns the folder.

    Args:
      source: run folder or weights folder of a triplane GAN.
      psi: truncation of w towards its mean; 1 is none.
      views: pictures of each object that the captioner sees, from cameras of the data set, or of those that it knows.
      weights, template: of BLIP captioners.
      share: makes only the blocks of this one of several processes (triplane_shares); a call without puts them together.
    Raises:
      UsageError: `source` is no triplane GAN, or the folder holds pairs of another generator or other settings.
    """
    loaded = loading.load(source)
    if not isinstance(loaded.system.functions, Generator):
        raise UsageError(f'{source} is of system {loaded.config.system}: triplanes come from a run of a triplane GAN.')
    if min(pairs, batch, views) < 1 or seed0 < 0 or seed0 + pairs > 2**32:
        raise UsageError(
            f'pairs={pairs}, batch={batch}, views={views}, seed0={seed0}: wanted at least 1, and seeds below 2^32.'
        )
    out = pathlib.Path(out)
    reader = captioners.make(captioner, loaded.config, weights=weights, template=template)
    leaves = {name: np.asarray(leaf) for name, leaf in trees.flatten(jax.device_get(loaded.weights)).items()}
    head = {
        'format_version': triplanes.FORMAT,
        'generator_sha256': triplanes.fingerprint(leaves),
        'generator': f'{loaded.name}, step {loaded.step}',
        'psi': float(psi),
        'seed0': seed0,
        'z': triplanes.beginning(seed0),
        'views': views,
        'captioner': reader.name,
        'triplanes': triplanes.meaning(loaded.config),
    }
    draw = SampleRenderer(loaded, psi, views, reader.labels)
    seeds_of = lambda start, stop: np.arange(seed0 + start, seed0 + min(start + batch, stop), dtype=np.uint32)
    if share is not None:
        have = triplanes.read_manifest(out)['pairs'] if (out / triplanes.MANIFEST).exists() else 0
        _make_share(triplane_shares.waiting(out, share, have, pairs, batch), head, batch, draw, reader, seeds_of, log)
        return out
    folder = Folder(out, head)
    first, examples, began = folder.pairs, [], time.monotonic()
    if first >= pairs:
        log(f'nothing to do: {out} has {first} pairs')
    while folder.pairs < pairs:
        start, seeds = folder.pairs, seeds_of(folder.pairs, pairs)
        made, shared = None, triplane_shares.after(out, start, head, batch)
        for lines, moments in shared:
            folder.append(lines, moments)
        if not shared or len(examples) < SHOWN:  # what shares have drawn is not kept
            made = draw(seeds, batch)
        if not shared:
            lines = _captioned(reader, seeds, made)
            folder.append(lines, channel_moments(made.channels))
        if made is not None:
            examples += list(zip(made.images, shared[0][0] if shared else lines))[: SHOWN - len(examples)]
        triplane_shares.remove(out, folder.pairs)
        rate = (folder.pairs - first) / (time.monotonic() - began)
        log(f'{folder.pairs}/{pairs} pairs, {rate:.1f}/s: {lines[-1]["caption"]}')
    _finish(out, loaded, examples)
    return out


def _make_share(waiting, head: dict, batch: int, draw, reader: captioners.Captioner, seeds_of, log) -> None:
    """Makes the blocks that a share has to make."""

    def batches(block):
        for start in range(block.start, block.stop, batch):
            seeds = seeds_of(start, block.stop)
            made = draw(seeds, batch)
            yield _captioned(reader, seeds, made), channel_moments(made.channels)

    for block in waiting:
        triplane_shares.write(block, head, batch, batches(block), log)
    log(f'{len(waiting)} blocks made: the same command without --share puts all together')


class Made(NamedTuple):
    """What is drawn from seeds."""

    images: np.ndarray  # [N, V, S, S, 3] in [0, 1]
    labels: np.ndarray  # [N, V, 25]
    channels: np.ndarray  # [N R R, 3 C]


class SampleRenderer:
    """From seeds to planes and pictures, by the generator's averaged weights; an object depends on its seed alone."""

    def __init__(self, loaded: loading.Loaded, psi: float, views: int, labels: np.ndarray | None = None):
        self.labels = Labels(loaded.config, labels)
        self.params, self.views = loaded.weights, views
        generator = loaded.system.functions

        def draw(tree, seeds, labels):
            params, buffers = tree['generator'], tree['buffers']
            ws = generator.ws(params, buffers, generator.z_of_seed(seeds), psi=psi)
            planes = generator.planes(params, buffers, ws)
            w = generator.style_of(buffers, ws[:, -1])

            def look(label):
                seen = generator.render(params, planes, label, size=generator.render_size)
                return generator.upsample(params, seen.features, w)

            images = jax.lax.map(look, labels.swapaxes(0, 1)).swapaxes(0, 1)
            return planes, jnp.clip(0.5 + 0.5 * images, 0.0, 1.0)

        self._draw = jax.jit(draw)

    def __call__(self, seeds: np.ndarray, batch: int) -> Made:
        """The objects of at most `batch` seeds."""
        labels = np.stack([self.labels(int(seed), self.views) for seed in seeds])
        pad = lambda x: np.concatenate([x, np.repeat(x[-1:], batch - len(x), axis=0)])  # one shape, so one compilation
        planes, images = jax.device_get(self._draw(self.params, pad(seeds), pad(labels)))
        return Made(images[: len(seeds)], labels, channels_of(planes[: len(seeds)]))


class Labels:
    """Camera labels drawn from `known` [M, 25], or from the data set of a generator's config; of a seed always the same."""

    def __init__(self, config, known: np.ndarray | None = None):
        from t3d.data.adapters import single_view

        self.table = single_view.labels(config) if known is None else known

    def __call__(self, seed: int, views: int) -> np.ndarray:
        """float32 [views, 25]."""
        return self.table[np.random.default_rng((25, seed)).integers(len(self.table), size=views)]


def _captioned(reader: captioners.Captioner, seeds, made: Made) -> list[dict]:
    """The manifest's lines; which of the captions of an object is a matter of its seed."""
    lines = []
    for seed, slots in zip(seeds, reader.caption(made.images, made.labels), strict=True):
        choice = int(np.random.default_rng((7, int(seed))).integers(2**16))
        lines.append({'seed': int(seed), 'caption': reader.render(slots, choice), 'slots': slots})
    return lines


# ------------------------------------------------------------------------------------------------------------- folder


class Folder:
    """The manifest of a folder, begun or gone on with; lines that were not finished are dropped.

    Args:
      head: what the manifest says beside the pairs and their statistics; another one is refused.
    """

    def __init__(self, out: pathlib.Path, head: dict):
        self.out, self.head, self.pairs, self.stats, self.digest = out, head, 0, None, hashlib.sha256()
        if (out / triplanes.MANIFEST).exists():
            self._go_on(triplanes.read_manifest(out))
            return
        others = sorted(path.name for path in out.iterdir()) if out.exists() else []
        if set(others) - {triplanes.LINES, triplanes.MANIFEST + '.part', triplane_shares.PARTS}:
            raise UsageError(f'{out} holds {", ".join(others[:5])} but no {triplanes.MANIFEST}: choose an empty folder.')
        out.mkdir(parents=True, exist_ok=True)
        (out / triplanes.LINES).write_bytes(b'')

    def _go_on(self, there: dict) -> None:
        head, out = self.head, self.out
        if there['generator_sha256'] != head['generator_sha256']:
            theirs, ours = (f'{one["generator"]} (SHA-256 {one["generator_sha256"][:12]})' for one in (there, head))
            raise UsageError(
                f'{out} has {there["pairs"]} pairs of another generator: {theirs}, not {ours}. Choose another --out.'
            )
        triplanes.check_draws(out, there)
        head = self.head = {**head, 'z': there.get('z')}  # equal but for rounding; None for a set from before there was one
        wrong = [
            f'{name} {there.get(name)!r} there, {value!r} given' for name, value in head.items() if there.get(name) != value
        ]
        if wrong:
            raise UsageError(f'{out} was made otherwise: {"; ".join(wrong)}. Give the same values, or choose another --out.')
        self.pairs, sums = there['pairs'], there['stats']
        self.stats = fid.Moments(sums['count'], np.array(sums['mean']), np.array(sums['squares']))
        lines = (out / triplanes.LINES).read_bytes().split(b'\n')[:-1]  # what follows the last newline was not finished
        kept = b''.join(line + b'\n' for line in lines[: self.pairs])
        self.digest.update(kept)
        if len(lines) < self.pairs or there['sha256'] != self.digest.hexdigest():
            raise UsageError(f'{out / triplanes.LINES} is not what was written: copy it again, or make the pairs anew.')
        (out / triplanes.LINES).write_bytes(kept)

    def append(self, lines: list[dict], moments: fid.Moments) -> None:
        """Adds lines and, in one piece, the manifest that counts them and the statistics of their planes' channels."""
        text = ''.join(json.dumps(line) + '\n' for line in lines).encode()
        with (self.out / triplanes.LINES).open('ab') as file:
            file.write(text)
        self.digest.update(text)
        self.pairs += len(lines)
        self.stats = moments if self.stats is None else fid.merge(self.stats, moments)
        sums = {'count': self.stats.n, 'mean': self.stats.mean.tolist(), 'squares': self.stats.scatter.tolist()}
        manifest = {**self.head, 'pairs': self.pairs, 'sha256': self.digest.hexdigest(), 'stats': sums}
        part = self.out / (triplanes.MANIFEST + '.part')
        part.write_text(json.dumps(manifest, indent=1) + '\n')
        part.replace(self.out / triplanes.MANIFEST)


def _finish(out: pathlib.Path, loaded: loading.Loaded, examples: list) -> None:
    """Writes the frozen generator, and a sheet of the first pairs of this call."""
    from t3d.checkpoint import weights

    weights.save(out / triplanes.FROZEN, loaded.weights, configs.from_dict({**loaded.config.to_dict(), 'steps': loaded.step}))
    columns = min(4, len(examples))
    if examples:
        examples = examples[: len(examples) // columns * columns]
        images = np.stack([pictures for pictures, _ in examples])  # [N, V, S, S, 3]
        captions = [line['caption'] for _, line in examples]
        labels = [' | '.join(captions[k : k + columns]) for k in range(0, len(captions), columns)]
        sheets.write(out / SHEET, sheets.sheet(images.reshape(len(labels), -1, *images.shape[2:]), labels))
