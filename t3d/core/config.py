"""Configs: `configs/<name>.py` with `get_config(variant)`, overrides `a.b=c`, and the same as JSON.

A config is plain data: numbers, strings, booleans, tuples and nested dictionaries of them. Keys are fixed by the file;
overrides may change values, never add keys; what a value may be is in t3d.core.limits.
"""

import ast
import difflib
import json
import pathlib
from collections.abc import Iterable, Mapping

from t3d.core import config_files, limits, rules, words
from t3d.core import text as texts
from t3d.core.errors import UsageError

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
MISSING = '(absent)'
NEAR = 0.65  # the least likeness of a name that is proposed: 'tyo' is meant for 'toy', 'nokey' not for 'noise'


def files() -> dict[str, pathlib.Path]:
    """The configs that can be loaded by name: those that come with t3d and those in `configs/` of the working directory.

    Of two with the same name the working directory's counts. Names that begin with _ are parts of configs.
    """
    paths = [*sorted((CHECKOUT / 'configs').glob('*.py')), *sorted(pathlib.Path('configs').glob('*.py'))]
    table = {path.stem: path for path in paths if path.stem != 'common' and not path.stem.startswith('_')}
    return dict(sorted(table.items()))


def load(spec: str, overrides: Iterable[str] = ()):
    """The locked ConfigDict of `configs/x.py:variant` (or `x:variant`; without a variant the file's default), overridden.

    Raises:
      UsageError: no such file or variant, a file that cannot be run, a key or a value (t3d.core.limits) that cannot be.
    """
    name, variant = _parts(spec)
    path = _find(name)
    config = _from_file(path, variant)
    system = CHECKOUT / 'configs' / f'{config.get("system", "")}.py'
    _check_keys(config, path, system)  # a file of the user's own for a system of t3d
    for override in overrides:
        apply(config, override)
    chosen = CHECKOUT / 'configs' / f'{config.get("system", "")}.py'
    if chosen != system:  # system=NAME was given
        try:
            _check_keys(config, path, chosen)
        except UsageError as error:
            raise UsageError(f'system={config.system}: {error} Start from configs/{chosen.name}.') from error
    held(config)
    return config


def _check_keys(config, path: pathlib.Path, system: pathlib.Path) -> None:
    """Raises UsageError where a config of another file than its system's own has not the keys of that one."""
    if path.resolve() != system and system.is_file():
        own = [set(flatten(_from_file(system, name))) for name in config_files.variants(system)]
        config_files.check_keys(flatten(config), own, path, system)


def held(config) -> None:
    """Sets every value as its rule in t3d.core.limits reads it (8.0 is 8 where a whole number is wanted).

    Raises:
      UsageError: a value is out of range.
    """
    flat = flatten(config)
    for name, value in limits.check(flat).items():
        if type(value) is not type(flat[name]) or isinstance(value, tuple):
            *path, last = name.split('.')
            node = config
            for key in path:
                node = node[key]
            with node.ignore_type():
                node[last] = value


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


def read(path):
    """The locked ConfigDict of a `config.json`.

    Raises:
      UsageError: the file is no JSON object of plain data.
      FileNotFoundError: it is not there.
    """
    try:
        tree = json.loads(texts.decode(path.read_bytes()))
        if not isinstance(tree, dict):
            raise ValueError(f'a {type(tree).__name__} instead of an object')
        return from_dict(tree)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f'{path} is damaged ({error or type(error).__name__}): copy it again.') from error


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
        raise UsageError(_unknown_key(name, flat))
    node, *keys = config, *name.split('.')
    for key in keys[:-1]:
        node = node[key]
    with node.ignore_type():  # a number of heads may become one for each level
        node[keys[-1]] = _parse(name, text.strip(), flat[name])


def _unknown_key(name: str, flat: Mapping) -> str:
    """The message for a key that a config lacks: the key that is meant, by spelling or by meaning."""
    listed = '`t3d train CONFIG --dry-run` lists them.'
    meant = words.key(name)
    near = [key for key in flat if meant and (key == meant or key.endswith(f'.{meant}'))]
    groups = [key for key in flat if key.startswith(f'{name}.') or key.endswith(f'.{name}')]
    if groups or not (near or words.advice(name)):
        return unknown(name, flat, 'config key', listed)
    hint = f'Did you mean {" or ".join(map(repr, near[:3]))}?' if near else words.advice(name)
    return f'unknown config key {name!r}. {hint} {listed}'


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
    """The value of an override, as the rule of its key reads it; without a rule, of the type of `old`."""
    rule = limits.LIMITS.get(name)
    if isinstance(rule, rules.Text | rules.Choice) or (rule is None and isinstance(old, str)):
        return rules.held(name, text, rule or rules.Text())
    value = _literal(text)
    if rule is not None:
        if isinstance(rule, rules.Several) and isinstance(value, str) and isinstance(rule.each, rules.Text | rules.Choice):
            value = _texts(name, value, rule)
        return rules.held(name, value, rule, f'This config has {name}={old!r}.')
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, int) and not isinstance(old, bool) and isinstance(value, float) and value.is_integer():
        value = int(value)
    if old is None or type(value) is type(old):
        return rules.held(name, value, rules.Plain(), f'This config has {name}={old!r}.')
    raise UsageError(f'{name}={text}: wanted {type(old).__name__} (now {old!r}), got {type(value).__name__}.')


def _literal(text: str):
    """The Python value of a text: a number, true, none, a tuple of these; the text itself where it is none."""
    if text.lower() in ('true', 'false', 'none'):
        return {'true': True, 'false': False, 'none': None}[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        try:
            return float(text)  # nan, inf, 08
        except ValueError:
            return text
    return tuple(value) if isinstance(value, list) else value


def _texts(name: str, text: str, rule) -> tuple[str, ...]:
    """The texts of an override without brackets: words of a choice between commas, or one text."""
    if isinstance(rule.each, rules.Choice):
        return tuple(part.strip() for part in text.split(',') if part.strip())
    if not text or ',' in text:
        raise UsageError(
            f"{name}={text}: wanted {rule.wanted}, in brackets and quotes, for example {name}=\"('a chair', 'a table')\"; "
            f'() is none.'
        )
    return (text,)


def _tuples(value):
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _parts(spec: str) -> tuple[str, str]:
    """(file, variant) of a spec; a colon in the name of a folder is no variant."""
    path, colon, variant = spec.rpartition(':')
    return (path, variant) if colon and '/' not in variant and not pathlib.Path(spec).is_file() else (spec, '')


def _from_file(path: pathlib.Path, variant: str):
    tree = config_files.get_config(path, variant)
    try:
        config = from_dict(tree)
        if all(isinstance(key, str) for key in config):
            return config
        error = 'keys that are no names'
    except (TypeError, AttributeError, KeyError, ValueError) as fault:  # a dot in a name, among others
        error = fault
    except RecursionError:
        error = 'a dictionary that holds itself'
    raise UsageError(f'what get_config of {path} returned is no config ({error}): wanted names and plain values.')


def _find(path: str) -> pathlib.Path:
    for candidate in (pathlib.Path(path), CHECKOUT / path, files().get(path)):
        if candidate is not None and candidate.is_file():
            return candidate
    raise UsageError(
        f'no config {path!r} (looked here, in configs/ and in {CHECKOUT / "configs"}). '
        + unknown(pathlib.Path(path).stem, files(), 'config')
    )
