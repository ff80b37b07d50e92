"""The GPUs that a process drives among the visible ones of its machine: pure functions of an environment.

A scheduler either shows every process of a node all GPUs of the job there, and they are then shared out in order of the local
rank, or it shows each process its own (SLURM's --gpus-per-task, --gpu-bind), and then all that is seen is its own.
"""

import re
from collections.abc import Mapping

from t3d.core.errors import UsageError

VISIBLE = ('CUDA_VISIBLE_DEVICES', 'ROCR_VISIBLE_DEVICES', 'HIP_VISIBLE_DEVICES')
MEANT = 'if that is meant, JAX_LOCAL_DEVICE_IDS=0,... says which'


def share(
    environment: Mapping[str, str], rank: int, size: int, present: int = 0, launcher: str = '', node: str = ''
) -> tuple[tuple[int, ...] | None, int | None, str]:
    """(positions among the visible GPUs or None for all, GPUs that this process then sees or None if not known, a note or '').

    Args: rank of size processes on this machine; present: GPUs of the machine; launcher and node: for messages.

    Raises UsageError where GPUs of the job would stay idle, or several processes would drive one.
    """
    where = f'{launcher or "this machine"}{f" on {_printed(node)}" if node else ""}'
    if environment.get('JAX_LOCAL_DEVICE_IDS', '').strip():
        ids = _chosen(environment['JAX_LOCAL_DEVICE_IDS'])
        return ids, len(ids), ''
    name, seen = visible(environment)
    total = allotted(environment)
    if environment.get('JAX_PLATFORMS', '').lower().split(',')[0].strip() == 'cpu':
        unused = total or len(seen or ())
        return (
            None,
            None,
            f'JAX_PLATFORMS={_printed(environment["JAX_PLATFORMS"])}: {named(unused)} of {where} idle.' if unused else '',
        )
    setting = f'{name}={_printed(environment[name])}' if name else ''
    count = len(seen) if seen is not None else present if total is None else total
    if seen and count > 1 and any(item.startswith('MIG-') for item in seen):
        raise UsageError(
            f'{where}: {setting}: CUDA shows a process one MIG instance: start {count} processes with one each '
            f'(SLURM: --ntasks-per-node={count} --gpus-per-task=1).'
        )
    if total is not None and count > total:  # the user's own list, beyond what the job was given
        raise UsageError(f'{where}: {setting} lists {named(count)}, and the job has {total} there: unset {name}.')
    known = total is not None or seen is not None  # files of devices alone do not say that CUDA can use them
    if size == 1:
        if total is not None and count < total:
            raise UsageError(f'{where} has {named(total)}, and {setting} shows this process {count}: unset {name}; {MEANT}.')
        return None, (count or None) if known else None, _smaller_step(environment, total, where)
    if total is None:
        own = seen is not None and count == 1
    else:
        own = count * size <= total or count == _sum(environment.get('SLURM_GPUS_PER_TASK', ''))
    if own or not count:
        if total is not None and count * size < total:
            raise UsageError(
                f'{where} has {named(total)}, and its {size} processes see {count} each: start one process a node '
                f'(--ntasks-per-node=1) with all of them, or {total} with one; {MEANT}.'
            )
        return None, count or None, _smaller_step(environment, total, where)
    if count % size:
        fits = [n for n in range(1, count + 1) if count % n == 0]
        raise UsageError(f'{where}: {size} processes cannot share {named(count)} evenly: start one of {fits} processes a node.')
    each = count // size
    return tuple(range(rank * each, (rank + 1) * each)), each, _smaller_step(environment, total, where)


def visible(environment: Mapping[str, str]) -> tuple[str, tuple[str, ...] | None]:
    """(the variable that lists them, the GPUs that CUDA or ROCm shows to this process); ('', None) if none lists any.

    The list ends, as CUDA reads it, at the first entry that names nothing: 'NoDevFiles', '-1'.
    """
    name = next((name for name in VISIBLE if name in environment), '')
    if not name:
        return '', None
    items = []
    for item in environment[name].split(','):
        if not re.fullmatch(r'\d+|(GPU|MIG)-\S+', item.strip(), re.ASCII):
            break
        items.append(item.strip())
    return name, tuple(items)


def allotted(environment: Mapping[str, str]) -> int | None:
    """GPUs that the SLURM step has on this node; None if it does not say."""
    text = environment.get('SLURM_GPUS_ON_NODE') or environment.get('SLURM_GPUS_PER_NODE') or ''
    return _sum(text) if text else None


def named(count: int) -> str:
    """'1 GPU', '8 GPUs'."""
    return f'{count} GPU' if count == 1 else f'{count} GPUs'


def _printed(text: str) -> str:
    return text if text.isprintable() else repr(text)


def _sum(text: str) -> int | None:
    """8 of '8', 'h100:8' or 'a100:4,v100:4'."""
    parts = [part.rpartition(':')[2] for part in text.split(',')]
    return sum(map(int, parts)) if all(part.isdecimal() for part in parts) else None


def _smaller_step(environment: Mapping[str, str], total: int | None, where: str) -> str:
    """A note where a step was given fewer GPUs than its job has on each node."""
    whole = _sum(environment.get('SLURM_GPUS_PER_NODE', ''))
    if not whole or total is None or total >= whole:
        return ''
    return f'{where}: this step has {total} of the {whole} GPUs of the job: srun without --gpus-per-node takes them all.'


def _chosen(text: str) -> tuple[int, ...]:
    items = [item.strip() for item in text.split(',')]
    if not all(re.fullmatch(r'\d{1,4}', item, re.ASCII) for item in items) or len(set(items)) < len(items):
        raise UsageError(f'JAX_LOCAL_DEVICE_IDS={text!r}: positions among the visible GPUs are wanted, as 0,1,2.')
    return tuple(map(int, items))
