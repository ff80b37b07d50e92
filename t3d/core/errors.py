"""The errors that commands print alone: the message is all the user needs."""

import errno
import os
import re
import shlex

BUCKETS = ('aiohttp', 'azure', 'botocore', 'gcsfs', 'google', 'httpx', 'httpx2', 'huggingface_hub')  # whose readers raise
AGAIN = 75  # status of a process that stopped in the middle of a run, EX_TEMPFAIL of sysexits.h: the same command may go on
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room on a disk, in a quota, in a file


class UsageError(ValueError):
    """Something given is wrong. The message says what was given, what is wanted and what to do; commands print it alone."""


class OneProcess(UsageError):
    """Something failed in this process alone, in the middle of a run: the others of the run, if there are any, wait for it."""


class NonFinite(UsageError, FloatingPointError):
    """A loss, or a state that was to be saved, became NaN or infinite."""


def diverged(what: str, good: int | None, folder) -> NonFinite:
    """The error of a run that cannot go on.

    Args:
      what: what is not finite, and at which step.
      good: the step of the last good checkpoint, None without one.
      folder: the `checkpoints` of the run.
    """
    where = f'last good checkpoint: step {good} in {folder}' if good is not None else 'no checkpoint was saved before'
    again = (
        f': `python -m launch.train --init-from {shlex.quote(str(folder.parent))}` starts from that checkpoint'
        if good is not None
        else ''
    )
    return NonFinite(
        f'{what}; {where}. Train in another --workdir with a lower optimizer.learning_rate, or with dtype=float32{again}.'
    )


def line(error: Exception) -> str | None:
    """What commands print of an error, in one line; None for a fault of the program, whose traceback is wanted."""
    text = _text(error)
    if text is None:
        return None
    joined, *others = [part.strip() for part in text.splitlines() if part.strip()] or ['']
    for part in others:
        joined += f'{"" if joined[-1] in ":.;" else ";"} {part}'
    return joined


def _text(error: Exception) -> str | None:
    if isinstance(error, OSError) and error.strerror and not isinstance(error, UsageError):
        hint = '. Make room there, or choose another place.' if error.errno in FULL else ''
        return (f'{error.strerror}: {error.filename}' if error.filename else error.strerror) + hint
    if isinstance(error, MemoryError):
        return f'out of memory{f": {error}" if str(error) else ""}. Set a smaller batch, data.size, export.grid or --grid.'
    if isinstance(error, UsageError | OSError | ModuleNotFoundError):
        return str(error)
    if type(error).__module__.partition('.')[0] in BUCKETS:
        name = type(error).__name__
        return f'a bucket cannot be reached ({name}: {error}): check the address, the network, and that you may open it.'
    if isinstance(error, ValueError) and (flag := re.fullmatch(r'Invalid value "(.*)" for JAX flag (\w+)', str(error))):
        return (
            f'{flag[2].upper()}={flag[1]}: JAX takes another kind of value: unset {flag[2].upper()}, or see its documentation.'
        )
    if isinstance(error, RuntimeError | AssertionError) and (asked := os.environ.get('JAX_PLATFORMS')):
        from t3d.core import environment  # JAX's own error may be an empty AssertionError

        if (reason := environment.unavailable()) is not None:
            return environment.platform_refused(asked, reason)
    return str(error) if isinstance(error, RuntimeError) and 'initialize backend' in str(error) else None
