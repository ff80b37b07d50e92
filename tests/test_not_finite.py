"""Numbers of a given model that are not finite: single ones count as 0 and are counted; many, or some for ever, end the run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_loop
from closed_priors import pictures
from dummy_system import make

from t3d.core import prng, system
from t3d.core.errors import NonFinite
from t3d.diffusion import guide
from t3d.diffusion.guide import Options
from t3d.geom import camera_draws
from t3d.train import window


def spoilt(count):
    """A prior of pictures that answers NaN for so many numbers of each picture."""
    plain = pictures()

    def predict(params, x, t, features):
        out = plain.functions.predict(params, x, t, features)
        return jnp.where(jnp.arange(out[0].size).reshape(out.shape[1:]) < count, jnp.nan, out)

    return plain._replace(functions=plain.functions._replace(predict=predict))


@pytest.mark.parametrize(('count', 'stops'), ((0, False), (1, False), (4, True)))
def test_single_nans_of_a_prior_are_left_out_and_counted_and_many_are_shown_as_nan(count, stops):
    """Of the 192 numbers of a picture: one is .5 %, four are 2 %."""
    prior, images = spoilt(count), jax.random.uniform(prng.key(4), (1, 2, 8, 8, 3))
    made, keys = guide.make(prior.functions, Options(scale=3.0)), jax.random.split(prng.key(1), 1)
    drawn = jax.vmap(lambda key: camera_draws.draw(key, 2, camera_draws.Ranges()))(keys)

    def loss(images):
        told = made.guide(prior.params, made.tokens(['red cube']), images, drawn, keys, 0)
        return told.loss, told.metrics

    gradient, metrics = jax.grad(loss, has_aux=True)(images)
    gradient = np.asarray(gradient).reshape(2, -1)
    assert np.isfinite(gradient).all() and (gradient[:, :count] == 0.0).all() and (gradient[:, count:] != 0.0).all()
    np.testing.assert_allclose(metrics['distill/not_finite'], count / 192, rtol=1e-6)
    assert np.isnan(guide.surprise(metrics)) == stops


def spoiling(shares):
    """The dummy that says of step n that shares[n - 1] of a prior's numbers were not finite."""
    plain, table = make(), jnp.asarray(shares, jnp.float32)

    def train_step(state, batch, key, given):
        after, metrics = plain.train_step(state, batch, key)
        return after, {**metrics, 'distill/not_finite': table[state.step]}

    return plain._replace(train_step=train_step)


def test_a_run_says_what_was_left_out_counts_it_and_stops_when_it_does_not_end(tmp_path, monkeypatch):
    monkeypatch.setattr(system, 'STEPS_NOT_FINITE', 3)
    lines = []
    few = spoiling([0.0, 0.005, 0.0025, 0.0, 0.005, 0.005])
    test_loop.run(tmp_path / 'few', steps=6, system=few, log=lines.append, log_every=2)
    notes = [line for line in lines if line.startswith('note: ')]
    assert len(notes) == 1 and '0.5 % of the numbers of distill at step 2 are not finite and count as 0' in notes[0]
    records = [json.loads(line) for line in (tmp_path / 'few' / 'metrics.jsonl').read_text().splitlines()]
    records = [record for record in records if 'loss' in record]
    assert [record.get('distill/not_finite_steps') for record in records] == [1.0, 2.0, 4.0]
    np.testing.assert_allclose([record['distill/not_finite'] for record in records], [0.0025, 0.00125, 0.005])
    assert sum('distill/not_finite 0.' in line for line in lines) == 3
    for shares, message in (
        ([0.0, 0.005, 0.005, 0.005], '0.5 % of the numbers of distill at step 4 .*some in 3 steps in a row; 3 steps had some'),
        ([0.005, 0.0, 0.25, 0.0], '25 % of the numbers of distill at step 3 .*more than 1% of a step; 2 steps had some'),
    ):
        with pytest.raises(NonFinite, match=f'{message}.*weights check.*learning_rate'):
            test_loop.run(tmp_path / f'{len(message)}', steps=4, system=spoiling(shares))


def test_a_clean_run_says_nothing():
    zeroed = window.Zeroed()
    for step in range(300):
        zeroed.take(step, {'loss': 1.0, 'distill/not_finite': 0.0}, None, None)
    assert zeroed.counts() == {}
