"""Configs: `configs/<name>.py` with `get_config(variant)`, overrides `a.b=c`, and the same as JSON.

A config is plain data: numbers, strings, booleans, tuples and nested dictionaries of them. Keys are fixed by the file;
overrides may change values, never add keys or change types (an int is accepted for a float).
"""

import ast
import difflib
import importlib.util
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping

from t3d.core.errors import UsageError

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
MISSING = '(absent)'
NEAR = 0.65  # the least likeness of a name that is proposed: 'tyo' is meant for 'toy', 'nokey' not for 'noise'
COUNTS = {'batch': 'examples at each step', 'steps': 'optimizer steps in all'}  # keys that are at least 1


def files() -> dict[str, pathlib.Path]:
    """The configs that can be loaded by name: those that come with t3d and those in `configs/` of the working directory.

    Of two with the same name the working directory's counts.
    """
    found = [*sorted((CHECKOUT / 'configs').glob('*.py')), *sorted(pathlib.Path('configs').glob('*.py'))]
    table = {path.stem: path for path in found if path.stem not in ('common', '__init__')}
    return dict(sorted(table.items()))


def load(spec: str, overrides: Iterable[str] = ()):
    """The locked ConfigDict of `configs/x.py:variant` (or `x:variant`; without a variant the file's default), overridden."""
    path, _, variant = spec.partition(':')
    module = _module(_find(path))
    try:
        config = from_dict(module.get_config(variant) if variant else module.get_config())
    except ValueError as error:  # an unknown variant: the file's message lists those it has
        near = difflib.get_close_matches(variant, re.findall(r'\w+', str(error).partition('there are')[2]), 1)
        hint = f'. Did you mean {near[0]!r}?' if near else ''
        raise UsageError(f'{error}{hint}') from error
    for override in overrides:
        apply(config, override)
    for name, what in COUNTS.items():
        if config.get(name, 1) < 1:
            raise UsageError(f'{name}={config[name]}: wanted at least 1 ({what}).')
    return config


def from_dict(tree: Mapping):
    """A locked ConfigDict of plain data; sequences become tuples, so that a config and its JSON round trip agree."""
    from ml_collections import ConfigDict

    tree = tree.to_dict() if hasattr(tree, 'to_dict') else tree
    return ConfigDict(_tuples(tree)).lock()


def to_json(config) -> str:
    """Indented JSON of a config."""
    return json.dumps(config.to_dict() if hasattr(config, 'to_dict') else dict(config), indent=2) + '\n'


def from_json(text: str):
    """The locked ConfigDict that `to_json` wrote."""
    return from_dict(json.loads(text))


def flatten(config: Mapping, prefix: str = '') -> dict:
    """Values by dotted name: {'optimizer.learning_rate': 1e-3, ...}."""
    flat = {}
    for key, value in config.items():
        name = f'{prefix}{key}'
        flat.update(flatten(value, f'{name}.') if isinstance(value, Mapping) or hasattr(value, 'items') else {name: value})
    return flat


def differences(old, new) -> dict[str, tuple]:
    """{dotted name: (old value, new value)} of what differs; `MISSING` where a side lacks the key."""
    old, new = flatten(from_dict(old)), flatten(from_dict(new))
    keys = list(new) + [key for key in old if key not in new]
    pairs = {key: (old.get(key, MISSING), new.get(key, MISSING)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def apply(config, override: str) -> None:
    """Sets one `a.b=value` in place; the value is read as Python data and must have the type of the value it replaces."""
    name, equals, text = override.partition('=')
    name = name.strip()
    if not equals:
        raise UsageError(f'override {override!r}: wanted name=value, for example batch=16.')
    flat = flatten(config)
    if name not in flat:
        raise UsageError(unknown(name, flat, 'config key', '`t3d train CONFIG --dry-run` lists them.'))
    node, *keys = config, *name.split('.')
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = _parse(name, text.strip(), flat[name])


def unknown(name: str, known: Iterable[str], what: str, listed: str = '') -> str:
    """The message for a name not in a list: those near it and, when they are few, all; else `listed`: where to look."""
    known = list(known)
    near = [key for key in known if key.endswith(f'.{name}')] or difflib.get_close_matches(name, known, n=1, cutoff=NEAR)
    inside = [key for key in known if key.startswith(f'{name}.')]
    if inside:
        return f'{what} {name!r} is a group: set one of {", ".join(inside)}.'
    hint = f' Did you mean {" or ".join(map(repr, near[:3]))}?' if near else ''
    listing = f' Known: {", ".join(known)}.' if len(known) <= 60 else f' {listed}' if listed else ''
    return f'unknown {what} {name!r}.{hint}{listing}'


def _parse(name: str, text: str, old):
    """The value of an override, of the type of `old`."""
    if isinstance(old, str):
        return text
    try:
        value = (
            {'true': True, 'false': False, 'none': None}[text.lower()]
            if text.lower() in ('true', 'false', 'none')
            else ast.literal_eval(text)
        )
    except (ValueError, SyntaxError):
        value = text
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if old is None or type(value) is type(old):
        return value
    raise UsageError(f'{name}={text}: wanted {type(old).__name__} (now {old!r}), got {type(value).__name__}.')


def _tuples(value):
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _find(path: str) -> pathlib.Path:
    for candidate in (pathlib.Path(path), CHECKOUT / path, files().get(path)):
        if candidate is not None and candidate.is_file():
            return candidate
    raise UsageError(
        f'no config {path!r} (looked here, in configs/ and in {CHECKOUT / "configs"}). '
        + unknown(pathlib.Path(path).stem, files(), 'config')
    )


def _module(path: pathlib.Path):
    """The Python module of a config file, which may `from configs import common`."""
    root = str(path.resolve().parent.parent)
    spec = importlib.util.spec_from_file_location(f't3d_config_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, root)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(root)
    return module
