"""What ends a run from outside, in one sentence each: memory or disk full, data that cannot be read, a process lost."""

import contextlib
import re

import jax

from t3d.checkpoint import store as stores
from t3d.core import config as configs
from t3d.core import errors
from t3d.core.errors import UsageError

LOST = re.compile(r'gloo|nccl|closed by peer|reset by peer|socket closed|unavailable|deadline_exceeded|barrier timed out', re.I)


@contextlib.contextmanager
def told(config, store: stores.Store):
    """Turns the failures of the steps inside into UsageErrors; `OneProcess` for those that the other processes do not meet."""
    try:
        yield
    except stores.SaveFailed as error:  # a save is written together: it may be the first to miss a process
        why = error.__cause__
        if isinstance(why, jax.errors.JaxRuntimeError) and (lost := lost_process(why, store)) is not None:
            raise lost from None
        raise
    except (errors.NonFinite, errors.OneProcess):
        raise
    except UsageError as error:
        raise errors.OneProcess(str(error)) from error
    except OSError as error:
        raise errors.OneProcess(f'stopped: {errors.line(error).rstrip(".")}. {store.safe()}') from error
    except jax.errors.JaxRuntimeError as error:  # raised at a dispatch, or when a later result is waited for
        raise out_of_memory(error, config) or lost_process(error, store) or error from None


def lost_process(error: Exception, store: stores.Store) -> UsageError | None:
    """The sentence for a collective that failed because another process has gone."""
    if jax.process_count() == 1 or not LOST.search(str(error)):
        return None
    who = f'process {jax.process_index()} of {jax.process_count()}'
    why = str(error).splitlines()[0][:160]
    return errors.OneProcess(f'{who} stopped: another process of the run no longer answers ({why}). {store.safe()}')


def out_of_memory(error: Exception, config) -> UsageError | None:
    """What to set to a half, if the device's memory ran out."""
    text = str(error)
    if 'RESOURCE_EXHAUSTED' not in text and 'out of memory' not in text.lower():
        return None
    flat, names = configs.flatten(config), config.get('saves_memory', ('batch',))
    numbers = [name for name in names if type(flat.get(name)) is int and flat[name] > 1]
    choices = [f'{name}={flat[name] // 2} (now {flat[name]})' for name in numbers]
    if 'accumulate' in flat and flat['batch'] % (2 * flat['accumulate']) == 0:
        choices += [f'accumulate={2 * flat["accumulate"]} (now {flat["accumulate"]}; the same step in more parts)']
    choices += ['dtype=bfloat16'] if flat['dtype'] != 'bfloat16' else []
    choices += [f'{name}=true' for name in names if flat.get(name) is False]
    choices += ['mesh.fsdp=<devices>'] if flat.get('mesh.fsdp', 1) == 1 and jax.device_count() > 1 else []
    choices += ['offload=optimizer'] if flat.get('offload') == '' and jax.default_backend() != 'cpu' else []
    return UsageError(f'out of device memory: {text.splitlines()[0][:200]}\nSet one of {", ".join(choices)}.')
