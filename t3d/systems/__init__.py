"""The table of systems: name -> module. Each module's only entry is `make(config, given) -> System`.

For messages it may say GIVES, the kind of its `functions`; TAKES, the kinds of model that it can be given, by name; LEARNED,
the names of those that must have networks, which models in closed form have not.
"""

from collections.abc import Mapping
from types import ModuleType

from t3d.core import tables
from t3d.core.system import Given, System

SYSTEMS = {
    'dreamfusion': 't3d.systems.dreamfusion',
    'ganfusion_gan': 't3d.systems.ganfusion_gan',
    'ganfusion_diffusion': 't3d.systems.ganfusion_diffusion',
    'guided_mv': 't3d.systems.guided_mv',
    'image_diffusion': 't3d.systems.image_diffusion',
    'instant3d': 't3d.systems.instant3d',
    'mvdiffusion': 't3d.systems.mvdiffusion',
    'reconstruct': 't3d.systems.reconstruct',
    'renderdiffusion': 't3d.systems.renderdiffusion',
}
OF_VIEWS = 'configs/reconstruct.py:tiny'  # what makes an object of posed views where nothing else is named
SHORT = {'ganfusion': 'ganfusion_diffusion'}  # a system of two stages goes by its paper's name: the one that reads prompts


def make(config, given: Mapping[str, Given] | None = None) -> System:
    """The system that `config.system` names: one of the table, or any importable module with `make`.

    Args:
      given: the other models that it uses (t3d.inference.given).
    Raises:
      UsageError: the name is neither; the message lists the table.
    """
    return module(config['system']).make(config, given or {})


def module(name: str) -> ModuleType:
    """The module of a system's name."""
    return tables.find(name, SYSTEMS, 'system', 'make')
