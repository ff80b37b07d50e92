"""What a plan's steps cost: the arithmetic by hand, several train steps, what is not known, and what is refused."""

import json
import pathlib

import pytest
from small_cli import alone, refusal, said  # noqa: F401

from t3d.core.errors import UsageError
from t3d.plan import costs

STEP = {'model_flops': 1.97e15, 'roofline': {'least_seconds': 0.5, 'most_seconds': 0.9}}


def planned(*steps, topology='v5e:4x4', **other):
    programs = {f'step{k}': step for k, step in enumerate(steps)}
    head = {'config': 'configs/instant3d.py:tiny', 'overrides': ['steps=7200', 'batch=64'], 'topology': topology, 'devices': 16}
    return {**head, 'mesh': {'data': 16, 'fsdp': 1, 'tensor': 1}, 'batch': 64, 'programs': programs, **other}


def test_chip_hours_and_dollars_by_hand():
    plan = planned(STEP)
    took = costs.times(plan, 0.5)
    assert took.least == 0.5 and took.most == 0.9
    assert took.guessed == pytest.approx(1.97e15 / (16 * 197e12 * 0.5))  # 1.25 s: twice the time at the peak
    assert costs.chip_hours(plan, 0.9, 1000) == pytest.approx(16 * 0.9 * 1000 / 3600)  # 4 hours
    text = '\n'.join(costs.text(plan, 2.5, 7200, 0.5))
    assert 'at 2.5 dollars for a chip-hour (your price) on 16 chips' in text
    assert '500.00 ms a step, 2.22 chip-hours, 5.56 dollars for 1,000 steps; 16, 40 dollars for all 7,200' in text
    assert 'nothing overlaps: 900.00 ms a step, 4 chip-hours, 10 dollars for 1,000 steps; 28.8, 72 dollars' in text
    assert 'MFU of 50% (your guess): 1250.00 ms a step, 5.56 chip-hours, 13.9 dollars' in text
    assert 'beyond the bound' not in text and 'no forecast' in text


def test_a_guess_beyond_the_bound_is_said():
    text = '\n'.join(costs.text(planned({**STEP, 'roofline': {'least_seconds': 1.0, 'most_seconds': 2.0}}), 1.0, None, 0.9))
    assert 'your guess is beyond the bound: the MFU is at most 62%' in text and 'for all' not in text  # 0.625 s at the peak


def test_of_several_steps_the_bound_is_from_the_quickest_to_the_slowest():
    other = {'model_flops': 4e15, 'roofline': {'least_seconds': 0.7, 'most_seconds': 1.6}}
    for steps in ((STEP, other), (other, STEP)):
        took = costs.times(planned(*steps), 1.0)
        assert (took.least, took.most) == (0.5, 1.6) and took.guessed == pytest.approx(4e15 / (16 * 197e12))
    assert costs.times(planned(STEP, {'model_flops': 1e15, 'overflow': {}})) == (None, None, None)


def test_without_a_bound_the_guess_alone_is_priced():
    text = '\n'.join(costs.text(planned({'model_flops': 1.97e15}, fits=None), 1.0, 10, 0.5))
    assert 'no bound: times are not known without libtpu' in text and '1250.00 ms' in text and 'at least' not in text
    assert 'no bound: it does not fit' in '\n'.join(
        costs.text(planned({'model_flops': 1.0, 'overflow': {}}, fits=False), 1.0, 1)
    )


def test_prices_of_chips():
    assert costs.prices(['1.5']) == {'': 1.5} and costs.prices(['v5e=1', 'v6e=2.5']) == {'v5e': 1.0, 'v6e': 2.5}
    assert costs.price_of(planned(), {'v5e': 2.0}) == 2.0 and costs.price_of(planned(), {'v6e': 2.0}) is None
    assert costs.price_of(planned(), {'': 3.0, 'v6e': 2.0}) == 3.0
    for words, says in (
        (['v5x=1'], "Did you mean 'v5"),
        (['cheap'], '--price cheap: wanted dollars'),
        (['-1'], 'wanted a number from 0'),
        (['nan'], '--price'),
        (['v5e=1', 'v5e=2'], 'v5e has a price already'),
    ):
        with pytest.raises(UsageError, match=says):
            costs.prices(words)


def test_a_table_of_plans_that_were_made(capsys):
    plans = [planned(STEP), planned({'model_flops': 1e15}, topology='v5p:2x2x4')]
    pathlib.Path('plans.jsonl').write_text('\n'.join(json.dumps(plan) for plan in plans) + '\n')
    lines = said(capsys, 'plan', '--costs', 'plans.jsonl', '--price', 'v5e=2.5', '--mfu', '0.5').splitlines()
    cells = [cell.strip() for cell in lines[2].strip('|').split('|')]
    assert cells[:4] == ['`configs/instant3d.py:tiny steps=7200`', 'v5e:4x4', 'data=16', '64']
    assert cells[4:] == ['500 / 900 / 1,250', '2.22 / 4 / 5.56', '5.56 / 10 / 13.9', '7,200', '40 / 72 / 100']
    by_hand = 1e15 / (16 * 459e12 * 0.5)
    assert f'| - / - / {1e3 * by_hand:.0f} | - / - / {16 * by_hand / 3.6:.2f} | no price | 7,200 | no price |' in lines[3]
    assert lines[4].startswith('Bounds, no forecast')
    pathlib.Path('one.json').write_text(json.dumps(plans[0], indent=1))
    assert len(said(capsys, 'plan', '--costs', 'one.json', '--price', '1').splitlines()) == 4


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        (['--costs', 'none.jsonl', '--price', '1'], 'none.jsonl cannot be read (FileNotFoundError): give what'),
        (['--costs', 'other.json', '--price', '1'], 'holds something that is no plan'),
        (['--costs', 'empty.jsonl', '--price', '1'], 'holds no plan'),
        (['--costs', 'nobody.json', '--price', '1'], 'holds something that is no plan'),
        (['--costs', 'other.json'], 'give --price DOLLARS'),
        (['--costs', 'other.json', '--price', '1', '--mesh', 'data=4'], 'leave config, --topology'),
        (['--mfu', '0.4', '--config', 'instant3d:tiny'], 'is for costs: give --price'),
        (['--mfu', '40', '--price', '1', '--costs', 'x'], '--mfu 40.0: wanted a number from 0.001 to 1'),
    ],
)
def test_what_has_no_cost_is_refused(capsys, words, says):
    pathlib.Path('other.json').write_text('{"programs": {}}')
    pathlib.Path('empty.jsonl').write_text('')
    pathlib.Path('nobody.json').write_text(json.dumps(planned(STEP, devices=0)))
    assert says in refusal(capsys, 'plan', *words)


def test_a_plan_says_its_cost(capsys, monkeypatch):
    from t3d.plan import chips, planner

    monkeypatch.setattr(chips, 'prepare', lambda topology: None)
    monkeypatch.setattr(planner, 'make', lambda *args, **kwargs: planned(STEP, fits=True) | REST)
    words = ('plan', 'instant3d:tiny', 'steps=3600', '--topology', 'v5e:4x4', '--mesh', 'data=16')
    assert '2.22 chip-hours, 4.44 dollars for 1,000 steps; 8, 16 dollars for all 3,600' in said(capsys, *words, '--price', '2')
    assert 'none is for a chip of v5e:4x4' in refusal(capsys, *words, '--price', 'v6e=2')
    assert 'make the table, then' in refusal(capsys, *words, '--price', '2', '--table', 'x.md')
    assert 'none is for a chip of cpu:8' in refusal(capsys, *words[:4], 'cpu:8', '--mesh', 'data=8', '--price', '2')


REST = {'system': 's', 'variant': 'v', 'dtype': 'd', 'compiler': 'c', 'parameters': {'p': 1}, 'given_parameters': {}}
REST |= {'bytes': {'params': 1}, 'state_bytes': 1, 'undivided': {'arrays': 0}, 'hbm_bytes': None}
