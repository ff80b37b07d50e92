"""Who scores what: `config.evaluate` names evaluators of this table, or importable modules of your own.

An evaluator is a module with `evaluate(loaded, log, *, limit, split) -> {score: number}` and `pictures(...)` of the same
arguments, which gives what the scores of t3d.evaluate.scores compare. It sees a loaded model through `generate` and its
outputs; PAIRED and CAPTIONED say whether its pictures have true views beside them, and captions.
"""

from types import ModuleType

from t3d.core import config as configs
from t3d.core import tables
from t3d.core.errors import UsageError
from t3d.inference.loading import Loaded

EVALUATORS = {
    'toy_objects': 't3d.evaluate.toy_objects',
    'object_views': 't3d.evaluate.object_views',
    'toy_pictures': 't3d.evaluate.toy_pictures',
    'view_sets': 't3d.evaluate.view_sets',
    'pattern_views': 't3d.evaluate.pattern_views',
    'pattern_pictures': 't3d.evaluate.pattern_pictures',
    'generated_objects': 't3d.evaluate.generated_objects',
    'captioned_objects': 't3d.evaluate.captioned_objects',
}


def find(name: str) -> ModuleType:
    """The evaluator of a name."""
    return tables.find(name, EVALUATORS, 'evaluator (evaluate)', 'evaluate')


def names(config) -> tuple[str, ...]:
    """The evaluators that a config names; UsageError for one of an older t3d, which names none."""
    if 'evaluate' not in config:
        raise UsageError(
            'this run was made before configs named their evaluators: give one, `t3d eval RUN --evaluate NAME`, of '
            f'{", ".join(EVALUATORS)}.'
        )
    return tuple(config.evaluate)


def with_evaluators(loaded: Loaded, chosen: tuple[str, ...]) -> Loaded:
    """The model with other evaluators than those that its config names."""
    for name in chosen:
        find(name)
    return loaded._replace(config=configs.from_dict({**loaded.config.to_dict(), 'evaluate': chosen}))


def first(config) -> ModuleType:
    """The evaluator whose pictures the chosen metrics compare."""
    chosen = names(config)
    if not chosen:
        raise UsageError(
            f'{config.system} names no evaluator (evaluate=()): give one with --evaluate, of {", ".join(EVALUATORS)}.'
        )
    return find(chosen[0])


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """All scores of the evaluators that a model's config names.

    Keys are `<score>` with `<score>_n` beside, and `control/<score>`.

    Args:
      limit: of objects, scenes, samples of a caption or pictures, as each evaluator says.
      split: of a built data set; None for the objects trained on.
    """
    scores = {}
    for name in names(loaded.config):
        scores |= find(name).evaluate(loaded, log, limit=limit, split=split)
    return scores
