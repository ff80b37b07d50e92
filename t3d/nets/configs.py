"""The config.json of a diffusers folder as attributes of one of our modules."""

import dataclasses
import difflib
from collections.abc import Mapping

from t3d.core.errors import UsageError

OURS = ('parent', 'name', 'dtype', 'remat')  # attributes that no file has
MOST = 100_000  # of any number of channels or heads
DEEPEST = 64  # layers of one level


def fields(module: type, config: Mapping, fixed: Mapping[str, tuple], ignored: tuple[str, ...]) -> dict:
    """Attributes for `module` from a configuration, lists as tuples; nothing is dropped silently.

    Args:
      fixed: keys that the module implements for these values only.
      ignored: keys that do not change the network. Keys with a leading underscore never do.
    Raises:
      UsageError: an unknown key, or a value that is not implemented.
    """
    own = {field.name: field.default for field in dataclasses.fields(module) if field.name not in OURS}
    kept = {}
    for key, value in config.items():
        if key in own:
            kept[key] = tuple(value) if isinstance(value, list) else value
            if kept[key] is None and own[key] is False:
                kept[key] = False  # some released files say null for false
            if not _of_the_kind(kept[key], own[key]):
                raise UsageError(f'{module.__name__} config has {key}={value!r}: wanted {_wanted(own[key])}.')
        elif key in fixed:
            if value not in fixed[key]:
                raise UsageError(
                    f'{module.__name__} config has {key}={value!r}: t3d implements {fixed[key][0]!r}. '
                    'Weights of another architecture are not read; convert them or take a Stable Diffusion 1.5 or 2.1 folder.'
                )
        elif key not in ignored and not key.startswith('_'):
            near = difflib.get_close_matches(key, [*own, *fixed], 1)
            hint = f' Did you mean {near[0]!r}?' if near else ''
            raise UsageError(f'{module.__name__} config has an unknown key {key!r}.{hint}')
    return kept


def refuse_zero(module, *names: str) -> None:
    """Raises UsageError for an attribute that is 0, for any level, or more layers than any model has."""
    for name in names:
        value = getattr(module, name)
        values = value if isinstance(value, tuple) else (value,)
        if min(values) < 1 or name == 'layers_per_block' and max(values) > DEEPEST:
            allowed = f'1 to {DEEPEST}' if name == 'layers_per_block' else 'at least 1'
            raise UsageError(f'{type(module).__name__} config has {name}={value!r}: wanted {allowed}.')


def refuse_lists(module, *names: str) -> None:
    """Raises UsageError for an attribute that may not differ from level to level."""
    for name in names:
        if isinstance(getattr(module, name), tuple):
            raise UsageError(f'{type(module).__name__} config has {name}={getattr(module, name)!r}: wanted one number.')


def _of_the_kind(value, default) -> bool:
    """Whether a value of a file can stand where `default` stands; one number may be one for each level, and the reverse."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, tuple):
        return isinstance(value, tuple) and 1 <= len(value) <= 16 and all(_of_the_kind(part, default[0]) for part in value)
    if isinstance(default, str):
        return isinstance(value, str)
    if isinstance(value, tuple):
        return 1 <= len(value) <= 16 and all(_of_the_kind(part, default) for part in value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MOST:
        return False
    return isinstance(value, int) if isinstance(default, int) else True


def _wanted(default) -> str:
    if isinstance(default, bool):
        return 'true or false'
    if isinstance(default, tuple):
        return f'a list of {"names" if isinstance(default[0], str) else "whole numbers"}, one for each level'
    return f'a {"whole number" if isinstance(default, int) else "number"} from 0 to {MOST}'
