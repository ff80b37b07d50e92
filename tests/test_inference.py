"""From run folders and weights folders to assets."""

import functools
import json
import os
import shutil

import jax
import numpy as np
import pytest
import small_run

from t3d import systems
from t3d.checkpoint import weights
from t3d.commands import train
from t3d.core import tokens, tree
from t3d.core.errors import UsageError
from t3d.core.outputs import Request
from t3d.data.sets import oracle, shapes, toy
from t3d.evaluate import drawing, toy_objects
from t3d.geom import cameras
from t3d.inference import loading, publish

PROMPT = 'a red cube'


@pytest.fixture(autouse=True)
def no_weights_of_this_machine(monkeypatch):
    monkeypatch.delenv('T3D_WEIGHTS', raising=False)


def planes(loaded, prompts=(PROMPT,), seeds=(0,)):
    return [np.asarray(asset.scene['planes']) for _, asset in loading.generate(loaded, list(prompts), list(seeds))]


def test_a_run_folder_holds_all_that_inference_needs(tmp_path):
    loaded = small_run.loaded()
    assert (loaded.name, loaded.step, os.fspath(loaded.folder)) == ('small', 2, os.fspath(small_run.folder()))
    assert loaded.config == small_run.config() and loaded.config.is_locked
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == np.float32 for leaf in jax.tree.leaves(loaded.weights))
    bare = tmp_path / 'moved'
    shutil.copytree(small_run.folder() / 'checkpoints', bare / 'checkpoints')
    shutil.copy(small_run.folder() / 'config.json', bare)
    jax.tree.map(np.testing.assert_array_equal, loading.load(bare).weights, loaded.weights)


def test_shared_weights_give_the_bits_of_the_run(tmp_path):
    loaded = small_run.loaded()
    loading.save_weights(loaded, tmp_path / 'shared')
    written = {path.name for path in (tmp_path / 'shared').iterdir()}
    assert written - set(loading.COPIED_FILES) == {'config.json', 'model.safetensors'}
    again = loading.load(tmp_path / 'shared')
    assert (again.name, again.step, again.config) == ('shared', 2, loaded.config)
    for one, other in zip(planes(loaded, seeds=(0, 5)), planes(again, seeds=(0, 5)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('dtype, tolerance', [('float16', 2e-3), ('bfloat16', 2e-2)])
def test_half_precision_is_half_the_bytes_and_float32_in_memory(tmp_path, dtype, tolerance):
    loaded = small_run.loaded()
    loading.save_weights(loaded, tmp_path / 'half', dtype)
    size = os.path.getsize(tmp_path / 'half' / weights.FILE)
    assert 2 * tree.count(loaded.weights) <= size < 2 * tree.count(loaded.weights) + 200 * len(jax.tree.leaves(loaded.weights))
    again = loading.load(tmp_path / 'half')
    for name, leaf in tree.flatten(again.weights).items():
        whole = np.asarray(tree.flatten(loaded.weights)[name])
        assert leaf.dtype == np.float32 and leaf.shape == whole.shape, name
        np.testing.assert_allclose(leaf, whole, rtol=tolerance, atol=1e-6, err_msg=name)
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in planes(again))


def test_weights_are_found_by_name_by_variable_and_by_system(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, 'SHIPPED', tmp_path / 'assets')
    assert loading.shipped() == {}
    with pytest.raises(FileNotFoundError, match='no weights for any system come with t3d'):
        loading.load()
    names = ('instant3d-small', 'other-small')  # both of the system instant3d
    for name in names:
        loading.save_weights(small_run.loaded(), tmp_path / 'assets' / name)
    assert loading.shipped() == {name: tmp_path / 'assets' / name for name in names}
    assert loading.load().name == 'instant3d-small'
    assert loading.load(system='other-small').name == loading.load('other-small').name == 'other-small'
    with pytest.raises(FileNotFoundError, match=r'no weights for magic3d .*instant3d-small, other-small\)\. Train'):
        loading.load(system='magic3d')
    wholes = {'instant3d-smal': 'instant3d-small', 'other': 'other-small', 'instant3': 'instant3d', 'instant3d-': 'instant3d'}
    for part, whole in wholes.items():  # the beginning of a name is no name
        with pytest.raises(FileNotFoundError, match=rf'no weights for {part} .*\. Did you mean {whole}\? Train'):
            loading.load(system=part)
    with pytest.raises(FileNotFoundError, match='no weights for ganfusion .*Train .*configs/ganfusion_diffusion.py:tiny'):
        loading.load(system='ganfusion')
    monkeypatch.setitem(systems.SHORT, 'ganfusion', 'instant3d')
    assert loading.load(system='ganfusion').name == 'instant3d-small'
    monkeypatch.setenv('T3D_WEIGHTS', str(tmp_path / 'assets' / 'other-small'))
    assert loading.load().name == 'other-small'
    assert loading.load(system='instant3d').name == 'instant3d-small'  # asked for in words
    assert loading.load(small_run.folder()).name == 'small'  # what is given goes before the variable


def test_weights_of_another_model_are_refused(tmp_path):
    loading.save_weights(small_run.loaded()._replace(config=small_run.config('field.hidden=16')), tmp_path / 'other')
    with pytest.raises(UsageError, match='the weights in .*other do not fit the model of their config:\n  other shape: field/'):
        loading.load(tmp_path / 'other')


def test_the_same_seed_gives_the_same_asset_whatever_else_is_asked_for():
    loaded = small_run.loaded()
    alone = planes(loaded, ['a blue cone'], [3])[0]
    together = loading.generate(loaded, [PROMPT, 'a blue cone'], [0, 3])
    assert [(seed, asset.prompt) for seed, asset in together] == [
        (0, PROMPT),
        (0, 'a blue cone'),
        (3, PROMPT),
        (3, 'a blue cone'),
    ]
    np.testing.assert_array_equal(together[3][1].scene['planes'], alone)
    assert np.abs(together[1][1].scene['planes'] - alone).max() > 0.0


def test_a_bad_prompt_is_refused_before_the_good_ones_are_made():
    loaded = small_run.loaded()
    loaded = loaded._replace(system=loaded.system._replace(generate=None))
    for prompt, message in (('', 'empty prompt'), ('a corgi', '"corgi"'), ('a cube ' * 9, 'would be dropped')):
        with pytest.raises(UsageError, match=message):
            loading.generate(loaded, [PROMPT, prompt], [0])


README_PROMPTS = {  # megabytes at most, and prompts the README types
    'instant3d-scenes': (7, ['a red cone on top of a blue cube', 'a green cube', 'a small white sphere']),
    'instant3d-furniture': (9, ['a blue child chair', 'a sofa']),
    'image_diffusion-toy': (6, ['a red cube']),
    'mvdiffusion-toy': (6, ['a green cylinder']),
    'ganfusion_diffusion-toy': (10, ['a large red cube']),
    'ganfusion_gan-toy': (1, ['a name']),
}


@pytest.mark.parametrize('name', [*loading.shipped()])
def test_the_shipped_weights_are_small_and_read_the_prompts_of_the_readme(name, capsys):
    folder = loading.shipped()[name]
    most, prompts = README_PROMPTS[name]
    assert os.path.getsize(folder / weights.FILE) < most * 1e6
    loaded = loading.load(name)
    loaded.system.check([Request(prompt) for prompt in prompts])
    assert capsys.readouterr().err == ''
    assert loaded.step == loaded.config.steps and os.fspath(loaded.folder) == os.fspath(folder)


def test_words_that_an_open_vocabulary_never_met_are_named_once(capsys):
    tokens._say_once.cache_clear()
    for _ in range(2):  # before anything is made, and when it is
        tokens.check_prompts(loading.load('instant3d-furniture').config.text, ['a blue corgi', 'a sofa'])
    assert capsys.readouterr().err == 'note: words that this model never read are left out: corgi\n'


def test_the_default_weights_are_those_of_the_scenes():
    assert loading.load().name == loading.DEFAULT == 'instant3d-scenes'
    assert loading.load(system='instant3d-furniture').name == 'instant3d-furniture'
    assert loading.load(system='ganfusion').name == 'ganfusion_diffusion-toy'


RELATED = [name for name in loading.shipped() if name.endswith('scenes')]


@pytest.mark.parametrize('name', RELATED)
def test_the_shipped_weights_show_what_the_prompt_says(name):
    """The render is nearest to its own scene among those with colours, places or the relation exchanged."""
    loaded, cone, cube = loading.load(name), ('cone', 'red'), ('cube', 'blue')
    scenes = [
        shapes.pair(first, relation, second)
        for relation in shapes.RELATIONS
        for first, second in (
            (cone, cube),
            (cube, cone),
            (('cone', 'blue'), ('cube', 'red')),
            (('cube', 'red'), ('cone', 'blue')),
        )
    ]
    azimuth, elevation = toy_objects.AZIMUTH[:3], toy_objects.ELEVATION[:3]
    views = cameras.Cameras(*toy.camera_arrays(azimuth, elevation, shapes.RADIUS, shapes.FOV))
    asked = scenes[::4] + scenes[1::4]
    renders = drawing.render_views(loaded, [scene.captions[0] for scene in asked], views, 24, evaluator='test', batch=6)
    judge = oracle.Oracle(scenes, azimuth, elevation, 24)
    assert [scenes[index].captions[0] for index in judge.nearest(renders)] == [scene.captions[0] for scene in asked]


@pytest.mark.slow
@pytest.mark.parametrize('name', RELATED)
def test_the_shipped_weights_make_a_textured_mesh_upright_in_the_right_colours(name, tmp_path):
    import trimesh

    publish.assets(loading.load(name), ['a red cone on top of a blue cube'], tmp_path, log=lambda line: None, frames=2)
    mesh = trimesh.load(tmp_path / 'mesh.glb', force='mesh')
    assert mesh.visual.material.baseColorTexture.size == (512, 512)
    colours = np.asarray(mesh.visual.to_color().vertex_colors)[:, :3].astype(float)
    cone, cube = mesh.vertices[:, 1] > 0.1, mesh.vertices[:, 1] < -0.3
    assert cone.sum() > 50 and cube.sum() > 50
    red, blue = np.median(colours[cone], 0), np.median(colours[cube], 0)
    assert red[0] > red[2] + 60 and blue[2] > blue[0] + 60
    assert np.ptp(mesh.vertices[mesh.vertices[:, 1] > 0.5, 0]) < 0.5 * np.ptp(mesh.vertices[cube, 0])  # the tip is up


# -------------------------------------------------------------------------------------------------------------- publish


@pytest.mark.parametrize(
    'prompt, seed, name',
    [
        ('a red cube', None, 'a_red_cube'),
        ('A Red Cube!', 3, 'a_red_cube-3'),
        ('../..', None, 'asset'),
        ('éé', 0, 'éé-0'),
        ('e\u0301E\u0301', 0, 'éé-0'),
        ('Ein roter Würfel', None, 'ein_roter_würfel'),
        ('红色 立方体', None, '红色_立方体'),
        ('立' * 300, 2**32 - 1, '立' * 40 + '-4294967295'),
        ('?*[]{}$%\\:~#&\'"<>/\n\t\x1b', None, 'asset'),
        ('-rf', None, 'rf'),
        ('$(reboot) `x` {{sections}}', None, 'reboot_x_sections'),
        ('🐈', None, 'asset'),
        ('CON', None, 'con_'),
        ('.hidden', None, 'hidden'),
        ('a_b', None, 'a_b'),
        ('x' * 200, None, 'x' * 60),
    ],
)
def test_names_of_folders(prompt, seed, name):
    assert publish.name_of(prompt, seed) == name


def test_a_finished_run_gets_scores_and_assets(tmp_path):
    workdir, lines = small_run.folder(), []
    train.finish(workdir, [PROMPT, 'a blue cone'], log=lines.append)
    scores = json.loads((workdir / 'scores.json').read_text())
    assert scores['step'] == 2 and scores['held_out/n'] == 48 and scores['seen/n'] == 144
    assert scores['held_out/nearest'] < 0.3 and scores['held_out/psnr'] < 20.0  # two steps teach little
    assert any('held_out/psnr' in line for line in lines)
    for name in ('a_red_cube', 'a_blue_cone'):
        files = {path.name for path in (workdir / 'assets' / name).iterdir()}
        assert {'mesh.glb', 'turntable.mp4', 'sheet.png', 'cameras.json', 'report.html'} <= files
        assert f'open {workdir / "assets" / name / "report.html"}' in lines
    report = (workdir / 'assets' / 'a_red_cube' / 'report.html').read_text()
    assert PROMPT in report and 'instant3d tiny, small, step 2, seed 0' in report


def test_one_asset_fills_the_folder_and_equal_names_do_not_collide(tmp_path, monkeypatch):
    from t3d.export import assets as exporter

    written = []
    record = functools.wraps(exporter.write)(lambda asset, folder, **options: written.append((asset.prompt, folder, options)))
    monkeypatch.setattr(exporter, 'write', record)
    give = {'log': lambda line: None, 'frames': 0}
    assert publish.assets(small_run.loaded(), [PROMPT], tmp_path, **give) == [tmp_path]
    assert written[0][2]['frames'] == 0 and written[0][2]['grid'] == 24 and 'prompts' not in written[0][2]
    named = publish.assets(small_run.loaded(), [PROMPT, 'a red cube!', 'a red cube?'], tmp_path, **give)
    assert [folder.name for folder in named] == ['a_red_cube', 'a_red_cube_2', 'a_red_cube_3']
    folders = publish.assets(small_run.loaded(), [PROMPT, 'A red cube', 'A red, cube', PROMPT], tmp_path, seeds=(0, 1), **give)
    assert [folder.name for folder in folders] == [f'a_red_cube-{seed}{end}' for seed in (0, 1) for end in ('', '_2', '_3')]


def test_meshes_alone_and_turntables_alone(tmp_path):
    lines = []
    paths = publish.mesh_files(small_run.loaded(), [PROMPT], tmp_path / 'meshes', formats=('obj', 'stl'), log=lines.append)
    assert paths == [tmp_path / 'meshes' / 'mesh.obj', tmp_path / 'meshes' / 'mesh.stl']
    assert {path.name for path in (tmp_path / 'meshes').iterdir()} == {
        'mesh.obj',
        'mesh.mtl',
        'mesh.png',
        'mesh.stl',
        'mesh.json',
    }
    prompts = [PROMPT, 'a blue cone']
    paths = publish.turntables(small_run.loaded(), prompts, tmp_path / 'views', frames=3, log=lines.append)
    assert paths == [tmp_path / 'views' / name / 'turntable.mp4' for name in ('a_red_cube', 'a_blue_cone')]
    assert {path.name for path in paths[0].parent.iterdir()} == {'turntable.mp4', 'cameras.json'}
    assert len(json.loads((paths[0].parent / 'cameras.json').read_text())['frames']) == 3
    with pytest.raises(UsageError, match='0 frames: a turntable has at least 1'):
        publish.turntables(small_run.loaded(), [PROMPT], tmp_path, frames=0, log=lines.append)


def test_an_unfinished_run_is_left_alone(tmp_path):
    for name in ('checkpoints', 'config.json'):
        copy = shutil.copytree if (small_run.folder() / name).is_dir() else shutil.copy
        copy(small_run.folder() / name, tmp_path / name)
    (tmp_path / 'config.json').write_text((tmp_path / 'config.json').read_text().replace('"steps": 2,', '"steps": 9,'))
    train.finish(tmp_path, [PROMPT])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['checkpoints', 'config.json']


def test_a_table_of_scores():
    assert publish.table({'a': 0.123456, 'long_name': 3}) == '  a          0.1235\n  long_name  3'
    rows = [{'caption': 'a chair', 'objects': 5, 'best': 0.03}, {'caption': 'a low table', 'objects': 12, 'best': 0.12341}]
    assert publish.table({'rows': rows, 'a': 1}).splitlines() == [
        '  a  1',
        '',
        '  rows',
        '  caption      objects    best',
        '  a chair            5    0.03',
        '  a low table       12  0.1234',
    ]
