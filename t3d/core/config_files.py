"""Running a user's config file: whatever is wrong with it is said with its name and line."""

import difflib
import importlib.util
import inspect
import pathlib
import re
import sys
import traceback
from collections.abc import Mapping

from t3d.core import limits, words
from t3d.core.errors import UsageError

EXAMPLE = "for example `from configs import instant3d; config = instant3d.get_config('tiny')`, changed and returned"
FREE = {'name', 'variant'}  # keys that any config may have: they name the run
OPTIONAL = {  # read where they are there
    'accumulate',
    'fsdp_floor',
    'offload',
    'loader.threads',
    'loader.prefetch',
    'checkpoint.keep_every',
    'checkpoint.best',
    'data.kind',
    'data.mode',
    'data.mirror',
    'data.train_views',
    'data.max_distance',
    'preview.columns',
    'text.open_vocabulary',
    'text.folder',
    'frozen',
}


def get_config(path: pathlib.Path, variant: str) -> Mapping:
    """What `get_config(variant)` of a file returns: a ConfigDict or a dictionary.

    Raises:
      UsageError: the file cannot be run, has no get_config, or that fails or returns something else.
    """
    function = getattr(module(path), 'get_config', None)
    if not callable(function):
        raise UsageError(f'{path} has no get_config(variant): wanted a function that returns a config, {EXAMPLE}.')
    arguments = (variant,) if variant else ()
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        advice = f'leave out :{variant}' if variant else f'give one, {path}:VARIANT'
        raise UsageError(f'get_config of {path} {"takes no variant" if variant else "wants a variant"}: {advice}.') from error
    try:
        tree = function(*arguments)
    except (Exception, SystemExit) as error:  # a config file may parse a command line of its own
        listed = str(error).partition('there are')[2]
        if not isinstance(error, ValueError) or 'variant' not in str(error) or not listed:
            raise _fault(path, error) from error
        near = difflib.get_close_matches(variant, re.findall(r'\w+', listed), 1)
        raise UsageError(f'{error}' + (f'. Did you mean {near[0]!r}?' if near else '')) from error
    if not isinstance(tree, Mapping) and not hasattr(tree, 'to_dict'):
        raise UsageError(f'get_config of {path} returned {tree!r:.80}: wanted a config, {EXAMPLE}.')
    return tree


def module(path: pathlib.Path):
    """The Python module of a config file, which may `from configs import common`."""
    root = str(path.resolve().parent.parent)
    spec = importlib.util.spec_from_file_location(f't3d_config_{path.stem}', path)
    if spec is None:
        raise UsageError(f'{path} is no Python file: a config is configs/NAME.py with get_config(variant).')
    made = importlib.util.module_from_spec(spec)
    sys.path.insert(0, root)
    try:
        spec.loader.exec_module(made)
    except SyntaxError as error:
        near = f': {error.text.strip()}' if error.text else ''
        raise UsageError(f'{error.filename or path}, line {error.lineno or "?"}: {error.msg}{near}') from error
    except (Exception, SystemExit) as error:
        raise _fault(path, error) from error
    finally:
        sys.path.remove(root)
    return made


def check_keys(flat: Mapping[str, object], own: list[set[str]], path: pathlib.Path, shipped: pathlib.Path) -> None:
    """Raises UsageError where the config of a file lacks keys of its system's own configs, or has others.

    Args:
      flat: {dotted name: value} of `path`; own: the dotted names of each variant of the system's file, `shipped`.
    """
    known = set().union(*own)
    for name in flat:
        if name not in known | FREE:
            meant = words.key(name)
            near = sorted(key for key in known if meant and (key == meant or key.endswith(f'.{meant}')))
            near = near or difflib.get_close_matches(name, sorted(known), 1, 0.65)
            hint = f' Did you mean {near[0]!r}?' if near else f' {words.advice(name)}' if words.advice(name) else ''
            raise UsageError(f'{path}: unknown config key {name!r} of {shipped.stem}.{hint}')
    missing = sorted(set.intersection(*own) - set(flat) - OPTIONAL - FREE)
    if missing:
        more = f' and {len(missing) - 8} more' if len(missing) > 8 else ''
        raise UsageError(
            f'{path} lacks {", ".join(missing[:8])}{more}: start from the keys of configs/{shipped.name}, {EXAMPLE}.'
        )


def variants(path: pathlib.Path) -> list[str]:
    """The variants that a config file lists when it is asked for one that it does not have."""
    try:
        module(path).get_config('?')
    except ValueError as error:
        return re.findall(r'\w+', str(error).partition('there are')[2])
    return []


def _fault(path: pathlib.Path, error: BaseException) -> UsageError:
    """The error of a config file that raised: its last line in that file, or the one of a file that it reads."""
    lines = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in lines if pathlib.Path(frame.filename).resolve() == path.resolve()] or lines[-1:]
    text = ' '.join(str(error).split()) or 'no message'
    if added := re.search(r'Key "(.*?)" does not exist and cannot be added', text):  # of a ConfigDict; it goes on with all keys
        meant = words.key(added[1]) or next(iter(difflib.get_close_matches(added[1], limits.LIMITS, 1, 0.65)), '')
        meant = next((key for key in limits.LIMITS if key == meant or key.endswith(f'.{meant}')), '') if meant else ''
        hint = f'Did you mean {meant!r}?' if meant else 'Keys are fixed: change the values of those that are there.'
        return UsageError(f'{path}, line {own[-1].lineno}: unknown config key {added[1]!r}. {hint}')
    return UsageError(f'{path}, line {own[-1].lineno}: {type(error).__name__}: {text[:300]}')
