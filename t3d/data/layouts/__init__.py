"""The table of layouts that folders of posed pictures have: name -> module with `is_there(root, layout)` and `find`.

`find(root, layout, split)` gives the objects of a split (scene.Objects). A folder's layout is found by looking, in the order of
the table: what tells most comes first.
"""

import difflib
import importlib
import pathlib

from t3d.core import files
from t3d.core.errors import UsageError
from t3d.data.layouts.scene import Objects

LAYOUTS = {
    'co3d': 't3d.data.layouts.catalogues',
    'instantmesh': 't3d.data.layouts.renders',
    'spad': 't3d.data.layouts.pickled',
    'syncdreamer': 't3d.data.layouts.pickled',
    'zero123': 't3d.data.layouts.renders',
    'srn': 't3d.data.layouts.catalogues',
    'nerf_synthetic': 't3d.data.layouts.transforms',
    'nerfstudio': 't3d.data.layouts.transforms',
    'ours': 't3d.data.layouts.transforms',
    'mv_adapter': 't3d.data.layouts.renders',
}
SIGNS = {  # what a folder of each layout holds, for messages
    'co3d': 'CATEGORY/frame_annotations.jgz',
    'instantmesh': 'valid_paths.json, rendering_random_32views/ID/cameras.npz',
    'spad': 'ID/cameras/0.npy beside ID/images/0.png',
    'syncdreamer': 'ID/meta.pkl beside 000.png',
    'zero123': 'valid_paths.json, ID/000.npy beside 000.png',
    'srn': 'ID/intrinsics.txt beside rgb and pose',
    'nerf_synthetic': 'transforms_train.json',
    'nerfstudio': 'transforms.json',
    'ours': 'cameras.json beside 000.png',
    'mv_adapter': 'XX/ID/meta.json beside color_0000.webp',
}


def recognise(root: pathlib.Path) -> str:
    """The name of a folder's layout.

    Raises:
      UsageError: none of them is there.
      FileNotFoundError: no such folder.
    """
    if not root.exists():
        raise FileNotFoundError(f'no folder of posed pictures {root}: give one, in a config as data.path.')
    if not root.is_dir():
        raise UsageError(f'{root} is a file: give the folder of posed pictures; a zip has to be unpacked first.')
    for name, module in LAYOUTS.items():
        if importlib.import_module(module).is_there(root, name):
            return name
    signs = '; '.join(f'{name}: {sign}' for name, sign in SIGNS.items())
    inner = next((folder.name for folder in sorted(root.iterdir()) if folder.is_dir() and _has_any(folder)), '')
    hint = f' {files.quoted(root / inner)} has one: give that folder.' if inner else ''
    raise UsageError(
        f'{root} has no layout of posed pictures that is known ({signs}).{hint} Write cameras.json as docs/posed_images.md '
        'shows, or name the layout: data.layout=..., --layout ....'
    )


def _has_any(folder: pathlib.Path) -> bool:
    return any(importlib.import_module(module).is_there(folder, name) for name, module in LAYOUTS.items())


def find(root: pathlib.Path, layout: str, split: str) -> tuple[str, Objects]:
    """(layout, objects of a split) of a folder.

    Args:
      layout: a name of the table; '' or 'auto' to look.
    Raises:
      UsageError: an unknown layout or split, a folder without such objects.
    """
    if layout in ('', 'auto'):
        layout = recognise(root)
    elif layout not in LAYOUTS:
        near = difflib.get_close_matches(layout, LAYOUTS, 1)
        hint = f' Did you mean {near[0]!r}?' if near else ''
        raise UsageError(f'data.layout={layout!r}: there are auto, {", ".join(LAYOUTS)}.{hint}')
    elif not root.is_dir():
        recognise(root)
    objects = importlib.import_module(LAYOUTS[layout]).find(root, layout, split)
    if not objects.entries:
        raise UsageError(
            f'{root} has no objects of split {split!r} as layout {layout} ({SIGNS[layout]}): choose another data.split, or '
            'another data.layout.'
        )
    return layout, objects
