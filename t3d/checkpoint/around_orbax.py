"""What Orbax does that no run folder and no console should meet: names read as patterns, reads left hanging, log lines."""

import contextlib
import gc
import glob
import logging
import math
import os
import re
import sys
import types

import jax
from etils import epath

from t3d.core import files
from t3d.core.errors import UsageError

DESCRIPTORS = '/proc/self/fd'
ITEMS = ('state', 'weights', 'ema', 'data', 'meta')  # ema: of format 1
UNFINISHED = '.orbax-checkpoint-tmp'  # end of the name of a folder that is being written


class LiteralPath(type(epath.Path('/'))):
    """A local path whose `glob` reads the pattern alone as one: folders may have [ ] ? * in their names."""

    def glob(self, pattern: str):
        """The paths that match below this folder."""
        return (self / name for name in glob.glob(pattern, root_dir=self))


def literal(folder) -> epath.Path:
    """An absolute path to give to Orbax; the addresses of buckets stay as they are.

    Raises: UsageError for names that TensorStore takes for more than a name.
    """
    folder = files.path(folder)
    if '://' in str(folder):
        return folder
    folder = folder.absolute()
    for part in folder.parts:
        scheme = part.endswith(':') and part[:-1] in files.BUCKETS
        if scheme or ('\\' in part and not os.path.isdir(DESCRIPTORS)):
            raise UsageError(f'checkpoints cannot be kept in {folder}: {part!r} is no name for a folder. Choose another.')
    return LiteralPath(folder)


@contextlib.contextmanager
def readable(folder: epath.Path):
    """The path of a folder for TensorStore, which reads a backslash as a slash: then Linux's name for the opened folder."""
    if '\\' not in str(folder):
        yield folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield LiteralPath(f'{DESCRIPTORS}/{descriptor}')
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def quiet(*names: str):
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


def is_checkpoint(folder) -> bool:
    """Whether a folder holds an item of a checkpoint; others with a number for a name are not ours."""
    return folder.is_dir() and any((folder / item).is_dir() for item in ITEMS)


def step_names(digits: int):
    """Orbax's names of steps, counting only folders that hold a checkpoint: it would keep a stray one as the latest."""
    from orbax.checkpoint import path

    class Names(type(path.step.standard_name_format())):
        def find_all(self, base_path):
            return (step for step in super().find_all(base_path) if is_checkpoint(step.path))

    return Names(step_format_fixed_length=digits)


def multiprocessing(local: bool) -> dict:
    """The options of a manager for processes that write into one folder, or each into its own."""
    import orbax.checkpoint as ocp

    if not local:
        return {}
    return {'multiprocessing_options': ocp.options.MultiprocessingOptions(primary_host=None, barrier_sync_key_prefix='local')}


def blocking() -> dict:
    """The options of a manager of local folders beside the one of the run folder: its saves are short, and the loop waits.

    What Orbax's threads tell each other goes by names that all processes share: with no primary process, one removes what
    another has yet to read, and both would wait.
    """
    import orbax.checkpoint as ocp

    return {'async_options': ocp.AsyncOptions(create_directories_asynchronously=False), 'enable_async_checkpointing': False}


def _local_handlers():
    """How the items of a local folder are written: every process writes one copy of all that it holds of an array."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint._src.serialization import type_handler_registry

    options = multiprocessing(local=True)
    arrays = ocp.type_handlers.ArrayHandler(primary_host=None, replica_id=None, use_replica_parallel=False)
    types = type_handler_registry.create_type_handler_registry((jax.Array, arrays))
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in ITEMS:
        if item in ('data', 'meta'):
            handlers.add(item, ocp.args.JsonSave, ocp.JsonCheckpointHandler(**options))
        else:
            handlers.add(item, ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler(type_handler_registry=types, **options))
    return handlers


def read(path, target):
    """The arrays of one item, laid out as `target`; every process reads its own part and waits for no other."""
    import orbax.checkpoint as ocp

    return ocp.StandardCheckpointHandler().restore(path, args=ocp.args.StandardRestore(target))


def leaf_of(text: str) -> str:
    """' at leaf params/layer_in/kernel' of what a failed read says; '' where it names none."""
    leaf = re.search(r"""Error reading "([^"]+)/[^"/]*"|'path': '([^'/][^']*)/'""", text)
    item = next((f'{name}/' for name in ('weights', 'ema') if f'/{name}/' in text), '')
    return f' at leaf {item}{(leaf.group(1) or leaf.group(2)).replace(".", "/")}' if leaf else ''


def reason(error: Exception) -> str:
    """Why a save failed, in few words: those of the operating system, if TensorStore says its code."""
    text = str(error).strip().splitlines() or [type(error).__name__]
    code = re.search(r"""os_error_code='(\d+)'|OS error (\d+)""", str(error))
    system = os.strerror(int(code.group(1) or code.group(2))) if code else getattr(error, 'strerror', None)
    return system or text[0][:200]


def manager(root, options, best: str, folder, local: bool = False):
    """An Orbax manager to which a damaged `metrics` item, one number for choosing the best, is one that is not there."""
    import orbax.checkpoint as ocp

    class Manager(ocp.CheckpointManager):
        def metrics(self, step: int):
            try:
                values = super().metrics(step)
                if values is None or not best or math.isfinite(values[best]):
                    return values
            except Exception:  # whatever Orbax's reader, or a number of another kind, raises
                pass
            note(f'checkpoint {step} in {folder}: its metrics are damaged: it cannot count as the best, nothing else is lost')
            return None

    if local:
        return Manager(root, options=options, handler_registry=_local_handlers())
    return Manager(root, options=options, item_names=ITEMS)


def note(text: str) -> None:
    """A line beside the output of a command."""
    print(f'note: {text}', file=sys.stderr, flush=True)


def hush() -> None:
    """From here on keeps what Orbax logs of a failed save off the console: who waits for the save tells it in one line."""
    logger = logging.getLogger('absl')
    if _not_of_orbax not in logger.filters:
        logger.addFilter(_not_of_orbax)
    ignore_abandoned()


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return 'orbax' not in record.pathname


def end_abandoned() -> None:
    """Ends the reads and writes of other leaves that hang after one has failed: each would complain when it is freed."""
    gc.collect()
    for thing in gc.get_objects():
        if type(thing) is types.CoroutineType and _is_transfer(thing):  # isinstance would wake lazy objects
            with contextlib.suppress(Exception):  # what they say of being ended
                thing.close()


def ignore_abandoned() -> None:
    """From a failed read or save on, keeps late words about it off the console; all else goes where it went.

    TensorStore's threads finish what was begun and wake an event loop that is closed, at any time until the process ends.
    """
    before = sys.unraisablehook
    if getattr(before, '__name__', '') == '_abandoned':
        return

    def _abandoned(unraisable) -> None:
        closed = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == 'Event loop is closed'
        if not closed and not _is_transfer(unraisable.object):
            before(unraisable)

    sys.unraisablehook = _abandoned


def _is_transfer(thing) -> bool:
    """Whether an object is a coroutine in which Orbax reads or writes."""
    code = getattr(thing, 'cr_code', None)
    return (
        code is not None
        and 'orbax' in code.co_filename
        and any(word in code.co_name for word in ('read', 'write', 'serialize'))
    )


def policy(keep: int, keep_every: int, best: str):
    """Which checkpoints stay: see store.Store."""
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
