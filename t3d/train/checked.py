"""What can be known to be wrong with a run before its folder is made: system, data, one example, the metric of the best."""

import jax
import numpy as np

from t3d import systems
from t3d.core import prng
from t3d.core.config import unknown
from t3d.core.errors import UsageError
from t3d.core.system import params_of
from t3d.data import sources
from t3d.inference import given as givens
from t3d.parallel import devices


def prepare(config, given):
    """(system, data) of a resolved config, data as `loop.run` takes it; None for a system without data.

    `given`: {name: core.system.Given}, the opened models that it uses.

    Raises:
      UsageError, FileNotFoundError: what is wrong, before anything is written.
    """
    givens.require_weights(given)
    system = systems.make(config, given)
    refuse_untrained(config, system)
    check_best(config, system, params_of(given))
    if not system.batch_spec:
        return system, None
    source, transform = sources.make(config, None, system.batch_spec)
    preview = sources.preview(config, system.batch_spec)
    check_example(config, system, source, transform)
    return system, (source, transform, preview)


def refuse_untrained(config, system) -> None:
    """Raises UsageError for a system that only samples."""
    if system.train_step is None:
        raise UsageError(f'{config.system} has nothing to train: `t3d generate PROMPT --config CONFIG` samples it.')


def check_example(config, system, source, transform) -> None:
    """Raises UsageError where a record cannot be made into an example of the system's batch."""
    if len(source) == 0:
        raise UsageError('the data source is empty: check data.split and data.name.')
    example = transform(source[0], np.random.default_rng(0))
    for name, spec in system.batch_spec.items():
        shape = np.shape(example[name]) if name in example else None
        if shape != spec.shape[1:]:
            raise UsageError(
                f'{name} of a record has shape {shape}, {config.system} wants {spec.shape[1:]}: check data.size and data.views.'
            )


def check_best(config, system, given) -> None:
    """Raises UsageError for a `checkpoint.best` that is no metric of the train step; every system has `loss`."""
    best = config.checkpoint.get('best', '').lstrip('+')
    if best in ('', 'loss'):
        return
    with jax.set_mesh(devices.make(config.mesh)):
        state = jax.eval_shape(system.init, prng.key(0), system.batch_spec, given)
        _, metrics = jax.eval_shape(system.train_step, state, system.batch_spec, prng.key(0), given)
    if best not in metrics:
        raise UsageError(unknown(best, metrics, 'metric (checkpoint.best)'))
