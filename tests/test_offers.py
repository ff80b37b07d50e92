"""What is offered in place of a given model that is not there: names of its kind, the nearest, the next step."""

import json
import re

import pytest

from t3d import systems
from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.inference import loading

PRIORS = ('toy', 'toy:SIZE', 'toy_marked', 'toy_patterns', 'image_diffusion-toy')
NEVER = ('instant3d-scenes', 'instant3d-furniture', 'ganfusion_diffusion-toy')  # weights of systems that are given to none


def refused(spec: str, name: str, value: str) -> str:
    with pytest.raises(FileNotFoundError) as error:
        loading.open_given(configs.load(spec), None, {name: value})
    text = str(error.value)
    assert text.startswith(f'given.{name}={value!r}: {value} ') and not any(word in text for word in NEVER)
    return text


def listed(text: str) -> list[str]:
    return re.search(r'Wanted ([^;.]*)', text)[1].split(', ')


@pytest.mark.parametrize(
    ('value', 'near'),
    (('sdxl', ''), ('toyy', 'toy'), ('toy_mark', 'toy_marked'), ('toy_pattern', 'toy_patterns')),
)
def test_an_unknown_prior_names_priors_the_nearest_and_folders(value, near):
    text = refused('configs/dreamfusion.py:tiny', 'prior', value)
    assert 'is no folder, and no model has this name.' in text and (f'Did you mean {near}?' in text) == bool(near)
    assert listed(text) == [*PRIORS, 'mvdiffusion-toy'] and 'a Stable Diffusion folder of yours' in text
    assert 'a run or weights folder of image_diffusion or mvdiffusion' in text
    assert text.endswith(f'For example: given.prior={near or "toy"}.')


@pytest.mark.parametrize(
    ('spec', 'name', 'names', 'folder'),
    (
        ('configs/mvdiffusion.py:tiny', 'prior', ['image_diffusion-toy'], 'a Stable Diffusion folder'),
        ('configs/mvdiffusion.py:tiny', 'clip', ['toy_clip', 'toy_clip:SIZE', 'judge'], 'a CLIP folder of yours'),
        ('configs/instant3d.py:sds', 'clip', ['toy_clip', 'toy_clip:SIZE', 'judge'], 'a CLIP folder of yours'),
        ('configs/guided_mv.py:tiny', 'views', ['mvdiffusion-toy'], 'a run or weights folder of mvdiffusion'),
        ('configs/guided_mv.py:tiny', 'pictures', list(PRIORS), 'a Stable Diffusion folder'),
        ('configs/ganfusion_diffusion.py:tiny', 'generator', ['ganfusion_gan-toy'], 'a run or weights folder of ganfusion_gan'),
    ),
)
def test_every_given_names_its_own_kind(spec, name, names, folder):
    text = refused(spec, name, 'nothing-like-it')
    assert listed(text) == names and folder in text and f'given.{name}={names[0]}' in text
    assert set(systems.module(configs.load(spec).system).TAKES) == set(configs.load(spec).given)


def test_runs_of_the_kind_are_near_and_a_folder_of_something_else_holds_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, system in (('0001-pictures', 'image_diffusion'), ('0002-objects', 'instant3d')):
        (tmp_path / 'runs' / name / 'checkpoints').mkdir(parents=True)
        (tmp_path / 'runs' / name / 'config.json').write_text(json.dumps({'system': system}))
    config = configs.load('configs/dreamfusion.py:tiny')
    near = lambda value: loading.open_given(config, None, {'prior': value})
    with pytest.raises(FileNotFoundError, match='Did you mean runs/0001-pictures?'):
        near('runs/0001-picture')
    with pytest.raises(FileNotFoundError, match='The newest run of that kind here: runs/0001-pictures[.]'):
        near('sdxl')
    (tmp_path / 'photographs').mkdir()
    with pytest.raises(FileNotFoundError, match='photographs holds no model[.].* Wanted toy, '):
        near('photographs')
    with pytest.raises(FileNotFoundError, match='no checkpoint found in'):  # a folder of a run says what it lacks
        near('runs/0001-pictures')


def test_a_multi_view_model_cannot_start_from_a_prior_in_closed_form():
    config = configs.load('configs/mvdiffusion.py:tiny', ['given.prior=toy:8', 'text.words=("a","red","cube")'])
    with pytest.raises(UsageError, match="given.prior='toy:8' has no UNet to start from: wanted .*toy"):
        systems.make(config, loading.open_given(config))
