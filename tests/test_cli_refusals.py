"""The one line that every command prints for wrong input, before it makes anything."""

import os
import sys

import pytest
import small_run
from small_cli import TINY, alone, refusal, said  # noqa: F401

from t3d import cli
from t3d.core import errors
from t3d.core.errors import UsageError


@pytest.mark.parametrize(
    'words, expected',
    [
        ((TINY, 'bach=2'), "unknown config key 'bach'. Did you mean 'batch'?"),
        ((TINY, 'data.sice=8'), "unknown config key 'data.sice'. Did you mean 'data.size'?"),
        ((TINY, 'batch'), "override 'batch': wanted name=value, for example batch=16."),
        ((TINY, 'batch=many'), "batch='many': wanted a whole number from 1 to 1048576"),
        ((TINY, 'batch=0'), 'batch=0: wanted a whole number from 1 to 1048576 (examples at each step). Nearest: batch=1.'),
        ((TINY, 'batch=0', '--dry-run'), 'batch=0: wanted a whole number'),
        ((TINY, 'steps=-3'), 'steps=-3: wanted a whole number from 1 to 2147483647 (optimizer steps in all).'),
        ((TINY, 'optimizer=1'), "config key 'optimizer' is a group: set one of optimizer.b1, "),
        ((TINY, 'system=instant3e'), 'there are dreamfusion, ganfusion_diffusion, ganfusion_gan, guided_mv, image_diffusion, '),
        ((TINY, 'system=instant3e'), "Did you mean 'instant3d'?"),
        ((TINY, 'system=t3d.systems'), "unknown system 't3d.systems': there are dreamfusion"),
        ((TINY, "evaluate=('t3d.evaluate.table',)"), "unknown evaluator (evaluate) 't3d.evaluate.table'"),
        (
            (TINY, 'data.name=furnitur'),
            "unknown data set (data.name) 'furnitur': there are furniture, posed, records, toy, toy_",
        ),
        ((TINY, 'data.split=tset'), "unknown split of toy (data.split) 'tset'. Did you mean 'test'?"),
        ((TINY, 'data.scenes=single'), "unknown toy scenes (data.scenes) 'single'. Did you mean 'singles'?"),
        (('configs/instant3e.py:tiny',), "no config 'configs/instant3e.py'"),
        (('configs/instant3d.py:tinny',), "unknown variant 'tinny' of instant3d: there are tiny, rays, scenes"),
        (('configs/instant3d.py:tinny',), "pod_sds. Did you mean 'tiny'?"),
        (('configs/instant3d.py:furniture',), 'run `t3d data build furniture --source PATH --size 64'),
        ((TINY, '--prompts', 'a red corgi'), 'words this model was not trained on: "corgi"'),
        ((TINY, '--prompts', 'a red cube', ' '), "empty prompt ' '"),
        ((TINY, 'system=ganfusion_gan'), 'system=ganfusion_gan: '),
        ((TINY, 'system=ganfusion_gan'), 'of ganfusion_gan. Start from configs/ganfusion_gan.py.'),
        ((TINY, "evaluate=('toy_object',)"), "unknown evaluator (evaluate) 'toy_object': there are asked_objects, "),
        (
            (TINY, 'data.kind=vews'),
            "unknown adapter (data.kind) 'vews': there are object_places, object_rays, prompts, rays, ",
        ),
        (
            (TINY, 'data.kind=triplanes'),
            "data.kind='triplanes' reads given.generator, which this config does not have",
        ),
        (('configs/ganfusion_gan.py:tiny', 'data.kind=views'), "data.kind='views' reads text.length, which this config does"),
        (('configs/instant3d.py:furniture', 'data.name=toy'), 'data.train_views=12, but a record of toy has 2 views: set 0'),
        ((TINY, '--init-from', 'nowhere', '--dry-run'), 'model.safetensors and config.json not found in '),
        ((TINY, 'export.prompts=("a red corgi",)'), 'export.prompts, made after the last step: words this model was not'),
        ((TINY, 'export.prompts=("a red corgi",)', '--dry-run'), 'Or set export.prompts=() for none.'),
        ((TINY, 'data.path=pictures'), "data.path='pictures', but data.name='toy' is made as it is needed and reads no files"),
        (('configs/ganfusion_gan.py:tiny', 'data.path=x.zip'), "data.path='x.zip', but data.name='toy' is made as it is"),
        ((TINY, '--init-from', 'nowhere'), 'model.safetensors and config.json not found in '),
        ((TINY, '--init-from', 'nowhere'), 'Give a run folder or a weights folder to start from (--init-from DIR), or leave'),
    ],
)
def test_train_refuses_before_it_makes_a_folder(capsys, tmp_path, words, expected):
    assert expected in refusal(capsys, 'train', *words, '--workdir', 'run')
    assert not (tmp_path / 'run').exists()


def test_a_dry_run_refuses_a_batch_the_devices_cannot_share(capsys):
    error = refusal(capsys, 'train', TINY, *small_run.SMALL, 'batch=6', '--dry-run')
    assert 'batch 6 is not divisible by the 8 devices' in error and 'set batch=8' in error


@pytest.mark.parametrize(
    'words, expected',
    [
        (('a red corgi',), 'words this model was not trained on: "corgi"'),
        (('a large red clone',), '"clone" (nearest: cone)'),
        (
            ('a cube ' * 8,),
            'the prompt has 16 words or word pieces, the model reads 10: "a cube a cube a cube" would be dropped',
        ),
        (('',), "empty prompt ''"),
        (('a red cube', '...'), "empty prompt '...'"),
        (('a red cube', '--seeds', '3-1'), "seeds '3-1': wanted"),
        (('a red cube', '--format', 'glb', 'fbx'), "unknown mesh format 'fbx': choose from glb, obj, ply, stl."),
        (('--format', 'obj', 'a red cube'), "unknown mesh format 'a red cube'"),
        (
            ('a red cube', '--grid', '2'),
            '--grid 2: wanted a whole number from 8 to 1024 (cells per side of the density grid). Nearest: --grid 8.',
        ),
        (('a red cube', '--frames', '-1'), '--frames -1: wanted a whole number from 0'),
        (('--prompts', 'nowhere.txt'), 'no prompts file nowhere.txt: give a text file, one prompt a line.'),
    ],
)
@pytest.mark.parametrize('dry', [True, False])
def test_generate_refuses_before_it_makes_anything(capsys, tmp_path, words, expected, dry):
    options = ('--out', 'out', '--run', str(small_run.folder()), *(('--dry-run',) if dry else ()))
    assert expected in refusal(capsys, 'generate', *options, *words)
    assert not (tmp_path / 'out').exists()


def test_missing_weights_and_runs(capsys, tmp_path):
    error = refusal(capsys, 'generate', 'a red cube')
    assert 'no weights for any system come with t3d (there are: none)' in error and 't3d train' in error
    assert 'no weights for magic3d' in refusal(capsys, 'generate', 'a red cube', '--system', 'magic3d')
    (tmp_path / 'runs' / '0001-instant3d-tiny' / 'checkpoints').mkdir(parents=True)
    for words in (('info',), ('eval',), ('generate', 'a red cube', '--run'), ('generate', 'a red cube', '--weights')):
        error = refusal(capsys, *words, 'runs/0001-instant3d-tin')
        assert 'runs/0001-instant3d-tin does not exist. Did you mean runs/0001-instant3d-tiny?' in error
    error = refusal(capsys, 'info', '/somewhere/else')
    assert (
        'Did you mean' not in error
        and '/somewhere/else does not exist. The newest run here: runs/0001-instant3d-tiny. ' in error
    )
    assert 'holds neither checkpoints nor model.safetensors' in refusal(capsys, 'info', 'runs')
    run = tmp_path / 'runs' / 'begun'
    run.mkdir()
    (run / 'config.json').write_text((small_run.folder() / 'config.json').read_text())
    assert 'no checkpoint yet in runs/begun' in refusal(capsys, 'info', 'runs/begun')
    (run / 'checkpoints').mkdir()
    assert 'runs/begun/checkpoints: train first' in refusal(capsys, 'weights', 'runs/begun', 'x')
    (run / 'model.safetensors').write_bytes(b'')
    (run / 'config.json').unlink()
    assert 'missing weights: config.json not found' in refusal(capsys, 'info', 'runs/begun')


def test_damaged_weights(capsys):
    said(capsys, 'weights', str(small_run.folder()), 'shared')
    with open('shared/model.safetensors', 'r+b') as file:
        file.truncate(5000)
    assert 'shared/model.safetensors is damaged' in refusal(capsys, 'generate', 'a red cube', '--weights', 'shared')
    with open('shared/config.json', 'r+b') as file:
        file.truncate(100)
    said(capsys, 'weights', str(small_run.folder()), 'other')
    os.replace('shared/config.json', 'other/config.json')
    assert 'other/config.json is damaged' in refusal(capsys, 'generate', 'a red cube', '--weights', 'other')


def test_a_missing_backend_is_an_error_line_and_other_faults_are_not(capsys, monkeypatch):
    def fail(text):
        def command(args):
            raise RuntimeError(text)

        return cli.COMMANDS['doctor']._replace(run=command)

    monkeypatch.setitem(cli.COMMANDS, 'doctor', fail("Unable to initialize backend 'cuda': none found"))
    assert "Unable to initialize backend 'cuda'" in refusal(capsys, 'doctor')
    monkeypatch.setitem(cli.COMMANDS, 'doctor', fail('a fault of ours'))
    with pytest.raises(RuntimeError, match='a fault of ours'):
        cli.main(['doctor'])


@pytest.mark.parametrize(
    'text, line',
    [
        ('one', 'one'),
        ('do not fit:\n  missing: a, b\n  unknown: c\nGive others.', 'do not fit: missing: a, b; unknown: c; Give others.'),
        ('no such file: a\nb.png\r\n\nGive another.', 'no such file: a; b.png; Give another.'),
        ('', ''),
        ('\n', ''),
    ],
)
def test_an_error_is_one_line_whatever_it_holds(text, line):
    assert errors.line(UsageError(text)) == line


def test_an_error_of_a_bucket_is_one_line():
    """Of the package that reads it, with its name: there is no network here."""
    error = type('ConnectError', (Exception,), {'__module__': 'httpx._exceptions'})('Name or service not known')
    assert errors.line(error).startswith('a bucket cannot be reached (ConnectError: Name or service not known): check the')
    assert errors.line(type('Fault', (Exception,), {'__module__': 'httpxless'})('x')) is None


def test_weights_of_another_system_to_start_from_are_refused_in_one_line(capsys, tmp_path):
    said(capsys, 'weights', str(small_run.folder()), 'shared')
    words = ('configs/image_diffusion.py:tiny', 'mesh.data=1', '--init-from', 'shared', '--workdir', 'run')
    error = refusal(capsys, 'train', *words)
    assert 'the weights in ' in error and 'do not fit image_diffusion with this config: missing: unet/' in error
    assert error.endswith('Give weights that were trained with the same networks, or leave --init-from out.\n')
    assert not (tmp_path / 'run').exists()


def test_missing_extras_are_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'viser', None)
    assert '`t3d view` needs viser: pip install "t3d[view]"' in refusal(capsys, 'view', str(small_run.folder()), 'a red cube')
    monkeypatch.setitem(sys.modules, 'embreex.mesh_construction', None)
    error = refusal(capsys, 'data', 'build', 'furniture', '--source', str(tmp_path))
    assert 'renders with Embree' in error and 'pip install "t3d[data]"' in error


def test_a_source_without_furniture(capsys, tmp_path):
    pytest.importorskip('embreex')
    error = refusal(capsys, 'data', 'build', 'furniture', '--source', str(tmp_path / 'x.deb'))
    assert f'no furniture source at {tmp_path}/x.deb: wanted a .deb, a .sh3f or a folder' in error
