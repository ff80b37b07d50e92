"""Six systems of at most sixty lines that nothing in t3d knows: each trains or samples, resumes, generates and exports.

They stand for a population of prompts, joint sampling of two priors, coarse to fine, a second network in `extras`, splats of a
fixed capacity, and a system that reads an image. They are reached by the ordinary commands, named by their modules alone.
"""

import contextlib
import json
import pathlib
import sys

import jax
import numpy as np
import pytest
import random_weights
from PIL import Image

from t3d import cli, systems
from t3d.checkpoint import store as stores
from t3d.checkpoint import weights
from t3d.core import config as configs
from t3d.train import loop

HERE = pathlib.Path(__file__).parent
FOLDER = HERE / 'throwaway'
ALONE = ('mesh.data=1',)  # the suite has eight devices; `many` below uses them


@pytest.fixture(scope='module')
def prior(tmp_path_factory):
    """A weights folder of a text-to-image model of 8 x 8 pixels."""
    from configs import image_diffusion

    config = image_diffusion.tiny()
    config.text.update(words=('a', 'red', 'cube'), width=16)
    config.unet.update(block_out_channels=(16,), cross_attention_dim=16, attention_levels=(True,))
    config.data.size = 8
    system = systems.make(config.lock())
    shapes = jax.eval_shape(system.init, jax.random.key(0), system.batch_spec).params
    folder = tmp_path_factory.mktemp('prior') / 'prior'
    weights.save(folder, random_weights.drawn(shapes, 0.2), config)
    return folder


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(HERE))


def t3d(*words: str) -> None:
    assert cli.main([str(word) for word in words]) == 0


def train(name: str, workdir, *words) -> pathlib.Path:
    t3d('train', FOLDER / f'{name}.py', *ALONE, *words, '--workdir', workdir)
    return pathlib.Path(workdir)


def final(workdir) -> dict:
    """The weights and the leaves of the newest checkpoint."""
    store = stores.Store(workdir / 'checkpoints', read_only=True)
    try:
        assert store.latest() == 4
        return {'leaves': store.describe()[0]['leaves'], 'weights': jax.device_get(store.restore_weights())}
    finally:
        store.close()


def resumes(name: str, *words) -> pathlib.Path:
    """Trains whole and in two parts; both end with the same bits in every leaf of the state."""
    whole = train(name, 'whole', *words)
    train(name, 'parts', *words, '--stop-after', '2')
    parts = train(name, 'parts', *words)
    a, b = final(whole), final(parts)
    assert a['leaves'] == b['leaves']  # digests of all of them
    jax.tree.map(np.testing.assert_array_equal, a['weights'], b['weights'])
    return whole


def test_each_is_at_most_sixty_lines_and_no_name_of_theirs_is_in_the_package():
    names = sorted(path.stem for path in FOLDER.glob('*.py') if path.stem not in ('__init__', 'judge'))
    assert names == ['fine', 'guided', 'particles', 'pictured', 'population', 'splats']
    for name in names:
        assert len((FOLDER / f'{name}.py').read_text().splitlines()) <= 60, name
        assert not any(f'throwaway.{name}' in path.read_text() for path in (HERE.parent / 't3d').rglob('*.py'))


def test_a_population_of_prompts_without_data_and_the_mesh_that_begins_where_it_ended(prior):
    run = resumes('population', f'given.prior={prior}')
    assert {name.split('/')[0] for name in final(run)['leaves']} == {'step', 'params', 'opt_state'}  # no prior, no average
    t3d('generate', 'a cube', '--run', run, '--out', 'out', '--grid', '16', '--faces', '64', '--texture', '0', '--frames', '0')
    assert {'mesh.glb', 'sheet.png', 'report.html'} <= {path.name for path in pathlib.Path('out').iterdir()}
    assert cli.main(['generate', 'a cone', '--run', str(run)]) == 2  # a prompt that was not trained
    many = train('population', 'many', f'given.prior={prior}', 'mesh.data=2')
    for a, b in zip(jax.tree.leaves(final(run)['weights']), jax.tree.leaves(final(many)['weights'])):
        np.testing.assert_allclose(a, b, atol=1e-5)
    fine = resumes_fine(run)
    t3d('generate', 'a cube', '--run', fine, '--out', 'fine_out', '--format', 'glb', 'stl')
    assert {'mesh.glb', 'mesh.stl', 'sheet.png', 'report.html'} <= {path.name for path in pathlib.Path('fine_out').iterdir()}


def test_generate_trains_a_system_of_prompts_and_goes_on_where_it_was_interrupted(prior, monkeypatch, capsys):
    pathlib.Path('configs').mkdir()
    source = (FOLDER / 'population.py').read_text().replace("'throwaway.population'", "'population'")
    pathlib.Path('configs/population.py').write_text(source.replace('def get_config():', "def get_config(variant='tiny'):"))
    monkeypatch.setitem(systems.SYSTEMS, 'population', 'throwaway.population')
    words = ('generate', 'a cube', '--given', f'prior={prior}', '--out', 'out')
    words = (*words, '--grid', '16', '--texture', '0', '--frames', '0')
    t3d(*words, '--system', 'population', '--dry-run')
    assert 'would be trained 4 steps in out/run' in capsys.readouterr().out and not pathlib.Path('out').exists()
    real = loop.run
    monkeypatch.setattr(loop, 'run', lambda *args, **options: real(*args, stop_after=2, **options))
    assert cli.main([*words, '--system', 'population']) == 2
    assert 'stopped at step 2 of 4: the same command goes on from there' in capsys.readouterr().err
    monkeypatch.setattr(loop, 'run', real)
    t3d(*words, '--system', 'population')
    assert 'resuming from step 2' in capsys.readouterr().out and pathlib.Path('out/mesh.glb').exists()
    for wrong, message in (
        (('generate', 'a', *words[2:], '--config', 'configs/population.py'), "out/run was trained for 'a cube', seed 0: give"),
        (
            (*words, '--config', 'configs/population.py', '--seeds', '3'),
            "out/run was trained for 'a cube', seed 0: give another",
        ),
        ((*words, '--config', 'configs/population.py', '--seeds', '0-1'), 'is trained for each seed: give one'),
        (('generate', '--config', 'configs/population.py', '--out', 'x'), 'is trained for each prompt: give one in quotes'),
        (('generate', 'a', '--config', 'configs/population.py', '--given', 'x=y', '--out', 'x'), 'has prior alone'),
        (('generate', 'a', '--config', 'configs/population.py', '--image', 'x.png', '--out', 'x'), 'is trained for prompts'),
    ):
        assert cli.main(list(wrong)) == 2
        assert message in capsys.readouterr().err
    assert not pathlib.Path('x').exists()


def resumes_fine(coarse) -> pathlib.Path:
    fine = train('fine', 'fine', f'given.coarse={coarse}')
    train('fine', 'fine_parts', f'given.coarse={coarse}', '--stop-after', '2')
    assert final(train('fine', 'fine_parts', f'given.coarse={coarse}'))['leaves'] == final(fine)['leaves']
    assert (fine / 'given' / 'coarse' / 'model.safetensors').exists() and (fine / 'previews').exists()
    return fine


def test_two_priors_sampled_together_need_no_run(prior):
    words = (f'one={prior}', f'other={prior}')
    t3d('generate', 'a red cube', '--config', FOLDER / 'guided.py', '--given', *words, '--seeds', '0-1', '--out', 'out')
    folder = pathlib.Path('out/a_red_cube-1')
    assert {path.name for path in folder.iterdir()} == {'views', 'cameras.json', 'sheet.png', 'report.html'}
    assert len(list((folder / 'views').glob('*.png'))) == len(json.loads((folder / 'cameras.json').read_text())['frames']) == 3
    first, second = (np.asarray(Image.open(f'out/a_red_cube-{seed}/views/000.png')) for seed in (0, 1))
    assert np.abs(first.astype(int) - second).max() > 0
    assert cli.main(['train', str(FOLDER / 'guided.py'), *(f'given.{word}' for word in words)]) == 2  # nothing to train
    assert not pathlib.Path('runs').exists()


def test_a_second_network_in_extras_is_trained_and_not_shared():
    run = resumes('particles')
    assert {'extras', 'params'} <= {name.split('/')[0] for name in final(run)['leaves']}
    assert set(final(run)['weights']) == {'pictures'}
    t3d('weights', run, 'shared')
    assert set(weights.load('shared')[0]) == {'pictures'}
    t3d('generate', 'a thing', '--weights', 'shared', '--out', 'out')
    assert [path.name for path in pathlib.Path('out').iterdir()] == ['image.png']


def test_splats_of_a_fixed_capacity_are_written_where_they_are_alive(capsys):
    run = resumes('splats')
    weights = final(run)['weights']
    assert set(weights) == {'params', 'extras'} and 0 < weights['extras']['alive'].sum() < 16
    t3d('export', run, 'a red cube', '--out', 'out')
    head = pathlib.Path('out/splats.ply').read_bytes().split(b'end_header')[0].decode()
    assert f'element vertex {int(weights["extras"]["alive"].sum())}' in head and 'property float rot_3' in head
    assert json.loads((run / 'scores.json').read_text())['alive'] == weights['extras']['alive'].sum()  # by its own evaluator
    capsys.readouterr()
    assert cli.main(['export', str(run), 'a red cube', '--format', 'glb']) == 2
    assert "error: format 'glb': splats can be written as ply" in capsys.readouterr().err
    t3d('generate', 'a red cube', '--run', run, '--out', 'made')
    assert {path.name for path in pathlib.Path('made').iterdir()} == {'splats.ply', 'sheet.png', 'report.html'}


def test_a_system_that_reads_an_image(capsys):
    run = resumes('pictured')
    Image.new('RGBA', (8, 8), (200, 30, 30, 255)).save('red.png')
    t3d('generate', '--run', run, '--image', 'red.png', '--out', 'out')
    assert {path.name for path in pathlib.Path('out').iterdir()} == {'points.ply', 'sheet.png', 'report.html'}
    for words, message in (
        (('generate', 'a red cube', '--run', str(run)), "the prompt 'a red cube' was given, and throwaway.pictured makes"),
        (('generate', '--run', str(run), '--image', 'none.png'), '--image none.png: no such file'),
    ):
        capsys.readouterr()
        assert cli.main(list(words)) == 2
        assert message in capsys.readouterr().err
    assert cli.main(['generate', 'a red cube', '--system', 'instant3d', '--image', 'red.png', '--out', 'no']) == 2
    assert 'an image was given, and instant3d reads text alone' in capsys.readouterr().err


def test_a_folder_of_weights_cannot_name_code_that_it_holds(capsys, tmp_path):
    run = resumes('particles')
    t3d('weights', run, 'shared')
    saved = json.loads(pathlib.Path('shared/config.json').read_text())
    pathlib.Path('shared/evil.py').write_text("open('ran', 'w').write('x')\n" + (FOLDER / 'particles.py').read_text())
    for name, here in (('shared.evil', tmp_path), ('evil', tmp_path / 'shared')):
        pathlib.Path('shared/config.json').write_text(json.dumps({**saved, 'system': name}))
        with contextlib.chdir(here):
            assert cli.main(['generate', 'a thing', '--weights', str(tmp_path / 'shared'), '--out', str(tmp_path / 'o')]) == 2
        assert f'names a module of its own, {name}, in its config' in capsys.readouterr().err
    assert not list(tmp_path.rglob('ran')) and not {'shared.evil', 'evil'} & set(sys.modules)


def test_modules_that_are_not_there_or_lack_what_is_wanted(capsys, tmp_path):
    (tmp_path / 'broken_system.py').write_text('def make(:\n')
    for system, message in (
        ('instnat3d', "unknown system 'instnat3d'"),
        ('no_package.nothing', "system 'no_package.nothing': no module 'no_package'"),
        ('throwaway.judge', "system 'throwaway.judge': the module has no function `make`"),
        ('..', "unknown system '..'"),
        ('broken_system', r"system 'broken_system': .*broken_system.py, line 1: "),
    ):
        with pytest.raises(ValueError, match=message):
            systems.make(configs.from_dict({'system': system}))
    assert 'throwaway.judge' in sys.modules
