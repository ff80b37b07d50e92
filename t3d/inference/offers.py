"""What can be meant by a value of `given` that names nothing: built-in models, shipped weights, runs and folders of its kind.

Which kinds a system takes by which name, and which it gives to others, its module says (t3d.systems).
"""

import contextlib
import difflib
import json
import pathlib
from collections.abc import Mapping

from t3d import systems
from t3d.core.errors import UsageError
from t3d.diffusion.likeness import Likeness
from t3d.diffusion.prior import Prior
from t3d.inference import likenesses, toy_pictures

BUILT_IN = {
    Prior: (toy_pictures.NAME, f'{toy_pictures.NAME}:SIZE', toy_pictures.MARKED, toy_pictures.PATTERNED),
    Likeness: (likenesses.TOY, f'{likenesses.TOY}:SIZE', likenesses.JUDGE),
}
FOLDERS = {  # of the user's
    Prior: 'a Stable Diffusion folder of yours, as diffusers saves it',
    Likeness: 'a CLIP folder of yours',
}


def meant(name: str, value: str, config, shipped: Mapping[str, str]) -> str:
    """The message for given.NAME=VALUE of a config where there is nothing of that name; '' if its system says no kinds.

    Args:
      shipped: {name: system} of the weights that come with t3d.
    """
    kinds = _said(config, 'TAKES', {}).get(name, ())
    if not kinds:
        return ''
    givers = [system for system in systems.SYSTEMS if getattr(systems.module(system), 'GIVES', None) in kinds]
    names = [word for kind in kinds for word in BUILT_IN.get(kind, ()) if name not in _said(config, 'LEARNED', ())]
    names += [word for word, system in shipped.items() if system in givers]
    runs = _runs(givers)
    near = difflib.get_close_matches(value, [*names, *runs], 1, 0.6)
    hint = f' Did you mean {near[0]}?' if near else f' The newest run of that kind here: {runs[-1]}.' if runs else ''
    wanted = [', '.join(names)] if names else []
    wanted += [f'a run or weights folder of {" or ".join(givers)}'] if givers else []
    wanted += [FOLDERS[kind] for kind in kinds if kind in FOLDERS]
    what = 'holds no model' if pathlib.Path(value).exists() else 'is no folder, and no model has this name'
    example = near[0] if near and 'SIZE' not in near[0] else next(iter(names), 'FOLDER')
    return f'{value} {what}.{hint} Wanted {"; ".join(wanted)}. For example: given.{name}={example}.'


def _said(config, what: str, otherwise):
    """What the module of the system of a config says; `otherwise` where it does not, or there is none."""
    with contextlib.suppress(UsageError, KeyError, TypeError):
        return getattr(systems.module(config['system']), what, otherwise)
    return otherwise


def _runs(givers: list[str]) -> list[str]:
    """The runs of such systems in runs/, the newest last."""
    found = []
    for path in pathlib.Path('runs').glob('*/config.json'):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            if (path.parent / 'checkpoints').is_dir() and json.loads(path.read_text(encoding='utf-8'))['system'] in givers:
                found.append((path.stat().st_mtime, str(path.parent)))
    return [folder for _, folder in sorted(found)]
