"""Scheduler files: each class's fields and defaults against diffusers' own, foreign fields, unknown ones, damaged ones."""

import inspect
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.core.errors import UsageError
from t3d.diffusion import scheduler_files, schedules

READ = scheduler_files.EVERY | scheduler_files.SOME
# What users' files carry from the class they were converted from: Stable Diffusion XL's and Turbo's, as published.
XL = {
    '_class_name': 'EulerDiscreteScheduler',
    '_diffusers_version': '0.19.0.dev0',
    'beta_end': 0.012,
    'beta_schedule': 'scaled_linear',
    'beta_start': 0.00085,
    'clip_sample': True,
    'interpolation_type': 'linear',
    'num_train_timesteps': 1000,
    'prediction_type': 'epsilon',
    'sample_max_value': 1.0,
    'set_alpha_to_one': False,
    'skip_prk_steps': True,
    'steps_offset': 1,
    'thresholding': True,
    'timestep_spacing': 'leading',
    'trained_betas': None,
    'use_karras_sigmas': False,
}


@pytest.mark.parametrize('name', sorted(scheduler_files.CLASSES))
def test_every_class_has_the_fields_and_defaults_that_diffusers_gives_it(name):
    diffusers = pytest.importorskip('diffusers')
    own = {
        key: parameter.default
        for key, parameter in inspect.signature(getattr(diffusers, name).__init__).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and key != 'self'
    }
    assert set(READ) & set(own) == set(scheduler_files.EVERY) | set(scheduler_files.CLASSES[name]) & set(READ)
    for key in set(READ) & set(own):
        assert scheduler_files.read({'_class_name': name})[key] == own[key], key
    rest = set(own) - set(READ)
    assert rest <= set(scheduler_files.LEFT) | set(scheduler_files.FIXED), rest
    for key, (values, classes) in scheduler_files.FIXED.items():
        if key in own:
            assert name in classes and own[key] in values, key
    assert scheduler_files.left_to_the_user({key: own[key] for key in own}) == []
    schedules.from_config(json.loads(json.dumps({'_class_name': name} | own)))


@pytest.mark.parametrize('name', sorted(scheduler_files.CLASSES))
def test_a_field_of_another_class_means_nothing(name):
    """Each field that the class lacks, alone and with an unusual value, leaves the schedule as it is."""
    import jax

    unusual = dict(timestep_spacing='trailing', steps_offset=3, set_alpha_to_one=False, clip_sample=True, thresholding=True)
    unusual |= dict(rescale_betas_zero_snr=True, clip_sample_range=2.0, dynamic_thresholding_ratio=0.5, sample_max_value=9.0)
    plain = {'_class_name': name, 'prediction_type': 'v_prediction'}
    for key, value in unusual.items():
        one, other = schedules.from_config(plain), schedules.from_config(plain | {key: value})
        same = jax.tree.structure(one) == jax.tree.structure(other) and np.array_equal(one.alpha_bar, other.alpha_bar)
        switched = key in ('clip_sample_range', 'dynamic_thresholding_ratio', 'sample_max_value')  # read only if clipping is on
        assert same == (key not in scheduler_files.CLASSES[name] or switched and not _clips(one, key)) or _usual(
            name, key, value
        ), key


def _clips(schedule, key) -> bool:
    return schedule.clip is not None if key == 'clip_sample_range' else schedule.threshold is not None


def _usual(name, key, value) -> bool:
    return scheduler_files.CLASSES[name].get(key) == value


def test_a_file_of_another_origin_is_read_as_its_class_reads_it():
    made = schedules.from_config(XL)
    assert (made.alpha_to_one, made.clip, made.threshold, made.steps_offset, made.aligned) == (True, None, None, 1, True)
    ddim = schedules.from_config(XL | {'_class_name': 'DDIMScheduler'})
    assert (ddim.alpha_to_one, ddim.clip, ddim.threshold, ddim.aligned) == (False, 1.0, (0.995, 1.0), False)
    chosen = XL | {'use_karras_sigmas': True, 'algorithm_type': 'sde-dpmsolver++', 'solver_order': 3}
    assert scheduler_files.left_to_the_user(chosen) == [
        'solver_order=3',
        "algorithm_type='sde-dpmsolver++'",
        'use_karras_sigmas=True',
    ]


@pytest.mark.parametrize(
    ('name', 'field', 'value', 'says'),
    [
        ('DDIMScheduler', 'prediction_typ', 'v_prediction', "unknown field 'prediction_typ'. Did you mean 'prediction_type'?"),
        ('DDIMScheduler', 'snr_shift_scale', 3.0, "unknown field 'snr_shift_scale'"),  # CogVideoX's
        ('DDIMScheduler', 'predict_epsilon', False, 'predict_epsilon False in the scheduler file is another computation'),
        ('UniPCMultistepScheduler', 'use_flow_sigmas', True, 't3d implements False'),
        ('DPMSolverMultistepScheduler', 'final_sigmas_type', 'sigma_min', "t3d implements 'zero'"),
        ('DPMSolverMultistepScheduler', 'lambda_min_clipped', -5.1, 't3d implements -inf'),
        ('EulerDiscreteScheduler', 'timestep_type', 'continuous', "t3d implements 'discrete'"),
        ('DDPMScheduler', 'variance_type', 'learned_range', "variance_type 'learned_range'"),
        ('DDIMScheduler', 'num_train_timesteps', 10**12, 'wanted a whole number from 2 to 100000'),
        ('DDIMScheduler', 'num_train_timesteps', '1000', 'wanted a whole number'),
        ('DDIMScheduler', 'beta_start', None, 'wanted a number above 0 and below 1'),
        ('DDIMScheduler', 'beta_end', float('nan'), 'wanted a number above 0 and below 1'),
        ('DDIMScheduler', 'steps_offset', 1.5, 'wanted a whole number from 0 to 999'),
        ('DDIMScheduler', 'clip_sample', 'no', 'wanted true or false'),
        ('DDIMScheduler', 'trained_betas', [0.1, 'x'], 'trained_betas in the scheduler file'),
        ('DDIMScheduler', 'trained_betas', [0.1, 1.0], 'zero-terminal-SNR schedule with prediction'),
        ('DDIMScheduler', 'trained_betas', [0.1, 0.0], 'each must lie in'),
        ('DDIMScheduler', 'prediction_type', ['epsilon'], "prediction_type ['epsilon'] in the scheduler file is not known"),
        ('DDIMScheduler', '_class_name', ['DDIMScheduler'], 'is not known. Known: DDIM'),
    ],
)
def test_what_would_change_the_computation_is_refused_by_name(name, field, value, says):
    with pytest.raises(UsageError) as error:
        schedules.from_config({'_class_name': name} | {field: value})
    assert says in str(error.value)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.sampled_from(['epsilon', 'v_prediction', 'linear', 'squaredcos_cap_v2', 'trailing', '', 'zero', 'learned']),
    st.lists(st.floats(-1, 2), max_size=4),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)
FIELDS = st.sampled_from([*READ, *scheduler_files.FIXED, *scheduler_files.LEFT, 'other', '_private'])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(scheduler_files.CLASSES)), st.dictionaries(FIELDS, VALUES, max_size=4))
def test_any_file_is_read_or_refused_in_one_sentence(name, fields):
    try:
        table = np.asarray(schedules.from_config({'_class_name': name} | fields).alpha_bar)
    except UsageError as error:
        assert len(str(error)) < 600
    else:
        assert np.isfinite(table).all() and len(table) <= scheduler_files.MOST_TIMES
