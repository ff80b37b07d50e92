"""CLIP's retrieval probability of what was made for a set of prompts: is each render told from all other prompts of its set?

The judge is the model that the run was given as `given.clip`; what it was trained with may judge itself too kindly, so give
another one for a score that counts: `t3d eval RUN --evaluate prompt_retrieval --given clip=FOLDER`. Prompts that were trained
on and held-out ones are scored apart, and each chooses among all prompts of the set (arXiv 2311.08403, Sec. 4.2).
"""

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import rules
from t3d.core.errors import UsageError
from t3d.data.adapters.prompts import Prompts
from t3d.diffusion import likeness
from t3d.evaluate import drawing
from t3d.geom import cameras
from t3d.inference.loading import Loaded
from t3d.metrics import clip_score, scores

NAME = 'prompt_retrieval'
PAIRED = False
CAPTIONED = True
NEEDS = {'data.kind': 'prompts', 'render.size': None, 'render.radius': None, 'render.fov': None}
VIEWS, ELEVATION = 4, np.deg2rad(30.0)
MOST = 64  # prompts of each split, where --limit says nothing
LIMIT = rules.Whole(2, 2**31 - 1, 'prompts of each split; a control needs another one of each')
SPLITS = {'held_out': 'test', 'seen': 'train'}
BATCH = 64


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """`clip/probability` and `clip/r_precision` of 4 views of each prompt, held-out and seen prompts apart.

    Controls: the prompts of each group shuffled; chance is one in the number of the set's prompts.
    """
    every, groups = chosen(loaded, limit, split)
    alike, params = judge(loaded), loaded.given['clip'].params
    texts = _batched(jax.jit(alike.texts), params, np.asarray(alike.tokenize(list(every))))
    made = {}
    for name, places in groups.items():
        log(f'rendering {len(places)} {name} prompts x {VIEWS} views')
        images = renders(loaded, [every[k] for k in places])
        vectors = _batched(jax.jit(alike.images), params, images.reshape(-1, *images.shape[2:]))
        vectors = vectors.reshape(len(places), VIEWS, -1)
        for prefix, own in ((f'{name}/', places), (f'control/{name}/', places[scores.derangement(len(places))])):
            told = clip_score.among(vectors, texts, own)
            suffix = '_shuffled' if prefix.startswith('control') else ''
            made.update({f'{prefix}{score}{suffix}': told[score] for score in ('clip/probability', 'clip/r_precision')})
        made[f'{name}/clip_n'] = len(places) * VIEWS
    return {**made, 'clip_candidates': len(every), 'control/chance': 1.0 / len(every)}


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """4 views of the chosen prompts, held-out ones first."""
    every, groups = chosen(loaded, limit, split)
    prompts = [every[k] for places in groups.values() for k in places]
    return drawing.Pictures(prompts, renders(loaded, prompts), None, False)


def chosen(loaded: Loaded, limit: int | None, split: str | None) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """(all prompts of the set, {'held_out', 'seen': the places of the prompts that are scored, evenly spread})."""
    if split not in (None, *SPLITS.values()):
        raise UsageError(f'split {split!r}: wanted train, test, or none for both.')
    most = MOST if limit is None else rules.held('--limit', limit, LIMIT)
    groups = {}
    for name, part in SPLITS.items():
        if split in (None, part):
            places = Prompts(loaded.config.data, part).places
            groups[name] = places[np.linspace(0, len(places) - 1, min(most, len(places))).astype(int)]
    small = [name for name, places in groups.items() if len(places) < 2]
    if small:
        raise UsageError(
            f'{small[0]} has fewer than 2 prompts, and a control needs another one: name a --split, or a larger set.'
        )
    return Prompts(loaded.config.data, 'all').every, groups


def judge(loaded: Loaded) -> likeness.Likeness:
    """The model that is given as 'clip'; UsageError where there is none."""
    alike = likeness.of_given(loaded.given)
    if alike is None:
        raise UsageError(f'evaluate={NAME!r} needs {likeness.WANTED}: name it, `t3d eval RUN --given clip=FOLDER`.')
    return alike


def renders(loaded: Loaded, prompts: list[str]) -> np.ndarray:
    """[N, 4, S, S, 3] in [0, 1] from the front, right, back and left, 30 degrees up."""
    render = loaded.config.render
    views = cameras.turntable(VIEWS, elevation=ELEVATION, radius=render.radius, fov=render.fov)
    return drawing.render_views(loaded, prompts, views, render.size, evaluator=NAME)


def _batched(function, params, rows: np.ndarray) -> np.ndarray:
    """The function's vectors of rows, in batches of one shape."""
    made = []
    for start in range(0, len(rows), BATCH):
        some = rows[np.minimum(np.arange(start, start + BATCH), len(rows) - 1)]
        made.append(np.asarray(function(params, jnp.asarray(some))))
    return np.concatenate(made)[: len(rows)]
