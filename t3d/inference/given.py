"""Other models that a system uses: what the names in `config.given` may be, and what a run keeps and remembers of them.

A value is a run folder, a weights folder, the name of shipped weights, a Stable Diffusion folder or file, `toy`, a prior in
closed form (`toy_pictures`), a CLIP folder or `toy_clip` (`likenesses`), or a config (`configs/x.py:variant`), which describes
the model that is wanted and has no weights: enough for `t3d plan`, a dry run and a benchmark, as is `shapes:sd21` (`shapes`).
A run folder keeps a copy of each given model that is in t3d's own format, in `given/<name>/`, and is whole by itself; others,
which are large and the user's, stay where they are, and the run remembers their digest. `loading.open_given` opens them.
"""

import hashlib
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.core.system import Given

FOLDER = 'given'  # of a run or weights folder


def parse(words) -> dict[str, str]:
    """{name: value} of words NAME=VALUE."""
    pairs = [word.partition('=') for word in words]
    for name, equals, value in pairs:
        if not (name and equals and value):
            hint = ' Put prompts before --given.' if not equals and ' ' in name else ''
            raise UsageError(f'--given {name}{equals}{value}: wanted NAME=MODEL, for example generator=runs/0001-gan.{hint}')
    return {name: value for name, _, value in pairs}


def is_config(value: str) -> bool:
    """Whether a value names a config, which has no weights."""
    return value.partition(':')[0].endswith('.py')


def require_weights(given: Mapping[str, Given]) -> None:
    """Raises UsageError for a given that a config stands for: it cannot be trained with."""
    for name, one in given.items():
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(one.params)):
            if not is_config(one.name):
                raise UsageError(
                    f'given.{name}={one.name!r} is the sizes of a model, without weights, enough for `t3d plan`: set '
                    f'given.{name}=FOLDER, of Stable Diffusion in the layout of diffusers.'
                )
            raise UsageError(
                f'given.{name}={one.name!r} is a config, which has no weights: train it (`t3d train {one.name}`), then set '
                f'given.{name}=RUN, or name a weights folder.'
            )


def pictures_config(config, given: Mapping[str, Given]):
    """The config whose set has the pictures that a model learned: its own, or that of the triplane generator it was given."""
    from t3d.fields.triplane_generator import Generator

    return next((one.config for one in given.values() if isinstance(one.functions, Generator)), config)


def digest(params) -> str:
    """SHA-256 (16 hex digits) over arrays by path name: names, types, shapes, bytes."""
    hasher = hashlib.sha256()
    for name, leaf in sorted(trees.flatten(params).items()):
        leaf = np.asarray(leaf, order='C')
        hasher.update(f'{name} {leaf.dtype} {leaf.shape}\n'.encode())
        hasher.update(leaf.tobytes())
    return hasher.hexdigest()[:16]


def keep(workdir, given: Mapping[str, Given]) -> None:
    """Copies those of t3d's own format into a run or weights folder, unless they are there, with what they are given."""
    from t3d.checkpoint import weights

    for name, one in given.items():
        place, params = epath.Path(workdir) / FOLDER / name, one.params['weights'] if one.given else one.params
        if one.config is None:
            continue
        if not ((place / weights.FILE).exists() and digest(weights.load(place)[0]) == digest(params)):
            weights.save(place, params, one.config)
        keep(place, one.given)


def refuse_other(given: Mapping[str, Given], recorded: Mapping[str, str], where, next_step: str = '') -> None:
    """Raises UsageError where a run was made with other models than those given now; `next_step` ends the message."""
    for name, one in given.items():
        before = recorded.get(name)
        if before is not None and before != one.digest:
            place = epath.Path(where) / FOLDER / name
            that = f'that one, given.{name}={place}' if place.exists() else 'that one'
            raise UsageError(
                f'given.{name}={one.name!r} (SHA-256 {one.digest}) is not what {where} was made with ({before}): '
                + (next_step or f'give {that}, or train in another --workdir.')
            )
