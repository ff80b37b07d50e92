"""Every command: its help, its dry run, and the one line it prints for wrong input."""

import os
import pathlib
import subprocess
import sys

import pytest
import small_run
import small_triplanes

from t3d import cli
from t3d.core.errors import UsageError
from t3d.train import evaluate, inference

COMMANDS = ('generate', 'train', 'export', 'render', 'view', 'eval', 'sample2d', 'weights', 'bench', 'data', 'configs', 'info')
COMMANDS += ('doctor',)
TINY = 'configs/instant3d.py:tiny'


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """In an empty folder, without the weights and data of this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('T3D_WEIGHTS', raising=False)
    monkeypatch.setenv('T3D_DATA', str(tmp_path / 'data'))
    monkeypatch.setattr(inference, 'SHIPPED', tmp_path / 'shipped')


def said(capsys, *words: str) -> str:
    """What a command that succeeds prints."""
    assert cli.main(list(words)) == 0
    return capsys.readouterr().out


def refusal(capsys, *words: str) -> str:
    """The error line of a command that fails: alone, and with status 2."""
    assert cli.main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and len(error.splitlines()) == 1 and 'Traceback' not in error
    return error


# ---------------------------------------------------------------------------------------------------------------- words


def test_help_takes_under_a_second_and_loads_nothing_heavy():
    before = os.times()
    done = subprocess.run([sys.executable, '-m', 't3d.cli', '--help'], capture_output=True, text=True)
    after = os.times()
    assert done.returncode == 0 and all(f'  {name}  ' in done.stdout for name in COMMANDS)
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1.0
    code = f"""
import contextlib, io, sys
from t3d import cli
for name in {COMMANDS!r}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        cli.main([name, '--help'])
heavy = {{'jax', 'numpy', 'flax', 'torch', 'tensorflow', 'trimesh', 'ml_collections', 'etils'}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_explains_itself(capsys, name):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, '--help'])
    assert stop.value.code == 0 and f'usage: t3d {name}' in capsys.readouterr().out


def test_bench_lists_its_benchmarks(capsys):
    from t3d.train import bench

    with pytest.raises(SystemExit):
        cli.main(['bench', '--help'])
    listed = capsys.readouterr().out.partition('of its own:')[2].splitlines()
    assert [line.split()[0] for line in listed if line] == list(bench.COMMANDS)


def test_the_list_of_commands_is_complete():
    commands = cli._parser()._subparsers._group_actions[0].choices
    assert set(commands) == set(COMMANDS)


@pytest.mark.parametrize('text, seeds', [('0', [0]), ('0-3,7', [0, 1, 2, 3, 7]), ('4, 0', [4, 0]), ('2-2', [2]), ('1,1', [1])])
def test_seeds(text, seeds):
    assert cli.parse_seeds(text) == seeds


@pytest.mark.parametrize('text', ['', 'a', '0-', '-3', '3-1', '0,,1', '1-2-3', '1.5', '²', str(2**32)])
def test_seeds_that_make_no_sense(text):
    with pytest.raises(UsageError, match='wanted a number below 2.32, a list 0,4 or a range 0-3'):
        cli.parse_seeds(text)


def test_overrides_stand_anywhere_on_the_line():
    args = cli.parse(
        [
            'train',
            '--workdir',
            'x',
            TINY,
            'batch=8',
            '--prompts',
            'a red cube',
            'steps=3',
            '--dry-run',
            'seed=2',
            'optimizer.learning_rate=5e-4',
        ]
    )
    assert set(args.overrides) == {'batch=8', 'steps=3', 'seed=2', 'optimizer.learning_rate=5e-4'}
    assert args.prompts == ['a red cube'] and args.dry_run and args.workdir == 'x' and args.config == TINY


def test_prompts_stand_anywhere_on_the_line():
    assert cli.parse(['generate', 'a', '--out', 'x', 'b', '--seeds', '3', 'c']).prompt == ['a', 'b', 'c']
    args = cli.parse(['export', 'runs/1', '--format', 'obj', '--out', 'x', 'a red cube'])
    assert (args.run, args.prompt, args.formats) == ('runs/1', ['a red cube'], ['obj'])


@pytest.mark.parametrize(
    'words',
    [
        ('generate', '--colour', 'x'),
        ('train', TINY, '--batch=3'),
        ('train',),
        ('fly',),
        (),
        ('eval', 'a', 'b'),
        ('bench',),
        ('generate', 'x', '--run', 'a', '--weights', 'b'),
        ('data', 'build', 'furniture'),
        ('weights', 'a', 'b', '--dtype', 'int8'),
    ],
)
def test_words_no_command_knows(capsys, words):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    assert stop.value.code == 2 and 'error: ' in capsys.readouterr().err


def test_an_interrupt_is_no_error(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, '_doctor', interrupted)
    assert cli.main(['doctor']) == 130 and 'Traceback' not in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error():
    """As `t3d ... | head`: the pipe is closed before the command has said everything."""
    code = "import sys; from t3d import cli; cli._doctor = lambda args: print('x' * 10**6); sys.exit(cli.main(['doctor']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, '-c', code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, '')


# -------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    'words, wanted',
    [
        ((TINY, 'bach=2'), "unknown config key 'bach'. Did you mean 'batch'?"),
        ((TINY, 'data.sice=8'), "unknown config key 'data.sice'. Did you mean 'data.size'?"),
        ((TINY, 'batch'), "override 'batch': wanted name=value, for example batch=16."),
        ((TINY, 'batch=many'), 'batch=many: wanted int (now 8), got str'),
        ((TINY, 'batch=0'), 'batch=0: wanted at least 1 (examples at each step).'),
        ((TINY, 'batch=0', '--dry-run'), 'batch=0: wanted at least 1'),
        ((TINY, 'steps=-3'), 'steps=-3: wanted at least 1 (optimizer steps in all).'),
        ((TINY, 'optimizer=1'), "config key 'optimizer' is a group: set one of optimizer.b1, "),
        ((TINY, 'system=instant3e'), 'there are ganfusion_diffusion, ganfusion_gan, image_diffusion, instant3d, '),
        ((TINY, 'system=instant3e'), "Did you mean 'instant3d'?"),
        ((TINY, 'data.name=furnitur'), "unknown data set (data.name) 'furnitur'. Did you mean 'furniture'? Known: "),
        ((TINY, 'data.split=tset'), "unknown split of toy (data.split) 'tset'. Did you mean 'test'?"),
        ((TINY, 'data.scenes=single'), "unknown toy scenes (data.scenes) 'single'. Did you mean 'singles'?"),
        (('configs/instant3e.py:tiny',), "no config 'configs/instant3e.py'"),
        (('configs/instant3d.py:tinny',), "unknown variant 'tinny' of instant3d: there are tiny, scenes"),
        (('configs/instant3d.py:tinny',), "pod. Did you mean 'tiny'?"),
        (('configs/instant3d.py:furniture',), 'run `t3d data build furniture --source PATH --size 64'),
        ((TINY, '--prompts', 'a red corgi'), 'words this model was not trained on: "corgi"'),
        ((TINY, '--prompts', 'a red cube', ' '), "empty prompt ' '"),
    ],
)
def test_train_refuses_before_it_makes_a_folder(capsys, tmp_path, words, wanted):
    assert wanted in refusal(capsys, 'train', *words, '--workdir', 'run')
    assert not (tmp_path / 'run').exists()


def test_a_dry_run_refuses_a_batch_the_devices_cannot_share(capsys):
    error = refusal(capsys, 'train', TINY, *small_run.SMALL, 'batch=6', '--dry-run')
    assert 'batch 6 is not divisible by the 8 devices' in error and 'set batch=8' in error


@pytest.mark.parametrize(
    'words, wanted',
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
        (('a red cube', '--grid', '2'), '--grid 2: wanted at least 8'),
        (('a red cube', '--frames', '-1'), '--frames -1: wanted at least 0'),
        (('--prompts', 'nowhere.txt'), 'No such file or directory: nowhere.txt'),
    ],
)
@pytest.mark.parametrize('dry', [True, False])
def test_generate_refuses_before_it_makes_anything(capsys, tmp_path, words, wanted, dry):
    options = ('--out', 'out', '--run', str(small_run.folder()), *(('--dry-run',) if dry else ()))
    assert wanted in refusal(capsys, 'generate', *options, *words)
    assert not (tmp_path / 'out').exists()


def test_missing_weights_and_runs(capsys, tmp_path):
    error = refusal(capsys, 'generate', 'a red cube')
    assert 'no weights for any system come with t3d (there are: none)' in error and 't3d train' in error
    assert 'no weights for dreamfusion' in refusal(capsys, 'generate', 'a red cube', '--system', 'dreamfusion')
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

        return command

    monkeypatch.setattr(cli, '_doctor', fail("Unable to initialize backend 'cuda': none found"))
    assert "Unable to initialize backend 'cuda'" in refusal(capsys, 'doctor')
    monkeypatch.setattr(cli, '_doctor', fail('a fault of ours'))
    with pytest.raises(RuntimeError, match='a fault of ours'):
        cli.main(['doctor'])


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


# ----------------------------------------------------------------------------------------------------------------- work


def test_generate_says_what_it_would_do(capsys, tmp_path):
    (tmp_path / 'prompts.txt').write_text('a blue cone\n\na small white sphere\n')
    text = said(
        capsys,
        'generate',
        'a red cube',
        '--prompts',
        'prompts.txt',
        '--run',
        str(small_run.folder()),
        '--dry-run',
        '--seeds',
        '0-2',
        '--format',
        'obj',
        'glb',
        '--grid',
        '32',
    )
    assert 'instant3d from small, step 2: 3 prompts, seeds [0, 1, 2] -> out' in text
    assert "prompts = ['a red cube', 'a blue cone', 'a small white sphere']" in text
    assert "formats = ('obj', 'glb')" in text and 'grid = 32' in text and 'frames = 2' in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ['prompts.txt']


@pytest.mark.parametrize(
    'command, wanted, absent', [('export', "formats = ('obj',)", 'gif'), ('render', 'frames = 7', "formats = ('obj")]
)
def test_export_and_render_take_the_words_of_their_part(capsys, command, wanted, absent):
    words = {'export': ('--format', 'obj'), 'render': ('--frames', '7')}
    text = said(capsys, command, str(small_run.folder()), 'a red cube', *words[command], '--dry-run')
    assert wanted in text and absent not in text
    other = words['render' if command == 'export' else 'export']
    with pytest.raises(SystemExit):
        cli.main([command, str(small_run.folder()), 'a red cube', *other, '--dry-run'])
    assert 'unrecognized arguments' in capsys.readouterr().err


def test_weights_take_the_scores_and_the_log_along(capsys, tmp_path):
    said(capsys, 'weights', str(small_run.folder()), 'shared')
    assert {'metrics.jsonl', 'environment.json'} <= {path.name for path in (tmp_path / 'shared').iterdir()}
    assert 'command.txt' not in {path.name for path in (tmp_path / 'shared').iterdir()}


def test_a_dry_run_counts_parameters_and_bytes(capsys, tmp_path):
    text = said(capsys, 'train', '--dry-run', TINY, *small_run.OVERRIDES, '--workdir', 'run')
    assert 'batch = 2' in text and 'train step compiled in' in text and 'for each device: arguments' in text
    assert 'mesh: data 1 x fsdp 1 x tensor 1 = 1 devices (cpu)' in text
    counts = {
        line.split(':')[0].strip(): int(line.split()[1].replace(',', ''))
        for line in text.splitlines()
        if line.endswith(' parameters')
    }
    assert counts.pop('all') == sum(counts.values()) and set(counts) == {'text', 'decoder', 'field'}
    assert not (tmp_path / 'run').exists()


def test_a_dry_run_needs_neither_the_data_nor_the_devices(capsys):
    text = said(capsys, 'train', 'configs/instant3d.py:furniture', *small_run.SMALL, 'mesh.fsdp=16', '--dry-run')
    assert 'no furniture data' in text and 'made-up words' in text and len(text) < 6000
    assert 'mesh data=-1 x fsdp=16 x tensor=1 does not fit 8 devices' in text and 'JAX_NUM_CPU_DEVICES=' in text


def test_a_run_of_another_config_is_not_resumed(capsys):
    assert cli.main(['train', TINY, '--workdir', str(small_run.folder())]) == 2
    error = capsys.readouterr().err
    assert 'is of another config' in error and 'Choose another --workdir' in error and 'Traceback' not in error


def test_weights_and_info(capsys):
    text = said(capsys, 'weights', str(small_run.folder()), 'shared', '--dtype', 'float16')
    assert text == 'wrote shared/model.safetensors and shared/config.json\n'
    text = said(capsys, 'info', 'shared')
    assert 'shared: instant3d tiny, step 2' in text and 'parameters' in text and 'words it knows (24): a an black' in text


def test_info_of_a_system_that_reads_no_words(capsys, monkeypatch):
    monkeypatch.setattr(inference, 'load', lambda folder: small_triplanes.loaded()._replace(folder=pathlib.Path('nowhere')))
    text = said(capsys, 'info', 'gan')
    assert 'small: ganfusion_gan , step 5' in text and 'generator: ' in text and 'words' not in text


def test_a_dry_run_of_stage_two_needs_no_pairs(capsys):
    small = ('unet.block_out_channels=(16,16,16)', 'generator.channel_base=64', 'mesh.fsdp=16')
    text = said(capsys, 'train', 'configs/ganfusion_diffusion.py:tiny', *small, '--dry-run')
    assert 'note: data.path is empty' in text and 'made-up words' in text and 'denoiser: ' in text
    assert 'data.path is empty' in refusal(capsys, 'train', 'configs/ganfusion_diffusion.py:tiny', '--workdir', 'run')


def test_eval_prints_and_writes_the_scores(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, 'evaluate', lambda loaded, log, limit, split: {'held_out/psnr': 27.5, 'held_out/n': limit})
    text = said(capsys, 'eval', str(small_run.folder()), '--limit', '4', '--json', 'scores.json')
    assert 'held_out/psnr  27.5' in text
    assert (tmp_path / 'scores.json').read_text() == '{\n "step": 2,\n "held_out/psnr": 27.5,\n "held_out/n": 4\n}'


def test_configs_lists_files_and_variants(capsys):
    text = said(capsys, 'configs')
    assert 'configs/instant3d.py  Instant3D: text to a triplane in one pass.' in text
    assert all(f'`{name}`' in text for name in ('tiny', 'scenes', 'furniture', 'base', 'pod'))
