"""Every command: its words, its help, its dry run, and what it prints."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import small_run
import small_triplanes
from small_cli import TINY, alone, refusal, said  # noqa: F401

from t3d import cli
from t3d.checkpoint import run_configs
from t3d.commands import outputs
from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data import sources
from t3d.evaluate import toy_objects
from t3d.inference import loading

COMMANDS = ('generate', 'train', 'export', 'render', 'view', 'eval', 'sample2d', 'weights', 'bench', 'data', 'configs', 'info')
COMMANDS += ('doctor', 'plan')


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
    from t3d.bench import table

    with pytest.raises(SystemExit):
        cli.main(['bench', '--help'])
    listed = capsys.readouterr().out.partition('of its own:')[2].splitlines()
    assert [line.split()[0] for line in listed if line] == list(table.BENCHMARKS)


@pytest.mark.parametrize('words', [['scale'], ['--scale']])
def test_bench_scale_has_two_names(monkeypatch, words):
    from t3d.bench import scale

    given = []
    monkeypatch.setattr(scale, 'main', lambda argv: given.append(argv) or 0)
    for more in ([], ['--axes', 'rays', '--points', '2']):
        assert cli.main(['bench', *words, *more]) == 0 and given[-1] == more


@pytest.mark.parametrize('name', ['render', 'unet', 'gan', 'mv', 'sds', 'decoder', 'hash'])
def test_benches_with_a_peer_say_that_torch_is_the_default(capsys, name):
    with pytest.raises(SystemExit) as stop:
        cli.main(['bench', name, '--help'])
    said = ' '.join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and '--vs {torch' in said and ': the default' in said and '--no-peer' in said


def test_the_list_of_commands_is_complete():
    commands = cli.make_parser()._subparsers._group_actions[0].choices
    assert set(commands) == set(COMMANDS)


@pytest.mark.parametrize('text, seeds', [('0', [0]), ('0-3,7', [0, 1, 2, 3, 7]), ('4, 0', [4, 0]), ('2-2', [2]), ('1,1', [1])])
def test_seeds(text, seeds):
    assert outputs.parse_seeds(text) == seeds


@pytest.mark.parametrize('text', ['', 'a', '0-', '-3', '3-1', '0,,1', '1-2-3', '1.5', '²', str(2**32)])
def test_seeds_that_make_no_sense(text):
    with pytest.raises(UsageError, match='wanted a number below 2.32, a list 0,4 or a range 0-3'):
        outputs.parse_seeds(text)


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
        ('eval', 'a', '--b'),
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

    monkeypatch.setitem(cli.COMMANDS, 'doctor', cli.COMMANDS['doctor']._replace(run=interrupted))
    assert cli.main(['doctor']) == 130 and 'Traceback' not in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error():
    """As `t3d ... | head`: the pipe is closed before the command has said everything."""
    code = 'import sys; from t3d import cli; '
    code += "cli.COMMANDS['doctor'] = cli.COMMANDS['doctor']._replace(run=lambda args: print('x' * 10**6)); "
    code += "sys.exit(cli.main(['doctor']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, '-c', code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, '')


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
    'command, expected, absent', [('export', "formats = ('obj',)", 'gif'), ('render', 'frames = 7', "formats = ('obj")]
)
def test_export_and_render_take_the_words_of_their_part(capsys, command, expected, absent):
    words = {'export': ('--format', 'obj'), 'render': ('--frames', '7')}
    text = said(capsys, command, str(small_run.folder()), 'a red cube', *words[command], '--dry-run')
    assert expected in text and absent not in text
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


def test_a_run_from_before_muon_is_told_of_it_and_stays_as_it_is(capsys, tmp_path):
    """A config without the key ran by Adam: that is said before anything is written, and with it the run goes on."""
    folder = pathlib.Path(shutil.copytree(small_run.folder(), tmp_path / 'run'))
    config = json.loads((folder / 'config.json').read_text())
    assert config['optimizer'].pop('kernels') == 'muon'
    (folder / 'config.json').write_text(json.dumps(config))
    before = (folder / 'config.json').read_bytes()
    words = [*small_run.OVERRIDES, '--workdir', str(folder)]
    assert cli.main(['train', TINY, *words]) == 2
    assert "optimizer.kernels: 'adam' there, 'muon' given" in capsys.readouterr().err
    assert (folder / 'config.json').read_bytes() == before
    given = configs.load(TINY, [*small_run.OVERRIDES, 'optimizer.kernels=adam'])
    assert run_configs.changed(configs.from_dict(config), sources.resolve(given)) == {}


def test_weights_and_info(capsys):
    text = said(capsys, 'weights', str(small_run.folder()), 'shared', '--dtype', 'float16')
    assert text == 'wrote shared/model.safetensors and shared/config.json\n'
    text = said(capsys, 'info', 'shared')
    assert 'shared: instant3d tiny, step 2' in text and 'parameters' in text and 'words it knows (24): a an black' in text


@pytest.mark.parametrize('damage', [b'', b'{"psnr": ', b'[1]', b'\xff\xfe\x00', b'[' * 10_000])
def test_damaged_scores_cost_info_no_other_line(capsys, tmp_path, damage):
    folder = shutil.copytree(small_run.folder(), tmp_path / 'run')
    (folder / 'scores.json').write_bytes(b'{"psnr": 27.5, "by_caption": [{"best": 0.1}, {"best": 0.2}]}')
    text = said(capsys, 'info', 'run')
    assert 'psnr: 27.5' in text and 'by_caption: 2 rows' in text
    (folder / 'scores.json').write_bytes(damage)
    text = said(capsys, 'info', 'run')
    assert 'words it knows (24): a an black' in text and 'scores: ' in text and 'run/scores.json' in text


def test_info_of_a_system_that_reads_no_words(capsys, monkeypatch):
    monkeypatch.setattr(loading, 'load', lambda folder: small_triplanes.loaded()._replace(folder=pathlib.Path('nowhere')))
    text = said(capsys, 'info', 'gan')
    assert 'small: ganfusion_gan , step 5' in text and 'generator: ' in text and 'words' not in text


def test_a_dry_run_of_stage_two_needs_no_pairs(capsys):
    small = ('unet.block_out_channels=(16,16,16)', 'mesh.fsdp=16')
    text = said(capsys, 'train', 'configs/ganfusion_diffusion.py:tiny', *small, '--dry-run')
    assert 'note: data.path is empty' in text and 'made-up words' in text and 'denoiser: ' in text
    assert 'data.path is empty' in refusal(capsys, 'train', 'configs/ganfusion_diffusion.py:tiny', '--workdir', 'run')


def test_eval_prints_and_writes_the_scores(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(toy_objects, 'evaluate', lambda loaded, log, limit, split: {'held_out/psnr': 27.5, 'held_out/n': limit})
    text = said(capsys, 'eval', str(small_run.folder()), '--limit', '4', '--json', 'scores.json')
    assert 'held_out/psnr  27.5' in text
    assert (tmp_path / 'scores.json').read_text() == '{\n "step": 2,\n "held_out/psnr": 27.5,\n "held_out/n": 4\n}'


def test_configs_lists_files_and_variants(capsys):
    text = said(capsys, 'configs')
    assert 'configs/instant3d.py  Instant3D: text to a triplane in one pass.' in text
    assert all(f'`{name}`' in text for name in ('tiny', 'scenes', 'furniture', 'base', 'pod'))


@pytest.mark.parametrize('content', [b'\xff\xfe odd', b'a = "\0"', b'def f(:\n', b'(' * 500])
def test_a_file_of_ones_own_that_is_no_config_hides_no_other(capsys, tmp_path, content):
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'mine.py').write_bytes(content)
    (tmp_path / 'configs' / 'folder.py').mkdir()
    text = said(capsys, 'configs')
    assert 'configs/mine.py  (not read: ' in text and 'configs/instant3d.py  Instant3D: text to a triplane' in text
