"""The config of a run folder: from its file, or from a checkpoint where the file is damaged or is not what was saved with."""

from t3d.checkpoint import around_orbax
from t3d.checkpoint import store as stores
from t3d.core import config as configs
from t3d.core.errors import UsageError

# Sections that may change when a run is resumed; `given` is compared by content.
FREE = ('steps', 'log_every', 'preview_every', 'checkpoint', 'mesh', 'fsdp_floor', 'loader', 'export', 'sample', 'given')
FREE += ('evaluate', 'must_match', 'saves_memory', 'offload')
BEFORE = {
    'optimizer.kernels': 'adam',
    'fakes': 'new',
    'average.images': 0,
    'average.rampup': 0.05,
    'fall.images': (0, 1),
    'fall.final': 1.0,
}  # keys that came later, and what runs did that were made before them


def read(path):
    """The config of a run folder; UsageError where its file is damaged and no checkpoint knows it."""
    stored = path / 'config.json'
    try:
        config = configs.read(stored)
        if not config:
            raise UsageError(f'{stored} is damaged (it is empty): copy it again.')
        return config
    except UsageError as damage:
        reader = stores.Store(path / 'checkpoints', read_only=True)
        try:
            config = configs.from_dict(reader.describe()[0]['config'])
        except UsageError:
            raise damage from None
        finally:
            reader.close()
        around_orbax.note(f'{stored} is damaged: read from checkpoint {reader.latest()}')
        return config


def changed(old, new) -> dict[str, tuple]:
    """{dotted name: (old, new value)} of what a run may not go on with; a key that is new takes its value, but for BEFORE."""
    known = lambda key, value: BEFORE.get(key, value) if value == configs.MISSING else value
    pairs = {key: (known(key, there), now) for key, (there, now) in configs.differences(old, new).items()}
    same = lambda pair: pair[0] == configs.MISSING or pair[0] == pair[1]
    return {key: pair for key, pair in pairs.items() if key.split('.')[0] not in FREE and not same(pair)}


def as_saved(config, reader: stores.Store):
    """The config of a run folder, with the values that its checkpoint was saved with where they differ: a line says which.

    What may change on resume, and where the data lie, is left as the folder has it.
    """
    try:
        saved = configs.flatten(configs.from_dict(reader.describe()[0]['config']))
    except stores.CorruptCheckpoint:  # said where the weights were read
        return config
    ours = configs.flatten(config)
    changed = [key for key in saved if key in ours and saved[key] != ours[key] and key.split('.')[0] not in (*FREE, 'data')]
    if not changed:
        return config
    values = ', '.join(f'{key}={saved[key]!r} (now {ours[key]!r})' for key in changed[:3])
    around_orbax.note(f'config.json is not the one that checkpoint {reader.latest()} was saved with; used is {values}')
    flat = {**config.to_dict()}
    for key in changed:
        *parents, last = key.split('.')
        node = flat
        for parent in parents:
            node = node[parent]
        node[last] = saved[key]
    return configs.from_dict(flat)
