"""Checkpoints of a run: `checkpoints/00002000/` with the items state, weights, data and meta (Orbax, written asynchronously).

`weights` is exactly what inference reads, the paths of the state that the system names; `state` is the rest of it. `meta` holds
the format version, the config, those paths, and for every leaf its shape, dtype and a digest taken on the device before saving.
Orbax does not check its data; restoring here compares the digests and names a leaf that changed. A checkpoint restores onto any
device mesh and any number of processes: the targets are built from what the caller asks for, never from the layout it was saved
in. No random key is stored: keys are functions of the seed and the step. Every process reads for itself, and then they agree:
what one of them cannot read, none of them uses.
"""

import contextlib
import itertools
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from t3d.checkpoint import around_orbax, digests, items
from t3d.core import tree as trees
from t3d.core.errors import OneProcess, UsageError, diverged
from t3d.core.system import TrainState, placed, weights_of, with_weights
from t3d.core.typing import PyTree
from t3d.parallel import agreement

FORMAT = 2  # 1 has the averages in an item called ema
DIGITS = 8
_QUESTIONS = itertools.count(1)  # of this process, over all its runs


class Restored(NamedTuple):
    """What a checkpoint gives back."""

    state: TrainState
    data: dict[str, Any]  # position of the data: {'position': next batch, 'batch': global batch size}
    meta: dict[str, Any]  # format, config, leaves


class NoCheckpoint(UsageError, FileNotFoundError):
    """There is nothing to restore."""


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
      weights: the paths of the state that inference reads (core.system.System.weights); a reader takes those of the folder.
      local: the folder is this process's own: it holds what this process has of each array, for as many processes.
    """

    def __init__(
        self,
        folder,
        *,
        keep: int = 3,
        keep_every: int = 0,
        best: str = '',
        read_only: bool = False,
        weights: tuple[str, ...] = items.OLD_WEIGHTS,
        local: bool = False,
    ):
        import orbax.checkpoint as ocp

        if keep < 0 or keep_every < 0:
            raise UsageError(
                f'checkpoint.keep={keep}, checkpoint.keep_every={keep_every}: wanted 0 or more (keep=0: keep all).'
            )
        self.folder = around_orbax.literal(folder)
        self._ocp, self._weights, self.local = ocp, tuple(weights), local
        self._best = best.lstrip('+')
        self._manager, self._saving, self._open = None, None, contextlib.ExitStack()
        if not read_only:
            around_orbax.hush()
        if read_only and not self.folder.exists():
            return
        with around_orbax.quiet('absl'):  # Orbax warns of read_only
            options = ocp.CheckpointManagerOptions(
                step_name_format=around_orbax.step_names(DIGITS),
                preservation_policy=around_orbax.policy(keep, keep_every, best),
                best_fn=(lambda metrics: metrics[self._best]) if best else None,  # without it metrics are not written
                best_mode='max' if best.startswith('+') else 'min',
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
                **(around_orbax.blocking() if local else {'enable_async_checkpointing': not read_only}),
                **around_orbax.multiprocessing(local),
            )
            if not read_only:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._root = self._open.enter_context(around_orbax.readable(self.folder))
            self._manager = around_orbax.manager(self._root, options, self._best, self.folder, local)

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step() if self._manager else None

    def steps(self) -> list[int]:
        """All complete steps."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def save(
        self,
        state: TrainState,
        *,
        data: dict,
        config: dict,
        metrics: dict[str, float] | None = None,
        given: dict[str, str] | None = None,
    ) -> bool:
        """Starts saving the state under its step; False if that step is there already. The state may be donated after.

        `given`: digests of the other models that the run uses, by name.
        """
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
        arrays = save.PyTreeSave if self.local else save.StandardSave
        weights = weights_of(state, self._weights)
        meta = {'format': FORMAT, 'step': step, 'config': config, 'leaves': leaves}
        meta |= {'weights': list(self._weights), 'given': given or {}}
        meta['check'] = items.json_digest(meta, data)
        args = {'data': save.JsonSave(data), 'meta': save.JsonSave(meta)}
        args['state'] = arrays(items.rest(state, self._weights))
        if jax.tree.leaves(weights):
            args['weights'] = arrays(weights)
        best = {self._best: float(metrics[self._best])} if metrics and self._best in metrics else None
        with self._failures():  # of the save before, too
            self._manager.wait_until_finished()
            self._saving = step
            return bool(self._manager.save(step, args=save.Composite(**args), metrics=best, force=True))

    def restore(self, target: TrainState, step: int | None = None) -> Restored:
        """The state of a step (default: the latest), laid out as `target`: ShapeDtypeStructs with shardings.

        To be called by every process of a run. Raises: CorruptCheckpoint in all of them where one cannot read its part.
        """
        step = self._pick(step)
        restored = self._everywhere(step, lambda: self._load(step, target))
        self._everywhere(step, lambda: self._verify(step, restored.state, restored.meta['leaves']))
        return restored

    def _load(self, step: int, target: TrainState) -> Restored:
        """What this process reads, not yet compared with the digests."""
        meta, data = self.describe(step)
        digests.compare(trees.flatten(target), meta['leaves'], self._path(step))
        item, paths = items.stored(meta)
        weights, rest = weights_of(target, paths), items.rest(target, paths)
        read = self._read(step, {'state': rest, item: weights} if jax.tree.leaves(weights) else {'state': rest})
        return Restored(with_weights(TrainState(**{'ema': {}, **read['state']}), paths, read.get(item, weights)), data, meta)

    def _everywhere(self, step: int, action):
        """What the action gives, once it has succeeded in every process; CorruptCheckpoint where it fails in one."""
        error = result = None
        try:
            result = action()
        except CorruptCheckpoint as caught:
            error = caught
        bad = [process for process, good in enumerate(agreement.gathered([error is None])) if not good[0]]
        if error is not None:
            raise error
        if bad:
            raise CorruptCheckpoint(f'{self._path(step)} cannot be read by {agreement.named(bad)}. {self.advice(step)}')
        return result

    def restore_weights(self, step: int | None = None, sharding=None) -> PyTree:
        """Only what inference reads, as nested dictionaries: the subtree at the one path of `weights`, or those at several.

        They load where the config or the position of the data beside them is damaged; a line on stderr says so.
        """
        step = self._pick(step)
        item, paths, leaves = self._leaves(step)
        if not leaves:
            raise UsageError(f'checkpoint {self._path(step)} holds no weights to generate with ({", ".join(paths) or "none"}).')
        sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = trees.unflatten(
            {
                name: jax.ShapeDtypeStruct(leaf['shape'], jnp.dtype(leaf['dtype']), sharding=sharding)
                for name, leaf in leaves.items()
            }
        )
        read = self._read(step, {item: weights_of(target, paths)})[item]
        self._verify(step, placed(read, paths), leaves)
        return read

    def _leaves(self, step: int) -> tuple[str, tuple[str, ...], dict[str, dict]]:
        """(item, paths, shape, dtype and digest of every leaf) of the weights; no digests where `meta` cannot be read."""
        path = self._path(step)
        try:
            meta = self.describe(step)[0]
            return (*items.stored(meta), items.under(meta['leaves'], items.stored(meta)[1]))
        except CorruptCheckpoint as error:
            damage = error
        with contextlib.suppress(CorruptCheckpoint):
            meta = self._json(step, 'meta')
            if items.has_leaves(meta) and (leaves := items.under(meta['leaves'], items.stored(meta)[1])):
                around_orbax.note(f'{path}: its config or data position is damaged; the weights are read and verified')
                return (*items.stored(meta), leaves)
        item = 'weights' if (path / 'weights').exists() else items.OLD_ITEM
        try:
            tree = self._ocp.StandardCheckpointHandler().metadata(self._root / path.name / item).tree
        except Exception as error:
            raise damage from error
        around_orbax.note(f'{path}: its meta is damaged; the weights are read, but their digests were in it: not verified')
        leaves = {
            name: {'shape': leaf.shape, 'dtype': str(leaf.dtype), 'digest': None} for name, leaf in trees.flatten(tree).items()
        }
        return item, items.OLD_WEIGHTS, {f'{items.OLD_WEIGHTS[0]}/{name}': leaf for name, leaf in leaves.items()}

    def describe(self, step: int | None = None) -> tuple[dict, dict]:
        """The items (meta, data) of a step: config, leaves, position."""
        step = self._pick(step)
        meta, data = self._json(step, 'meta'), self._json(step, 'data')
        if not isinstance(meta, dict) or meta.pop('check', None) != items.json_digest(meta, data):
            raise CorruptCheckpoint(f'{self._path(step)}: meta or data are not what was saved. {self.advice(step)}')
        if meta.get('format', FORMAT) > FORMAT:  # after the digest: a changed bit must not pass for a newer format
            raise UsageError(f'{self._path(step)} has format {meta["format"]}, this t3d reads up to {FORMAT}: update t3d.')
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

    def drop(self, steps) -> None:
        """Takes steps that do not load out of the way, so that they can be saved again: renamed, in a local folder deleted.

        To be called by every process of a run.
        """
        for step in steps if self.local or jax.process_index() == 0 else ():
            path, aside = self._path(step), self.folder / f'{self._path(step).name}.not-loaded'
            if self.local:
                path.rmtree(missing_ok=True)
                continue
            aside.rmtree(missing_ok=True)
            path.rename(aside)
        agreement.gathered([0])
        self._manager.reload()

    def safe(self) -> str:
        """The last complete checkpoint and how to go on from it, as the end of a message."""
        if self.local:
            return 'Make room there, or set checkpoint.local= for none; the same command again goes on from the newest step.'
        steps = [path.name for path in self.folder.iterdir() if path.name.isdigit()] if self.folder.exists() else []
        if not steps:
            return 'No checkpoint was saved before: the same command again starts anew.'
        return f'Safe: step {int(max(steps))} in {self.folder}; the same command again goes on from there.'

    @contextlib.contextmanager
    def _failures(self):
        """Turns the failure of a save, told at the next one or while waiting, into one sentence."""
        try:
            yield
        except (KeyboardInterrupt, UsageError):
            raise
        except Exception as error:
            around_orbax.end_abandoned()
            why = around_orbax.reason(error)
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
            return json.loads((self._path(step) / item / 'metadata').read_bytes().decode())
        except Exception as error:
            raise CorruptCheckpoint(
                f'{self._path(step)}/{item} cannot be read: {str(error).rstrip(".")}. {self.advice(step)}'
            ) from error

    def _read(self, step: int, trees_of: dict[str, PyTree]) -> dict[str, PyTree]:
        with around_orbax.quiet('asyncio', 'absl'):
            try:  # the manager would wait for the other processes in the middle
                place = self._root / self._path(step).name
                return {name: around_orbax.read(place / name, tree) for name, tree in trees_of.items()}
            except Exception as error:
                text = str(error)
            around_orbax.end_abandoned()
        around_orbax.ignore_abandoned()
        why = text.splitlines()[0][:160].rstrip('.')
        raise CorruptCheckpoint(f'{self._path(step)} cannot be read{around_orbax.leaf_of(text)}: {why}. {self.advice(step)}')

    def _verify(self, step: int, tree: PyTree, leaves: dict) -> None:
        restored, _ = digests.inspect(tree)
        bad = [
            name
            for name, leaf in restored.items()
            if leaf['digest'] != leaves[name]['digest'] is not None and leaf['dtype'] == leaves[name]['dtype']
        ]
        if bad:
            raise CorruptCheckpoint(
                f'{self._path(step)} is corrupt: the stored values of {", ".join(bad[:3])}'
                f'{f" and {len(bad) - 3} more" if len(bad) > 3 else ""} are not those that were saved. {self.advice(step)}'
            )

    def advice(self, step: int) -> str:
        """What to do about a step that cannot be read, as the end of a message."""
        others = [other for other in self.steps() if other != step]
        return (
            f'Delete that folder to go on from step {others[-1]}.'
            if others
            else 'There is no other checkpoint in this run: copy it again, or train anew in another folder.'
        )
