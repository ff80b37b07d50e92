"""Checkpoints of a run: `checkpoints/00002000/` with the items state, ema, data and meta (Orbax, written asynchronously).

`meta` holds the format version, the config, and for every leaf its shape, dtype and a digest taken on the device before
saving. Orbax does not check its data; restoring here compares the digests and names a leaf that changed. A checkpoint
restores onto any device mesh and any number of processes: the targets are built from what the caller asks for, never from
the layout it was saved in. No random key is stored: keys are functions of the seed and the step.
"""

import contextlib
import functools
import gc
import hashlib
import itertools
import json
import logging
import re
import sys
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from t3d.core import tree as trees
from t3d.core.errors import UsageError, diverged
from t3d.core.system import TrainState
from t3d.core.typing import PyTree

FORMAT = 1
DIGITS = 8
_QUESTIONS = itertools.count(1)  # of this process, over all its runs


class Restored(NamedTuple):
    """What a checkpoint gives back."""

    state: TrainState
    data: dict[str, Any]  # position of the data: {'position': next batch, 'batch': global batch size}
    meta: dict[str, Any]  # format, config, leaves


class NoCheckpoint(UsageError, FileNotFoundError):
    """Nothing to restore."""


class CorruptCheckpoint(UsageError):
    """The stored bytes are not those that were saved."""


class Store:
    """The checkpoints of one folder.

    Args:
      folder: created if absent.
      keep: the latest ones kept; keep_every: multiples of this step are kept for good (0: none); best: the name of a
        metric whose lowest value is kept too ('' for none; prefix '+' for highest).
    """

    def __init__(self, folder, *, keep: int = 3, keep_every: int = 0, best: str = '', read_only: bool = False):
        import orbax.checkpoint as ocp

        self.folder = epath.Path(folder).absolute() if '://' not in str(folder) else epath.Path(folder)
        self._ocp = ocp
        self._best = best.lstrip('+')
        self._manager = None
        if read_only and not self.folder.exists():
            return
        with _quiet('absl'):  # it warns of read_only
            options = ocp.CheckpointManagerOptions(
                step_name_format=ocp.path.step.standard_name_format(step_format_fixed_length=DIGITS),
                preservation_policy=_policy(keep, keep_every, best),
                best_fn=(lambda metrics: metrics[self._best]) if best else None,  # without it metrics are not written
                best_mode='max' if best.startswith('+') else 'min',
                enable_async_checkpointing=not read_only,
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
            )
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=('state', 'ema', 'data', 'meta'))

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step() if self._manager else None

    def steps(self) -> list[int]:
        """All complete steps."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def save(self, state: TrainState, *, data: dict, config: dict, metrics: dict[str, float] | None = None) -> bool:
        """Starts saving the state under its step; False if that step is there already. The state may be donated after."""
        step = int(jax.device_get(state.step))
        if step in self._manager.all_steps():
            return False
        leaves, bad = inspect(state)
        if bad:
            self.wait()
            more = f' and {len(bad) - 3} more' if len(bad) > 3 else ''
            what = f'not saved: NaN or infinity in {", ".join(bad[:3])}{more} at step {step}'
            raise diverged(what, self.latest(), self.folder)
        save = self._ocp.args
        main, ema = _split(state)
        meta = {'format': FORMAT, 'step': step, 'config': config, 'leaves': leaves}
        meta['check'] = _json_digest(meta, data)
        args = {'state': save.StandardSave(main), 'data': save.JsonSave(data), 'meta': save.JsonSave(meta)}
        if jax.tree.leaves(ema):
            args['ema'] = save.StandardSave(ema)
        best = {self._best: float(metrics[self._best])} if metrics and self._best in metrics else None
        return bool(self._manager.save(step, args=save.Composite(**args), metrics=best, force=True))

    def restore(self, target: TrainState, step: int | None = None) -> Restored:
        """The state of a step (default: the latest), laid out as `target`: ShapeDtypeStructs with shardings."""
        step = self._pick(step)
        meta, data = self.describe(step)
        _check_leaves(trees.flatten(target), meta['leaves'], self._path(step))
        main, ema = _split(target)
        items = {'state': main, 'ema': ema} if jax.tree.leaves(ema) else {'state': main}
        read = self._read(step, items)
        state = TrainState(**read['state'], ema=read.get('ema', ema))
        self._verify(step, state, meta['leaves'])
        return Restored(state, data, meta)

    def restore_ema(self, step: int | None = None, sharding=None) -> PyTree:
        """Only the averaged parameters, as nested dictionaries: all that inference needs."""
        step = self._pick(step)
        meta, _ = self.describe(step)
        leaves = {name: leaf for name, leaf in meta['leaves'].items() if name.startswith('ema/')}
        if not leaves:
            raise UsageError(f'checkpoint {self._path(step)} holds no averaged parameters (ema).')
        sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = trees.unflatten(
            {
                name: jax.ShapeDtypeStruct(leaf['shape'], jnp.dtype(leaf['dtype']), sharding=sharding)
                for name, leaf in leaves.items()
            }
        )
        read = self._read(step, target)
        self._verify(step, read, leaves)
        return read['ema']

    def describe(self, step: int | None = None) -> tuple[dict, dict]:
        """The items (meta, data) of a step: config, leaves, position."""
        step = self._pick(step)
        meta, data = self._json(step, 'meta'), self._json(step, 'data')
        if meta.get('format', FORMAT) > FORMAT:
            raise UsageError(f'{self._path(step)} has format {meta["format"]}, this t3d reads up to {FORMAT}: update t3d.')
        if meta.pop('check', None) != _json_digest(meta, data):
            raise CorruptCheckpoint(f'{self._path(step)}: meta or data are not what was saved. {self._other(step)}')
        return meta, data

    def reached_preemption(self) -> bool:
        """To be asked by every process after every step: True on all of them at once, after one of them got SIGTERM.

        JAX's service is given the number of the question, not the step: it answers at one more than the largest number it
        has seen, so a signal that comes before the first question of a resumed run would name a step long past.
        """
        return self._manager.reached_preemption(next(_QUESTIONS))

    def wait(self) -> None:
        """Returns when the save in flight is complete."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then frees the threads."""
        if self._manager:
            self._manager.wait_until_finished()
            self._manager.close()

    def _path(self, step: int) -> epath.Path:
        return self.folder / f'{step:0{DIGITS}d}'

    def _pick(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise NoCheckpoint(f'no checkpoint found in {self.folder}: train first, or check the run folder.')
        if step is not None and step not in steps:
            raise NoCheckpoint(f'no checkpoint of step {step} in {self.folder}: there are {steps}.')
        return self.latest() if step is None else step

    def _json(self, step: int, item: str) -> dict:
        try:
            return self._manager.restore(step, args=self._ocp.args.Composite(**{item: self._ocp.args.JsonRestore()}))[item]
        except Exception as error:
            raise CorruptCheckpoint(f'{self._path(step)}/{item} cannot be read: {error}. {self._other(step)}') from error

    def _read(self, step: int, items: dict[str, PyTree]) -> dict[str, PyTree]:
        args = {name: self._ocp.args.StandardRestore(target) for name, target in items.items()}
        with _quiet('asyncio', 'absl'):
            try:
                return dict(self._manager.restore(step, args=self._ocp.args.Composite(**args)).items())
            except Exception as error:
                text = str(error)
            _end_abandoned_reads()
        _ignore_abandoned_reads()
        leaf = re.search(r"""Error reading "([^"]+)/[^"/]*"|'path': '([^'/][^']*)/'""", text)
        item = 'ema/' if '/ema/' in text else ''
        leaf = f' at leaf {item}{(leaf.group(1) or leaf.group(2)).replace(".", "/")}' if leaf else ''
        raise CorruptCheckpoint(f'{self._path(step)} cannot be read{leaf}: {text.splitlines()[0][:160]}. {self._other(step)}')

    def _verify(self, step: int, tree: PyTree, leaves: dict) -> None:
        found, _ = inspect(tree)
        bad = [
            name
            for name, leaf in found.items()
            if leaf['digest'] != leaves[name]['digest'] and leaf['dtype'] == leaves[name]['dtype']
        ]
        if bad:
            raise CorruptCheckpoint(
                f'{self._path(step)} is corrupt: the stored values of {", ".join(bad[:3])}'
                f'{f" and {len(bad) - 3} more" if len(bad) > 3 else ""} are not those that were saved. {self._other(step)}'
            )

    def _other(self, step: int) -> str:
        others = [other for other in self.steps() if other != step]
        return (
            f'Delete that folder to go on from step {others[-1]}.'
            if others
            else 'There is no other checkpoint in this run: copy it again, or train anew in another folder.'
        )


def inspect(tree: PyTree) -> tuple[dict[str, dict], list[str]]:
    """({name: {shape, dtype, digest}} of all leaves, names of floating leaves that hold NaN or infinity)."""
    leaves = trees.flatten(tree)
    mesh = next((leaf.sharding.mesh for leaf in leaves.values() if isinstance(leaf.sharding, jax.sharding.NamedSharding)), None)
    digests, finite = jax.device_get(_digests(mesh)(list(leaves.values())))
    table = {
        name: {'shape': list(leaf.shape), 'dtype': str(leaf.dtype), 'digest': int(digest)}
        for (name, leaf), digest in zip(leaves.items(), digests, strict=True)
    }
    return table, [name for name, good in zip(leaves, finite, strict=True) if not good]


@functools.lru_cache(maxsize=8)
def _digests(mesh):
    out = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()) if mesh else None

    def run(leaves):
        finite = [jnp.all(jnp.isfinite(x)) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.array(True) for x in leaves]
        return jnp.stack([digest(x) for x in leaves]), jnp.stack(finite)

    return jax.jit(run, out_shardings=out) if out else jax.jit(run)


def digest(x: jax.Array) -> jax.Array:
    """A uint32 of an array's bits, the same for every sharding: the sum modulo 2^32 of a mix of each word and its index."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = min(8 * x.dtype.itemsize, 32)
    words = jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{bits}')).astype(jnp.uint32)
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    h = words ^ (index * np.uint32(0x9E3779B1))
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)  # the finaliser of MurmurHash3
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32) + np.uint32(stride % 2**32)


def _split(state: TrainState) -> tuple[dict, PyTree]:
    main = {'step': state.step, 'params': state.params, 'opt_state': state.opt_state, 'extras': state.extras}
    return main, state.ema


def _json_digest(*items: dict) -> str:
    """A digest of JSON data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _quiet(*names: str):
    """Silences what libraries log about a failure that is reported here in one line."""
    loggers = [logging.getLogger(name) for name in names]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook
    sys.unraisablehook = lambda _: None
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _end_abandoned_reads() -> None:
    """Ends the reads of other leaves that Orbax leaves hanging after one has failed: each would complain when it is freed."""
    gc.collect()
    for thing in gc.get_objects():
        if type(thing) is types.CoroutineType and _is_read(thing):  # isinstance would wake lazy objects
            with contextlib.suppress(Exception):  # what they say of being ended
                thing.close()


def _ignore_abandoned_reads() -> None:
    """From a failed read on, keeps late words about it off the console; all else goes where it went.

    TensorStore's threads finish what was begun and wake an event loop that is closed, at any time until the process ends.
    """
    before = sys.unraisablehook
    if getattr(before, '__name__', '') == '_abandoned':
        return

    def _abandoned(unraisable) -> None:
        closed = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == 'Event loop is closed'
        if not closed and not _is_read(unraisable.object):
            before(unraisable)

    sys.unraisablehook = _abandoned


def _is_read(thing) -> bool:
    """Whether an object is a coroutine in which Orbax reads."""
    code = getattr(thing, 'cr_code', None)
    return code is not None and 'orbax' in code.co_filename and ('read' in code.co_name or 'deserialize' in code.co_name)


def _check_leaves(target: dict, stored: dict, path) -> None:
    """A short message where the names or shapes of a target and a checkpoint differ."""
    given = {name: jax.ShapeDtypeStruct(tuple(leaf['shape']), np.uint8) for name, leaf in stored.items()}
    lines = trees.mismatch(given, target)
    if lines:
        raise UsageError(
            f'checkpoint {path} is of another model:\n'
            + '\n'.join(lines)
            + '\n  Restore with the config beside it (config.json of the run folder).'
        )


def _policy(keep: int, keep_every: int, best: str):
    from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

    kept = [policies.LatestN(keep)]
    if keep_every:
        kept.append(policies.EveryNSteps(keep_every))
    if best:
        name = best.lstrip('+')
        kept.append(
            policies.BestN(
                get_metric_fn=lambda metrics: metrics[name],
                reverse=not best.startswith('+'),
                n=1,
                keep_checkpoints_without_metrics=False,
            )
        )
    return policies.AnyPreservationPolicy(kept)
