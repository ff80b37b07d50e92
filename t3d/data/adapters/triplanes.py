"""Pairs of (seed, caption) for triplane diffusion: a folder that `python -m launch.make_triplanes` writes.

A triplane is stored as the seed it is made from again by the frozen generator (1.26 TB of planes in a text file of 10 MB):

    manifest.json    generator_sha256, psi, pairs, seed0, z (how that seed's begins), captioner, format_version,
                     triplanes {plane_axes, resolution, ...}
    manifest.jsonl   {"seed": 17, "caption": "a red cube", "slots": {...}} in each line
    frozen/          the generator as a weights folder, with the config of its run

Pairs belong to one generator: the arrays' SHA-256 is in the manifest, and what decides the meaning of a triplane (ganfusion.md,
section 10, item 13) is written there and compared with the config of whoever reads.
"""

import functools
import hashlib
import sys
from collections.abc import Callable, Mapping

import numpy as np

from t3d.core import config as configs
from t3d.core import files, prng, strict_json, text, tokens
from t3d.core.errors import UsageError
from t3d.data.sets import caption_words, shapes
from t3d.data.sets.captions import vocabulary

NEEDS = ('data.path', 'text.length', 'psi', 'given.generator')
FORMAT = 1
Z_KEPT, Z_TOLERANCE = 8, 1e-4  # numbers of the z that a manifest keeps; a normal number's rounding differs between devices
MANIFEST, LINES, FROZEN = 'manifest.json', 'manifest.jsonl', 'frozen'
MEANING = {  # what a triplane's numbers mean: name -> key of a config
    'plane_axes': 'render.plane_axes',
    'resolution': 'generator.plane_resolution',
    'channels': 'generator.plane_channels',
    'bound': 'render.box_warp',
    'background': 'render.background',
    'sr_style': 'generator.sr_style',
}
AGAIN = 'make it with `python -m launch.make_triplanes --run RUN --out {folder} --pairs 1000 --captioner toy`'


class NoTriplanes(UsageError, FileNotFoundError):
    """No folder of pairs was named."""


def meaning(config) -> dict:
    """What a config's triplanes mean: the values of `MEANING`, None where it has none."""
    flat = configs.flatten(config)
    return {name: flat.get(key) for name, key in MEANING.items()}


def fingerprint(leaves: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the generator's arrays by path name (parts `generator` and `buffers`): names, types, shapes, bytes."""
    digest = hashlib.sha256()
    for name in sorted(name for name in leaves if name.split('/')[0] in ('generator', 'buffers')):
        leaf = np.ascontiguousarray(leaves[name])
        digest.update(f'{name} {leaf.dtype} {leaf.shape}\n'.encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def read_manifest(folder) -> dict:
    """manifest.json of a folder; UsageError with the command that makes one where it is missing or of a newer format."""
    path = files.local(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f'no triplanes in {folder} ({MANIFEST} is missing): {AGAIN.format(folder=folder)}.')
    try:
        manifest = strict_json.loads(path.read_bytes(), str(path))
    except UsageError as error:
        raise UsageError(f'{path} is damaged ({error}): {AGAIN.format(folder=folder)}, in an empty folder.') from error
    kinds = {'generator_sha256': str, 'psi': int | float, 'pairs': int, 'triplanes': dict}
    missing = [
        f'{key!r}' for key, kind in kinds.items() if not isinstance(manifest, dict) or not isinstance(manifest.get(key), kind)
    ]
    if missing or not isinstance(manifest.get('format_version', 0), int):
        raise UsageError(
            f'{path} is no manifest of pairs ({", ".join(missing) or "its format_version"} missing or of another type): '
            f'{AGAIN.format(folder=folder)}, in an empty folder.'
        )
    if manifest.get('format_version', 0) > FORMAT:
        raise UsageError(f'{path} has format {manifest["format_version"]}, this t3d reads up to {FORMAT}: update t3d.')
    return manifest


class Pairs:
    """Random access to the pairs of a folder; `source[i]` is {'seed', 'caption', 'captions', 'slots'}.

    Args:
      path: the folder.
      max_distance: pairs whose slot `distance` is larger are left out; 0 keeps all.
    Raises:
      FileNotFoundError, UsageError: nothing there, or not what was written; the message has the next step.
    """

    def __init__(self, path, *, max_distance: float = 0.0):
        self.folder = files.local(path)
        self.manifest = check(self.folder)
        lines = list(text.lines(text.strict((self.folder / LINES).read_bytes(), str(self.folder / LINES))))
        count = self.manifest['pairs']
        if len(lines) < count:
            raise UsageError(f'{self.folder / LINES} has {len(lines)} lines of {count}: it is truncated; copy it again.')
        self.records = [self._record(number, line) for number, line in enumerate(lines[:count])]
        if max_distance:
            self.records = [record for record in self.records if record['slots'].get('distance', 0.0) <= max_distance]
        if not self.records:
            raise UsageError(f'{self.folder} has no pair within data.max_distance={max_distance}: raise it, or 0 for all.')

    def _record(self, number: int, line: str) -> dict:
        where = f'{self.folder / LINES}, line {number + 1}'
        record = strict_json.loads(line.encode(), where)
        record = record if isinstance(record, dict) else {}
        seed, caption, slots = record.get('seed'), record.get('caption'), record.get('slots', {})
        distance = slots.get('distance', 0.0) if isinstance(slots, dict) else None
        good = type(seed) is int and 0 <= seed < 2**32 and isinstance(caption, str) and type(distance) in (int, float)
        if not good:
            raise UsageError(
                f'{where} is no pair: {line[:80]!r}. Wanted {{"seed": 17, "caption": "a red cube"}}, the seed from 0 to '
                '2^32 - 1, and where there are slots, an object of them.'
            )
        return {'seed': np.uint32(seed), 'caption': caption, 'captions': (caption,), 'slots': slots}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f'pair {index} of {len(self)} in {self.folder}')
        return self.records[int(index)]

    def __repr__(self) -> str:
        return f'Pairs({str(self.folder)!r}, {len(self)})'


def beginning(seed: int) -> dict:
    """The fingerprint of the draws: a seed and how its z begins, as a manifest keeps them under 'z'."""
    return {'seed': int(seed), 'begins': [round(float(value), 6) for value in prng.normals([seed], Z_KEPT)[0]]}


def check_draws(folder, manifest: dict) -> None:
    """Raises UsageError where seeds stand for other objects here than where the pairs were made.

    Sets from before there was a fingerprint are read all the same, and a line says so: their z cannot be compared.
    """
    kept = manifest.get('z')
    if kept is None:
        _say_unchecked(str(folder))
        return
    try:
        there, ours = np.asarray(kept['begins'], np.float64), beginning(kept['seed'])
        same = there.shape == (Z_KEPT,) and np.abs(there - ours['begins']).max() < Z_TOLERANCE
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise UsageError(f"{folder}: 'z' in {MANIFEST} is damaged ({error!r}): copy the folder again.") from error
    if not same:
        first = lambda values: ', '.join(f'{value:.4f}' for value in values[:3])
        raise UsageError(
            f'{folder}: the z of seed {kept["seed"]} began with {first(there)} when its pairs were made, and begins with '
            f'{first(ours["begins"])} here: the captions are of other objects. M{AGAIN[1:].format(folder="ANOTHER")}.'
        )


@functools.cache
def _say_unchecked(folder: str) -> None:
    """Prints the note once for each folder."""
    print(
        f'note: {folder} was made before sets kept how a z begins: its seeds are drawn as JAX does by default, and whether its '
        'captions are of these objects cannot be compared.',
        file=sys.stderr,
    )


def check(folder) -> dict:
    """The manifest of a folder whose frozen generator and draws are the ones that the pairs were made with."""
    folder = files.local(folder)
    manifest = read_manifest(folder)
    missing = [
        name for name in (LINES, f'{FROZEN}/model.safetensors', f'{FROZEN}/config.json') if not (folder / name).is_file()
    ]
    if missing:
        raise UsageError(
            f'{folder} lacks {", ".join(missing)}: finish it with the command that began it (launch.make_triplanes).'
        )
    if 'stats' not in manifest or _has_statistics(folder / FROZEN / 'model.safetensors'):
        raise UsageError(
            f'{folder} was made by an older t3d: run the command that made it once more (launch.make_triplanes, same values); '
            f'it keeps the pairs and writes {FROZEN}/ anew.'
        )
    weights = folder / FROZEN / 'model.safetensors'
    digest = _fingerprint_of(str(weights), weights.stat().st_mtime_ns)
    if digest != manifest['generator_sha256']:
        raise UsageError(
            f'{folder}: the generator in {FROZEN}/ (SHA-256 {digest[:12]}) is not the one its pairs were made with '
            f'({manifest["generator_sha256"][:12]}): the captions are of other objects. Copy the folder again, or make it anew.'
        )
    refuse_other_meaning(generator_config(folder), folder, manifest)
    check_draws(folder, manifest)
    return manifest


@functools.lru_cache(maxsize=8)
def _fingerprint_of(path: str, changed: int) -> str:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return fingerprint(load_file(path))
    except SafetensorError as error:
        raise UsageError(f'{path} is damaged ({error}): copy it again.') from error


def _has_statistics(path) -> bool:
    """Whether the generator's file holds the statistics of planes too, as it did before they were config."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, 'numpy') as stored:
            return any(name.startswith('stats/') for name in stored.keys())
    except SafetensorError as error:
        raise UsageError(f'{path} is damaged ({error}): copy it again.') from error


def generator_config(folder):
    """The config of the generator's run."""
    return configs.read(files.local(folder) / FROZEN / 'config.json')


def refuse_other(config, folder, manifest: dict) -> None:
    """Raises UsageError where a config's psi is not a folder's, or its generator another than the pairs were made with."""
    if config.psi != manifest['psi']:
        raise UsageError(
            f'{folder} holds planes of psi={manifest["psi"]!r}, this config has psi={config.psi!r}: set that of the folder, or '
            'give another data.path.'
        )
    place = files.local(config.given.generator or '')
    if not (place / 'model.safetensors').is_file():  # what was given and is not there, opening it will say
        return
    digest = _fingerprint_of(str(place / 'model.safetensors'), (place / 'model.safetensors').stat().st_mtime_ns)
    if digest != manifest['generator_sha256']:
        raise UsageError(
            f'given.generator={config.given.generator!r} is another generator (SHA-256 {digest[:12]}) than that which the '
            f'pairs of {folder} were made with ({manifest["generator_sha256"][:12]}): its planes are not what the captions '
            "say. Set given.generator=''."
        )
    refuse_other_meaning(configs.read(place / 'config.json'), folder, manifest)


def refuse_other_meaning(theirs, folder, manifest: dict) -> None:
    """Raises UsageError where a generator's config says otherwise than the manifest what a triplane means."""
    says, meant = meaning(theirs), manifest['triplanes']
    wrong = [
        f'{MEANING.get(name, name)}={says.get(name)!r}, there {value!r}'
        for name, value in meant.items()
        if says.get(name) != value
    ]
    if wrong:
        raise UsageError(
            f"{folder} holds other triplanes than its generator's config describes: {'; '.join(wrong)}. Copy the folder again."
        )


# ------------------------------------------------------------------------------------------------------- data.sources


def open_source(data) -> Pairs:
    """The source of a config's `data` section: keys path, and max_distance where it is there."""
    if not data.path:
        raise NoTriplanes(f'data.path is empty: give the folder of triplanes. M{AGAIN[1:].format(folder="DIR")}.')
    return Pairs(data.path, max_distance=float(data.get('max_distance', 0.0)))


def example(config) -> Callable[[dict, np.random.Generator], dict[str, np.ndarray]]:
    """The transform of a config: the caption's tokens int32 [N], and the seed, a uint32 scalar."""
    tokenize = tokens.make(config.text)

    def transform(record: dict, random: np.random.Generator) -> dict[str, np.ndarray]:
        return {'tokens': tokenize([record['caption']])[0], 'seed': np.uint32(record['seed'])}

    return transform


def make(config, split: str | None = None, batch_spec: dict | None = None) -> tuple[Pairs, Callable]:
    """(source, transform) of a config whose triplanes are those of its folder."""
    source = open_source(config.data)
    refuse_other(config, source.folder, source.manifest)
    caption_words.check((record['caption'] for record in source.records), config.text, str(source.folder))
    return source, example(config)


def preview(config, batch_spec: dict | None = None) -> tuple[dict[str, np.ndarray], list[str]]:
    """A batch of pairs with different captions, evenly spread, and their captions; depends on the config alone."""
    source, count = open_source(config.data), min(config.preview.rows, config.batch)
    first = {}
    for record in source.records:
        first.setdefault(record['caption'], record)
    different = [first[caption] for caption in sorted(first)]
    records = [different[int(k)] for k in np.linspace(0, len(different) - 1, count)]
    captions = [record['caption'] for record in records]
    return {'tokens': tokens.make(config.text)(captions), 'seed': np.array([r['seed'] for r in records], np.uint32)}, captions


def resolve(config):
    """The config with what only the folder knows: given.generator, planes, psi, sr_style, text.words.

    A value that is not that of the config's file was given, and stays: refused where it changes what a triplane means.
    """
    source = open_source(config.data)
    style = configs.flatten(generator_config(source.folder))['generator.sr_style']
    with config.unlocked():
        _follow(config, {'psi': source.manifest['psi'], 'sr_style': 'unit' if style == 'unit' else config.sr_style})
        if config.sr_style == 'unit' != style:  # of the two constants for an upsampler that reads w, either will do
            _follow(config, {'sr_style': 'ones_w'})
        if not config.given.generator or config.given.generator.partition(':')[0].endswith('.py'):  # a config: not yet trained
            config.given.generator = str(source.folder / FROZEN)
        if not config.planes.mean:
            config.planes.mean, config.planes.std = statistics(source.manifest)
        if not config.text.get('folder') and not config.text.words:
            whole = source.manifest.get('captioner') == 'toy'  # the grammar, whichever of its words few pairs happen to say
            config.text.words = tuple(shapes.WORDS if whole else vocabulary(record['caption'] for record in source.records))
    refuse_other(config, source.folder, source.manifest)
    return config


def statistics(manifest: dict) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, deviation) of the 3 C channels of all planes of a folder, float32 values."""
    sums = manifest['stats']
    deviation = np.sqrt(np.array(sums['squares']) / max(sums['count'], 1))
    return tuple(tuple(np.float32(values).tolist()) for values in (sums['mean'], deviation))


def _follow(config, values: dict) -> None:
    """Puts values of the folder in place of those that nobody chose: those of the config's file."""
    try:
        written = configs.load(f'{config.system}:{config.variant}')
    except (AttributeError, UsageError):
        return
    for name, value in values.items():
        if config[name] == written.get(name):
            config[name] = value
