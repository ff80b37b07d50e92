"""diffusers' `scheduler_config.json`: which fields each scheduler class has, what it takes missing ones to be, and its betas.

A file often carries fields of the class that it was converted from. diffusers ignores those that the named class does not have
(an Euler file's `set_alpha_to_one`), and so does `read`. Fields that no class has, and values that would make another model or
another computation of it, are refused by name.
"""

import difflib
import math
import sys
from collections.abc import Callable, Mapping

import numpy as np

from t3d.core.errors import UsageError

PREDICTIONS = {'epsilon': 'eps', 'v_prediction': 'v', 'sample': 'x0'}
SPACINGS = ('leading', 'trailing', 'linspace')
MOST_TIMES = 100_000  # of a table: far above any released model, and nothing large is allocated for a damaged file

EVERY = {  # fields that every class has, with diffusers' defaults
    'num_train_timesteps': 1000,
    'beta_start': 1e-4,
    'beta_end': 0.02,
    'beta_schedule': 'linear',
    'trained_betas': None,
    'prediction_type': 'epsilon',
}
SOME = {  # fields that some classes have; what a class without them does
    'timestep_spacing': 'linspace',
    'steps_offset': 0,
    'rescale_betas_zero_snr': False,
    'set_alpha_to_one': True,
    'clip_sample': False,
    'clip_sample_range': 1.0,
    'thresholding': False,
    'dynamic_thresholding_ratio': 0.995,
    'sample_max_value': 1.0,
}
_SPACED = {'timestep_spacing': 'linspace', 'steps_offset': 0}
_LED = {'timestep_spacing': 'leading', 'steps_offset': 0}
_RESCALED = {'rescale_betas_zero_snr': False}
_CLIPPED = {'clip_sample': True, 'clip_sample_range': 1.0}
_THRESHOLD = {'thresholding': False, 'dynamic_thresholding_ratio': 0.995, 'sample_max_value': 1.0}
_STABLE = {'beta_start': 0.00085, 'beta_end': 0.012}
CLASSES = {  # of SOME, what each class has and its defaults; of EVERY, the defaults that differ
    'DDIMScheduler': _LED | _RESCALED | _CLIPPED | _THRESHOLD | {'set_alpha_to_one': True},
    'DDIMInverseScheduler': _LED | _RESCALED | _CLIPPED | {'set_alpha_to_one': True},
    'DDPMScheduler': _LED | _RESCALED | _CLIPPED | _THRESHOLD,
    'PNDMScheduler': _LED | {'set_alpha_to_one': False},
    'LCMScheduler': _LED
    | _RESCALED
    | _CLIPPED
    | _THRESHOLD
    | _STABLE
    | {'beta_schedule': 'scaled_linear', 'clip_sample': False, 'set_alpha_to_one': True},
    'DPMSolverMultistepScheduler': _SPACED | _RESCALED | _THRESHOLD,
    'DPMSolverSinglestepScheduler': _THRESHOLD,
    'DEISMultistepScheduler': _SPACED | _THRESHOLD,
    'UniPCMultistepScheduler': _SPACED | _RESCALED | _THRESHOLD,
    'EulerDiscreteScheduler': _SPACED | _RESCALED,
    'EulerAncestralDiscreteScheduler': _SPACED | _RESCALED,
    'LMSDiscreteScheduler': _SPACED,
    'HeunDiscreteScheduler': _SPACED | _STABLE | _CLIPPED | {'clip_sample': False},
    'KDPM2DiscreteScheduler': _SPACED | _STABLE,
}
# Their steps end at t - T // steps, which is where the next begins only if steps divide T (`samplers.intervals`).
UNALIGNED = ('DDIMScheduler', 'DDIMInverseScheduler', 'PNDMScheduler')
_SOLVERS = ('DPMSolverMultistepScheduler', 'DPMSolverSinglestepScheduler')
_ENDED = (*_SOLVERS, 'EulerDiscreteScheduler', 'UniPCMultistepScheduler')
FIXED = {  # (values, classes): in files of these classes, any other value makes another computation; the first is the usual one
    'use_flow_sigmas': ((False,), tuple(CLASSES)),
    'use_dynamic_shifting': ((False,), tuple(CLASSES)),
    'predict_epsilon': ((True,), tuple(CLASSES)),  # of files before diffusers 0.5; now prediction_type
    'timestep_type': (('discrete',), ('EulerDiscreteScheduler',)),
    'final_sigmas_type': (('zero',), _ENDED),
    'sigma_min': ((None,), _ENDED[2:]),
    'sigma_max': ((None,), _ENDED[2:]),
    'shift_terminal': ((None,), ('UniPCMultistepScheduler',)),
    'lambda_min_clipped': ((-math.inf, '-inf', '-Infinity'), _SOLVERS),
    'variance_type': ((None, 'fixed_small', 'fixed_small_log', 'fixed_large', 'fixed_large_log'), (*_SOLVERS, 'DDPMScheduler')),
}
LEFT = {  # choices of a sampler, which t3d leaves to its user, with what means no choice at all (`weights check` prints others)
    'solver_order': (2,),
    'solver_type': None,
    'solver_p': (None,),
    'algorithm_type': ('dpmsolver++', 'deis'),
    'lower_order_final': None,
    'euler_at_final': (False,),
    'predict_x0': (True,),
    'disable_corrector': ([],),
    'skip_prk_steps': None,
    'variance_type': (None, 'fixed_small'),
    'interpolation_type': ('linear',),
    'use_karras_sigmas': (False, None),
    'use_exponential_sigmas': (False, None),
    'use_beta_sigmas': (False, None),
    'use_lu_lambdas': (False, None),
    'original_inference_steps': None,
    'timestep_scaling': None,
    'flow_shift': None,  # read with use_flow_sigmas only, as the next is with use_dynamic_shifting
    'time_shift_type': None,
    'tensor_format': None,  # of files before diffusers 0.3
}


def read(config: Mapping) -> dict:
    """The fields of EVERY and SOME as the class named in the file takes them, checked.

    Raises:
      UsageError: a class, field or value that is not known, or that t3d does not compute; it says which.
    """
    name = config.get('_class_name')
    if not isinstance(name, str) or name not in CLASSES:
        raise UsageError(f'Scheduler class {name!r} is not known. Known: {", ".join(sorted(CLASSES))}.')
    field = EVERY | SOME | CLASSES[name]
    for key, value in config.items():
        if key in EVERY or key in CLASSES[name]:
            field[key] = value
        elif key in FIXED:
            values, classes = FIXED[key]
            if name in classes and value not in values:
                raise UsageError(f'{key} {value!r} in the scheduler file is another computation: t3d implements {values[0]!r}.')
        elif key not in SOME and key not in LEFT and not key.startswith('_'):
            near = difflib.get_close_matches(key, [*EVERY, *SOME, *FIXED, *LEFT], 1)
            hint = f' Did you mean {near[0]!r}?' if near else ' Remove it if it does not change the noise levels.'
            raise UsageError(f'the scheduler file has an unknown field {key!r}.{hint}')
    _check(field)
    return field


def left_to_the_user(config: Mapping) -> list[str]:
    """Lines on fields of the file that choose a sampler, which t3d does not read: the user chooses one."""
    return [
        f'{key}={config[key]!r}' for key, usual in LEFT.items() if key in config and usual and config[key] not in usual
    ]  # fields without a usual value say nothing that a user could miss


def _check(field: dict) -> None:
    """Raises UsageError for values of a wrong kind or out of range."""
    for key in ('rescale_betas_zero_snr', 'set_alpha_to_one', 'clip_sample', 'thresholding'):
        _want(key, field, 'true or false', lambda value: isinstance(value, bool))
    _want('num_train_timesteps', field, f'a whole number from 2 to {MOST_TIMES}', lambda value: _whole(value, 2, MOST_TIMES))
    count = field['num_train_timesteps']
    _want('steps_offset', field, f'a whole number from 0 to {count - 1}', lambda value: _whole(value, 0, count - 1))
    for key in ('beta_start', 'beta_end'):
        _want(key, field, 'a number above 0 and below 1', lambda value: _number(value) and 0.0 < value < 1.0)
    for key in ('clip_sample_range', 'sample_max_value'):
        _want(key, field, 'a number above 0', lambda value: _number(value) and value > 0.0)
    _want('dynamic_thresholding_ratio', field, 'a number from 0 to 1', lambda value: _number(value) and 0.0 <= value <= 1.0)
    _known('prediction_type', field, PREDICTIONS)
    _known('timestep_spacing', field, SPACINGS)
    betas = field['trained_betas']
    if betas is None:
        _known('beta_schedule', field, BETAS)
    elif not (isinstance(betas, (list, tuple)) and 2 <= len(betas) <= MOST_TIMES and all(map(_number, betas))):
        raise UsageError(f'trained_betas in the scheduler file: wanted null, or a list of 2 to {MOST_TIMES} numbers.')


def _whole(value, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _want(key: str, field: dict, expected: str, good: Callable) -> None:
    if not good(field[key]):
        raise UsageError(f'{key} {field[key]!r} in the scheduler file: wanted {expected}.')


def _known(key: str, field: dict, choices) -> None:
    value = field[key]
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f'{key} {value!r} in the scheduler file is not known. Known: {", ".join(map(repr, choices))}.')


def alpha_bar(field: Mapping) -> np.ndarray:
    """abar_t, [T] float64, of checked fields, before any rescaling."""
    if field['trained_betas'] is not None:
        return np.cumprod(1.0 - np.asarray(field['trained_betas'], np.float64))
    steps, start, end = int(field['num_train_timesteps']), float(field['beta_start']), float(field['beta_end'])
    return np.cumprod(1.0 - BETAS[field['beta_schedule']](steps, start, end))


def cosine_betas(steps: int) -> np.ndarray:
    """[steps] float64: abar(u) = cos^2((u + .008) / 1.008 pi/2), each beta at most .999 (arXiv 2102.09672, Eq. 17)."""
    return _betas_of(lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2, steps)


def exponential_betas(steps: int, rate: float = 12.0) -> np.ndarray:
    """[steps] float64: abar(u) = exp(-rate u) (arXiv 2305.02463)."""
    return _betas_of(lambda u: np.exp(-rate * u), steps)


def _betas_of(alpha_bar: Callable, steps: int, largest: float = 0.999) -> np.ndarray:
    u = np.arange(steps + 1, dtype=np.float64) / steps
    return np.minimum(1.0 - alpha_bar(u[1:]) / alpha_bar(u[:-1]), largest)


BETAS = {  # beta_schedule: (steps, start, end) -> [steps] float64
    'linear': lambda steps, start, end: np.linspace(start, end, steps),
    'scaled_linear': lambda steps, start, end: np.linspace(start**0.5, end**0.5, steps) ** 2,
    'squaredcos_cap_v2': lambda steps, start, end: cosine_betas(steps),
    'exp': lambda steps, start, end: exponential_betas(steps),
    'sigmoid': lambda steps, start, end: start + (end - start) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, steps))),
}
