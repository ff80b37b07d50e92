"""Who scores what: `config.evaluate` names evaluators of this table, or importable modules of your own.

An evaluator is a module with `evaluate(loaded, log, *, limit, split) -> {score: number}` and `pictures(...)` of the same
arguments, which gives what the scores of t3d.evaluate.scores compare. It sees a loaded model through `generate` and its
outputs; PAIRED and CAPTIONED say whether its pictures have true views beside them, and captions; NEEDS, where there is one, is
the keys of a config that it reads, each with the value that it must have or None for any.
"""

from types import ModuleType

from t3d.core import config as configs
from t3d.core import tables
from t3d.core.errors import UsageError
from t3d.inference.loading import Loaded

EVALUATORS = {
    'toy_objects': 't3d.evaluate.toy_objects',
    'toy_sharpness': 't3d.evaluate.toy_sharpness',
    'toy_seeds': 't3d.evaluate.toy_seeds',
    'asked_objects': 't3d.evaluate.asked_objects',
    'marked_fronts': 't3d.evaluate.marked_fronts',
    'toy_prompts': 't3d.evaluate.toy_prompts',
    'prompt_retrieval': 't3d.evaluate.prompt_retrieval',
    'object_views': 't3d.evaluate.object_views',
    'object_seeds': 't3d.evaluate.object_seeds',
    'toy_pictures': 't3d.evaluate.toy_pictures',
    'view_consistency': 't3d.evaluate.view_consistency',
    'view_sets': 't3d.evaluate.view_sets',
    'pattern_views': 't3d.evaluate.pattern_views',
    'pattern_consistency': 't3d.evaluate.pattern_consistency',
    'pattern_pictures': 't3d.evaluate.pattern_pictures',
    'generated_objects': 't3d.evaluate.generated_objects',
    'captioned_pictures': 't3d.evaluate.captioned_pictures',
    'captioned_views': 't3d.evaluate.captioned_views',
    'captioned_objects': 't3d.evaluate.captioned_objects',
    'endless_objects': 't3d.evaluate.endless_objects',
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


def some_names(config) -> tuple[str, ...]:
    """The evaluators that a config names; UsageError where it names none."""
    chosen = names(config)
    if not chosen:
        raise UsageError(
            f'{config.system} names no evaluator (evaluate=()): give one with --evaluate, of {", ".join(EVALUATORS)}.'
        )
    return chosen


def first(config) -> ModuleType:
    """The evaluator whose pictures the chosen metrics compare."""
    return find(some_names(config)[0])


def fitting(loaded: Loaded, name: str) -> ModuleType:
    """The evaluator of a name; UsageError where the data of a run are not of the kind that it reads."""
    evaluator = find(name)
    values = configs.flatten(data_config(loaded, evaluator))
    for key, value in getattr(evaluator, 'NEEDS', {}).items():
        if key not in values or value not in (None, values[key]):
            wanted = key if value is None else f'{key}={value!r}'
            has = f'{key}={values[key]!r}' if key in values else f'no {key}'
            raise UsageError(
                f'evaluate={name!r} is for runs with {wanted}, and {loaded.name} ({loaded.config.system}) has {has}: name '
                'another evaluator, with `t3d eval RUN --evaluate NAME`.'
            )
    return evaluator


def data_config(loaded: Loaded, evaluator: ModuleType):
    """The config whose data and background an evaluator's pictures have: the run's, or that of a model it was given."""
    return evaluator.data_config(loaded) if hasattr(evaluator, 'data_config') else loaded.config


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict:
    """All scores of the evaluators that a model's config names.

    Keys are `<score>` with `<score>_n` beside, and `control/<score>`. A score that is a list of rows {column: value} is a table
    of what the others are means of.

    Args:
      limit: of objects, scenes, samples of a caption or pictures, as each evaluator says.
      split: of a built data set; None for the objects trained on.
    """
    scores = {}
    for name in some_names(loaded.config):
        scores |= fitting(loaded, name).evaluate(loaded, log, limit=limit, split=split)
    return scores
