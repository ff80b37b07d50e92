"""Stage 2: configs that cannot work, its schedule, its averages, and the class of its generator."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_ganfusion_diffusion import config, generator, model

from t3d.core import optim
from t3d.core.errors import UsageError
from t3d.diffusion import schedules
from t3d.fields import triplane_generator
from t3d.systems import ganfusion_diffusion


@pytest.mark.parametrize(
    'overrides, message',
    [
        (('patch=4', 'diffusion.prediction=eps', 'unet.attention_levels=(False,True)'), 'do not pass a stem of 8'),
        (('patch=4', 'diffusion.prediction=v'), "wanted 'x0'"),
        (('sr_style=w',), 'makes planes and no w'),
        (('sr_style=ones',), 'choose one of unit, ones_w, w_avg'),
        (('sr_style=w_avg',), "trained with 'unit', and its upsampler has no layers that read a w: choose unit"),
        (('generator.sr_style=w',), "trained with 'w', and its upsampler reads a w: choose ones_w or w_avg"),
        (('layout=rollout_axis', 'render.plane_axes=legacy'), "plane_axes='orthogonal'"),
    ],
)
def test_what_cannot_work_is_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        of_generator = [word for word in overrides if word.startswith(('generator.', 'render.'))]
        own = [word for word in overrides if word not in of_generator]
        ganfusion_diffusion.Model(config(*own), generator(*of_generator))


def test_schedules_convert_between_what_networks_say():
    """x_0, v and eps of one x_t, there and back, on the shifted schedule."""
    rng, t = np.random.default_rng(0), np.array([0, 7, 31, 49])
    clean, noise = (rng.standard_normal((4, 3, 2, 2, 2)).astype(np.float32) for _ in range(2))
    for prediction in ('x0', 'v', 'eps'):
        schedule = ganfusion_diffusion.make_schedule(config(f'diffusion.prediction={prediction}').diffusion)
        x = schedules.q_sample(schedule, clean, t, noise)
        output = schedules.from_x0(schedule, clean, x, t)
        np.testing.assert_allclose(schedules.to_x0(schedule, output, x, t), clean, atol=1e-5)
        np.testing.assert_allclose(schedules.to_eps(schedule, output, x, t), noise, atol=1e-4)


def test_averages_follow_the_young_network_closely():
    decay = [float(optim.ema_decay(jnp.int32(step), 0.999)) for step in (0, 1, 90, 10_000)]
    np.testing.assert_allclose(decay, [0.1, 2 / 11, 0.91, 0.999], rtol=1e-6)


def test_the_generator_of_stage_one_is_the_same_class():
    assert isinstance(model().generator, triplane_generator.Generator) and model().shape == (3, 8, 8, 4)
