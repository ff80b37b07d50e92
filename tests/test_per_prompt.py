"""`t3d generate` of a system that is trained for its prompts: interrupted and gone on with; and what the same --out refuses."""

import shutil

import pytest
import test_dreamfusion
from small_cli import alone, refusal, said  # noqa: F401

from t3d import systems
from t3d.commands import outputs
from t3d.core import config as configs
from t3d.core.outputs import Request
from t3d.inference import loading, publish
from t3d.train import loop

PROMPTS = ('a red cube', 'a blue cone')
SMALL = (*test_dreamfusion.SMALL, 'occupancy.cells=0')
CONFIG = """from t3d.core import config


def get_config(variant=''):
    return config.load('configs/dreamfusion.py:tiny', {!r})
"""


@pytest.fixture(scope='module')
def interrupted(tmp_path_factory):
    """An --out after two of four steps, whose prior was toy:8."""
    out = tmp_path_factory.mktemp('per_prompt') / 'out'
    config = configs.load('configs/dreamfusion.py:tiny', [*SMALL, f'prompts={PROMPTS!r}', 'given.prior=toy:8'])
    loop.run(config, out / 'run', stop_after=2, log=lambda line: None)
    return out


@pytest.fixture(autouse=True)
def folder(alone, interrupted, tmp_path):  # noqa: F811
    shutil.copytree(interrupted, tmp_path / 'out')
    (tmp_path / 'few.py').write_text(CONFIG.format(list(SMALL)))
    (tmp_path / 'other.py').write_text(CONFIG.format([*SMALL, 'distill.scale=9.0']))
    (tmp_path / 'longer.py').write_text(CONFIG.format([*SMALL, 'steps=9']))


def words(*prompts, config='few.py', prior='toy:8', out='out'):
    return ['generate', *prompts, '--config', config, '--given', f'prior={prior}', '--out', out]


def test_the_same_command_goes_on_and_then_only_exports(monkeypatch, capsys):
    made = []
    monkeypatch.setattr(publish, 'assets', lambda loaded, requests, out, **options: made.append((loaded, requests)) or [])
    with monkeypatch.context() as patch:
        patch.setattr(loop, 'run', lambda config, folder, **options: folder)  # Ctrl-C at once
        assert 'stopped at step 2 of 4: the same command goes on from there.' in refusal(capsys, *words(*PROMPTS))
    assert 'resuming from step 2' in said(capsys, *words(*PROMPTS))
    assert 'nothing to do' in said(capsys, *words(*PROMPTS))
    said(capsys, 'generate', '--run', 'out/run', '--out', 'else')  # without prompts: those that the run has
    (first, _), _, (loaded, requests) = [*made]
    assert first.step == 4 and loaded.step == 4 and loaded.config.prompts == PROMPTS
    assert tuple(request.prompt for request in requests) == PROMPTS


@pytest.mark.parametrize(
    'given, message',
    [
        (
            words('a red cube', 'a red cone'),
            "was trained for 'a red cube' 'a blue cone', seed 0: give another --out, or these again.",
        ),
        (words('a blue cone'), 'seed 0: give another --out, or these again, or --run out/run for some of them.'),
        ([*words(*PROMPTS), '--seeds', '3'], 'give another --out, or these again.'),
        (words(*PROMPTS, prior='toy:9'), 'give another --out, or what it had (--given prior=toy:8).'),
        (words(*PROMPTS, config='other.py'), 'with distill.scale=4.0, not 9.0: give another --out, or the same config.'),
        (
            [*words(*PROMPTS), '--seeds', '1,2'],
            '--seeds 1,2: dreamfusion is trained for each seed: give one, and an --out for each.',
        ),
        ([*words(*PROMPTS), '--seeds', '1', '2'], 'the prompt "2" is a number: several seeds are one word, --seeds 1,2.'),
        (words('a red cube', 'a red cube', out='new'), "the same prompt twice, 'a red cube'"),
        (words('一个红色的立方体', out='new'), 'no pictures of "一个红色的立方体"'),
        (words(' ', out='new'), 'an empty prompt: give one in quotes, or --prompts FILE.'),
        (words(), 'trained for each prompt: give one in quotes, or --prompts FILE.'),
        (words(*PROMPTS, prior='configs/image_diffusion.py:tiny'), 'is a config, which has no weights'),
    ],
)
def test_what_would_be_another_object_or_none_is_refused(given, message, capsys):
    assert message in refusal(capsys, *given)


def test_more_steps_may_be_asked_for(capsys):
    assert 'would be trained 9 steps in out/run' in said(capsys, *words(*PROMPTS, config='longer.py'), '--dry-run')


def test_without_prompts_a_config_trains_those_that_it_exports():
    config = configs.load('configs/dreamfusion.py:tiny', [*SMALL, 'given.prior=toy:8'])
    assert outputs.prompts_of(config) == list(config.export.prompts)
    system = systems.make(config, loading.open_given(config))
    system.check([Request(prompt) for prompt in config.export.prompts])
