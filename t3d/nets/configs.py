"""The config.json of a diffusers folder as attributes of one of our modules."""

import dataclasses
import difflib
from collections.abc import Mapping

from t3d.core.errors import UsageError


def fields(module: type, config: Mapping, fixed: Mapping[str, tuple], ignored: tuple[str, ...]) -> dict:
    """Attributes for `module` from a configuration, lists as tuples; nothing is dropped silently.

    Args:
      fixed: keys that the module implements for these values only.
      ignored: keys that do not change the network. Keys with a leading underscore never do.
    Raises:
      UsageError: an unknown key, or a value that is not implemented.
    """
    own = {field.name for field in dataclasses.fields(module)} - {'parent', 'name', 'dtype', 'remat'}
    kept = {}
    for key, value in config.items():
        if key in own:
            kept[key] = tuple(value) if isinstance(value, list) else value
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
