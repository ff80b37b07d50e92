"""Two places for the checkpoints of one run: a local folder of each process, fast and often, and the run folder.

Both are a `store.Store`, with the same items, digests and checks. The local one holds what this process has of each array, so
it serves the same number of processes on the same hosts alone; the run folder serves any. A local save is waited for: it is
short. A run folder has a token, so that a local folder is taken for no other run's.
"""

import re
import shutil
import uuid
from collections.abc import Callable, Sequence

import jax

from t3d.checkpoint import store as stores
from t3d.core import errors, files
from t3d.core.system import TrainState
from t3d.parallel import agreement

TOKEN = 'local_tier.txt'
KEEP = 2
MOST = 64  # newest steps of a folder that are tried


def make_token(workdir) -> None:
    """Gives a run folder the name that its local folders have, once; by one process, before the others `open_local`."""
    if not _token(workdir):
        files.write(workdir / TOKEN, uuid.uuid4().hex + '\n')


def open_local(folder: str, workdir, weights: tuple[str, ...]) -> stores.Store:
    """This process's store below `folder`, a folder of this machine. Raises: OneProcess where it cannot be made."""
    if '://' in folder:
        raise errors.UsageError(
            f'checkpoint.local={folder!r}: wanted a folder of this machine; buckets are for the run folder.'
        )
    place = files.local(folder).absolute() / _token(workdir) / f'{jax.process_index()}-of-{jax.process_count()}'
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.OneProcess(
            f'checkpoint.local={folder}: {errors.line(error)}. Name a folder that every process can write to, or leave it out.'
        ) from error
    return stores.Store(place, keep=KEEP, weights=weights, local=True)


def _token(workdir) -> str:
    try:
        text = (workdir / TOKEN).read_text().strip()
    except (OSError, ValueError):
        return ''
    return text if re.fullmatch('[0-9a-f]{32}', text) else ''


def newest(tiers: Sequence[stores.Store]) -> int | None:
    """The newest complete step that this process sees, read by nobody yet."""
    return max((step for tier in tiers for step in tier.steps()), default=None)


def meta(tiers: Sequence[stores.Store]) -> dict | None:
    """The meta of the newest step at which this process can read one."""
    for _, tier, step in _newest_first(tiers, [tier.steps() for tier in tiers]):
        try:
            return tier.describe(step)[0]
        except stores.CorruptCheckpoint:
            continue
    return None


def restore(tiers: Sequence[stores.Store], target: TrainState, line: Callable[[str], None]) -> stores.Restored | None:
    """The newest step that loads whole on all processes, of tiers in the order in which they are asked at the same step.

    To be called by every process; `line` is told of what does not load. None: nothing was saved before.

    Raises: CorruptCheckpoint where something was saved, and nothing of it loads everywhere.
    """
    seen = [_of_all(tier) for tier in tiers]  # for each tier the steps of each process
    common = [sorted(set.intersection(*each)) for each in seen]
    _tell_of_absent(tiers, seen, line)
    reasons = []
    for number, tier, step in _newest_first(tiers, common):
        try:
            restored = tier.restore(target, step)
        except stores.CorruptCheckpoint as error:
            reasons.append(str(error).removesuffix(tier.advice(step)).strip())
            line(f'step {step} is passed over: {reasons[-1]}')
            continue
        for other, store, each in zip(range(len(tiers)), tiers, seen, strict=True):
            some = set.union(*each)
            useless = {late for late in some if late > step or (late == step and other < number)}
            useless |= some - set(common[other]) if store.local else set()
            if useless:
                store.drop(sorted(useless.intersection(store.steps())))
        _drop_other_counts(tiers)
        return restored
    if not any(step for each in seen for step in each):
        _drop_other_counts(tiers)
        return None
    if len(tiers) > 1 and not all(seen[0]):
        reasons.append(f'{_absent(tiers, seen)}.')
    what = ' '.join(reasons[:3]) + (f' And {len(reasons) - 3} more.' if len(reasons) > 3 else '')
    why = 'nothing to go on from: no checkpoint of this run loads on all processes'
    raise stores.CorruptCheckpoint(f'{why}. {what} To train anew, choose another --workdir.')


def _of_all(tier: stores.Store) -> list[set[int]]:
    """The newest steps of a tier in each process."""
    steps = tier.steps()[-MOST:]
    rows = agreement.gathered([*steps, *[-1] * (MOST - len(steps))])
    return [{int(step) for step in row if step >= 0} for row in rows]


def _newest_first(tiers, steps):
    """(number of the tier, tier, step), the newest first, of equal steps the first tier's."""
    pairs = [(-step, number) for number, each in enumerate(steps) for step in each]
    return [(number, tiers[number], -step) for step, number in sorted(pairs)]


def _drop_other_counts(tiers) -> None:
    """Deletes what other numbers of processes left on this machine: the run goes on without it."""
    for tier in tiers:
        mine = f'-of-{jax.process_count()}'
        for place in tier.folder.parent.glob('*-of-*') if tier.local else ():
            if not place.name.endswith(mine):
                shutil.rmtree(place, ignore_errors=True)


def _tell_of_absent(tiers, seen, line) -> None:
    """One line where a local folder is not there: a host was replaced, or the number of processes is another."""
    if len(tiers) > 1 and not all(seen[0]) and any(step for each in seen for step in each):
        line(f'{_absent(tiers, seen)}: going on from the run folder')


def _absent(tiers, seen) -> str:
    empty = [process for process, steps in enumerate(seen[0]) if not steps]
    who = f'{agreement.named(empty)} (a new host?)' if len(empty) < len(seen[0]) else f'a run of {len(empty)} processes'
    return f'local tier: no checkpoint of {who} in {tiers[0].folder.parent}'
