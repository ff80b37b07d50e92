"""Names in a config to modules: one of a literal table, or any importable module of the user's own."""

import contextlib
import difflib
import importlib
import importlib.machinery
import importlib.util
import os
import pathlib
import sys
from collections.abc import Mapping
from types import ModuleType

from t3d.core import words as field
from t3d.core.errors import UsageError

NEVER = 'code beside weights is never run. If you trust it, put it elsewhere on the Python path.'


def find(name: str, table: Mapping[str, str], what: str, *functions: str) -> ModuleType:
    """The module of a name.

    Args:
      name: a key of `table`, or the path of a module (dots between its parts) on the Python path or in the working directory.
      table: name -> dotted path.
      what: the kind of thing, for messages, with its config key in parentheses where that is another word.
      functions: what the module must have.
    Raises:
      UsageError: neither, or the module lacks a function, or cannot be imported.
    """
    if name in table:
        return importlib.import_module(table[name])
    words = str(name).split('.')
    ours = words[0] == __package__.partition('.')[0] and name not in table.values()  # a table of t3d would call itself
    if ours or not all(word.isidentifier() for word in words) or (len(words) == 1 and not _there(name)):
        near = [meant] if (meant := field.entry(what, str(name))) else difflib.get_close_matches(str(name), table, 1)
        hint = f' Did you mean {near[0]!r}?' if near else ''
        key = what.partition('(')[2].rstrip(')') or what
        own = f"your own is named by its module, for example {key}='my_package.my_module'"
        raise UsageError(f'unknown {what} {name!r}: there are {", ".join(sorted(table))}; {own}.{hint}')
    module = _imported(name, what)
    missing = [function for function in functions if not callable(getattr(module, function, None))]
    if missing:
        raise UsageError(f'{what} {name!r}: the module has no function `{missing[0]}` (see docs/architecture.md).')
    return module


def refuse_inside(names, folder) -> None:
    """Raises UsageError where a name is of a module or config inside a folder: what it says must not run what it holds.

    Args:
      names: strings of a config; those that are neither a module's name nor a config's are passed over.
      folder: a weights or run folder that is about to be read.
    """
    folder = pathlib.Path(folder).resolve()
    names = list(names)
    for name in names:
        place = pathlib.Path(name.partition(':')[0])
        if any(
            one.resolve().is_relative_to(folder)
            for one in (place, pathlib.Path(f'configs/{name.partition(":")[0]}.py'))
            if one.suffix == '.py' and one.is_file()
        ):
            raise UsageError(f'{folder} names a config of its own, {name}: {NEVER}')
    starts = {pathlib.Path(start or '.').resolve() for start in [os.getcwd(), *sys.path]}
    for name in names:
        if not all(part.isidentifier() for part in name.split('.')):
            continue
        parts = name.split('.')
        for start in starts:
            places = [start.joinpath(*parts[:count]).resolve() for count in range(1, len(parts) + 1)]
            if any(place.is_relative_to(folder) and _is_code(place) for place in places):
                raise UsageError(f'{folder} names a module of its own, {name}, in its config: {NEVER}')


def _is_code(place: pathlib.Path) -> bool:
    """Whether importing a module of this place runs something: a folder without an `__init__` is a name alone."""
    suffixes = importlib.machinery.all_suffixes()
    return any(one.with_name(one.name + suffix).is_file() for one in (place, place / '__init__') for suffix in suffixes)


def _there(name: str) -> bool:
    """Whether a module without a package has this name."""
    with _here_too():
        return importlib.util.find_spec(name) is not None


def _imported(name: str, what: str) -> ModuleType:
    try:
        with _here_too():
            return importlib.import_module(name)
    except SyntaxError as error:
        raise UsageError(f'{what} {name!r}: {error.filename}, line {error.lineno or "?"}: {error.msg}.') from error
    except ModuleNotFoundError as error:
        if error.name is None or not f'{name}.'.startswith(f'{error.name}.'):
            raise  # one that the module itself wants
        where = f'on the Python path or in {os.getcwd()}'
        raise UsageError(f'{what} {name!r}: no module {error.name!r} {where}: run where it lies, or install it.') from error


@contextlib.contextmanager
def _here_too():
    """The working directory is on Python's path inside."""
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)
