"""Checkpoints of a run: `checkpoints/00002000/` with the items state, ema, data and meta (Orbax, written asynchronously).

`meta` holds the format version, the config, and for every leaf its shape, dtype and a digest taken on the device before
saving. Orbax does not check its data; restoring here compares the digests and names a leaf that changed. A checkpoint
restores onto any device mesh and any number of processes: the targets are built from what the caller asks for, never from
the layout it was saved in. No random key is stored: keys are functions of the seed and the step.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from t3d.checkpoint import around_orbax, digests
from t3d.core import tree as trees
from t3d.core.errors import OneProcess, UsageError, diverged
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


class SaveFailed(OneProcess):
    """A checkpoint could not be written."""


class CorruptCheckpoint(UsageError):
    """The stored bytes are not those that were saved."""


class Store:
    """The checkpoints of one folder.

    Args:
      folder: created if absent.
      keep: the latest ones kept (0: all); keep_every: multiples of this step are kept for good (0: none); best: the name of a
        metric whose lowest value is kept too ('' for none; prefix '+' for highest).
    """

    def __init__(self, folder, *, keep: int = 3, keep_every: int = 0, best: str = '', read_only: bool = False):
        import orbax.checkpoint as ocp

        if keep < 0 or keep_every < 0:
            raise UsageError(
                f'checkpoint.keep={keep}, checkpoint.keep_every={keep_every}: wanted 0 or more (keep=0: keep all).'
            )
        self.folder = around_orbax.literal(folder)
        self._ocp = ocp
        self._best = best.lstrip('+')
        self._manager, self._saving, self._open = None, None, contextlib.ExitStack()
        if not read_only:
            around_orbax.hush()
        if read_only and not self.folder.exists():
            return
        with around_orbax.quiet('absl'):  # it warns of read_only
            options = ocp.CheckpointManagerOptions(
                step_name_format=around_orbax.step_names(DIGITS),
                preservation_policy=_policy(keep, keep_every, best),
                best_fn=(lambda metrics: metrics[self._best]) if best else None,  # without it metrics are not written
                best_mode='max' if best.startswith('+') else 'min',
                enable_async_checkpointing=not read_only,
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
            )
            if not read_only:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._root = self._open.enter_context(around_orbax.readable(self.folder))
            self._manager = around_orbax.manager(self._root, options, self._best, self.folder)

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
        leaves, bad = digests.inspect(state)
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
        with self._failures():  # of the save before, too
            self._manager.wait_until_finished()
            self._saving = step
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
        """Only the averaged parameters, as nested dictionaries: all that inference needs.

        They load where the config or the position of the data beside them is damaged; a line on stderr says so.
        """
        step = self._pick(step)
        leaves = {name: leaf for name, leaf in self._leaves(step).items() if name.startswith('ema/')}
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

    def _leaves(self, step: int) -> dict[str, dict]:
        """Shape, dtype and digest of every leaf; without digests, and of the averages alone, where `meta` cannot be read."""
        path = self._path(step)
        try:
            return self.describe(step)[0]['leaves']
        except CorruptCheckpoint as error:
            damage = error
        with contextlib.suppress(CorruptCheckpoint):
            meta = self._json(step, 'meta')
            if _has_leaves(meta):
                around_orbax.note(f'{path}: its config or data position is damaged; the weights are read and verified')
                return meta['leaves']
        try:
            tree = self._ocp.StandardCheckpointHandler().metadata(self._root / path.name / 'ema').tree
        except Exception as error:
            raise damage from error
        around_orbax.note(f'{path}: its meta is damaged; the weights are read, but their digests were in it: not verified')
        return {
            f'ema/{name}': {'shape': leaf.shape, 'dtype': str(leaf.dtype), 'digest': None}
            for name, leaf in trees.flatten(tree).items()
        }

    def describe(self, step: int | None = None) -> tuple[dict, dict]:
        """The items (meta, data) of a step: config, leaves, position."""
        step = self._pick(step)
        meta, data = self._json(step, 'meta'), self._json(step, 'data')
        if not (_has_leaves(meta) and isinstance(data, dict)):
            raise CorruptCheckpoint(f'{self._path(step)}: meta or data are not what was saved. {self._other(step)}')
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
        with self._failures():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then frees the threads."""
        if self._manager:
            with self._open, self._failures():
                self._manager.close()

    def safe(self) -> str:
        """The last complete checkpoint and how to go on from it, as the end of a message."""
        found = [path.name for path in self.folder.iterdir() if path.name.isdigit()] if self.folder.exists() else []
        if not found:
            return 'No checkpoint was saved before: the same command again starts anew.'
        return f'Safe: step {int(max(found))} in {self.folder}; the same command again goes on from there.'

    @contextlib.contextmanager
    def _failures(self):
        """Turns the failure of a save, told at the next one or while waiting, into one sentence."""
        try:
            yield
        except (KeyboardInterrupt, UsageError):
            raise
        except Exception as error:
            around_orbax.end_abandoned()
            text = str(error).strip().splitlines() or [type(error).__name__]
            code = re.search(r"""os_error_code='(\d+)'|OS error (\d+)""", str(error))  # of TensorStore
            system = os.strerror(int(code.group(1) or code.group(2))) if code else getattr(error, 'strerror', None)
            why = system or text[0][:200]
            raise SaveFailed(f'step {self._saving} could not be saved in {self.folder}: {why}. {self.safe()}') from error

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
        with around_orbax.quiet('asyncio', 'absl'):
            try:
                return dict(self._manager.restore(step, args=self._ocp.args.Composite(**args)).items())
            except Exception as error:
                text = str(error)
            around_orbax.end_abandoned()
        around_orbax.ignore_abandoned()
        leaf = re.search(r"""Error reading "([^"]+)/[^"/]*"|'path': '([^'/][^']*)/'""", text)
        item = 'ema/' if '/ema/' in text else ''
        leaf = f' at leaf {item}{(leaf.group(1) or leaf.group(2)).replace(".", "/")}' if leaf else ''
        raise CorruptCheckpoint(f'{self._path(step)} cannot be read{leaf}: {text.splitlines()[0][:160]}. {self._other(step)}')

    def _verify(self, step: int, tree: PyTree, leaves: dict) -> None:
        found, _ = digests.inspect(tree)
        bad = [
            name
            for name, leaf in found.items()
            if leaf['digest'] != leaves[name]['digest'] is not None and leaf['dtype'] == leaves[name]['dtype']
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


def _has_leaves(meta) -> bool:
    """Whether what was read is a table of leaves, each with shape, dtype and digest."""
    leaves = meta.get('leaves') if isinstance(meta, dict) else None
    if not isinstance(leaves, dict) or not leaves:
        return False
    if not all(isinstance(leaf, dict) and {'shape', 'dtype', 'digest'} <= set(leaf) for leaf in leaves.values()):
        return False
    try:
        return all(jnp.dtype(leaf['dtype']) for name, leaf in leaves.items() if name.startswith('ema/'))
    except TypeError:
        return False


def _split(state: TrainState) -> tuple[dict, PyTree]:
    main = {'step': state.step, 'params': state.params, 'opt_state': state.opt_state, 'extras': state.extras}
    return main, state.ema


def _json_digest(*items: dict) -> str:
    """A digest of JSON data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()[:16]


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

    kept = [policies.LatestN(keep or None)]
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
