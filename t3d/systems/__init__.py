"""The table of systems: name -> module. Each module's only entry is `make(config) -> System`."""

import difflib
import importlib

from t3d.core.errors import UsageError
from t3d.core.system import System

SYSTEMS = {
    'ganfusion_gan': 't3d.systems.ganfusion_gan',
    'ganfusion_diffusion': 't3d.systems.ganfusion_diffusion',
    'image_diffusion': 't3d.systems.image_diffusion',
    'instant3d': 't3d.systems.instant3d',
    'renderdiffusion': 't3d.systems.renderdiffusion',
}


def make(config) -> System:
    """The system that `config.system` names.

    Raises:
      ValueError: the name is not in the table; the message lists it.
    """
    return importlib.import_module(SYSTEMS[known(config)]).make(config)


def known(config) -> str:
    """The name that `config.system` has; UsageError where the table lacks it, or the config has none."""
    name = config.get('system', '')
    if name not in SYSTEMS:
        near = difflib.get_close_matches(str(name), SYSTEMS, 1)
        hint = f' Did you mean {near[0]!r}?' if near else ''
        raise UsageError(f'unknown system {name!r}: there are {", ".join(sorted(SYSTEMS))}.{hint}')
    return name
