"""Numbers and names on the command lines of commands, launchers and benchmarks: out of range, unknown, unquoted, unwritable."""

import importlib.util
import pathlib

import pytest
from small_cli import TINY, alone, refusal, said  # noqa: F401

from launch import align_head, curves, guidance_sweep, make_triplanes, mixing_table, sds_table
from launch import train as launch_train
from t3d import cli
from t3d.bench import table as bench
from t3d.commands import outputs
from t3d.core import config as configs
from t3d.core import parsing, words
from t3d.core.errors import UsageError
from t3d.inference import loading

ODD = {int: ('-2', '99999999999999'), float: ('nan', 'inf', '-1e9')}
NUMBERS = {  # words of a command before its numbers
    ('generate', 'x'): dict(
        texture=int, faces=int, grid=int, threshold=float, height=float, frames=int, size=int, render_size=int
    ),
    ('export', 'run', 'x'): dict(texture=int, faces=int, grid=int, threshold=float, height=float),
    ('render', 'run', 'x'): dict(grid=int, frames=int, size=int, render_size=int),
    ('view', 'run'): dict(port=int),
    ('eval', 'run'): dict(limit=int),
    ('sample2d', 'x'): dict(steps=int, guidance=float, seed=int, size=int),
    ('data', 'build', 'furniture', '--source', 'x'): dict(size=int, variants=int, limit=int, processes=int),
    ('data', 'single-view', 'toy', '--out', 'x.zip'): dict(
        size=int, poses=int, supersample=int, variants=int, background=float, seed=int, limit=int
    ),
    ('train', TINY): dict(stop_after=int),
}


@pytest.mark.parametrize('command', NUMBERS)
def test_every_number_has_a_range_and_nothing_is_made(capsys, tmp_path, command):
    for name, kind in NUMBERS[command].items():
        flag = f'--{name.replace("_", "-")}'
        for value in ODD[kind]:
            error = refusal(capsys, *command, f'{flag}={value}')
            assert f'{flag} {kind(value)}: wanted a ' in error, error
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, f'{flag}=many'])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith(f'error: {flag} many: wanted a ') and error.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


def test_no_number_of_a_command_is_left_out():
    """The table above against the parsers themselves."""
    parser = cli.make_parser()
    for command, numbers in NUMBERS.items():
        subparser = parser.commands.choices[command[0]]
        if command[0] == 'data':
            subparser = subparser._subparsers._group_actions[0].choices[command[1]]
        assert {action.dest for action in subparser._actions if action.type in (int, float)} == set(numbers), command


@pytest.mark.parametrize(
    'launcher, command, expected',
    [
        (launch_train, ('--config', TINY, '--stop-after', '0'), '--stop-after 0: wanted a whole number from 1'),
        (launch_train, ('--config', TINY, '--process-id', '-1'), '--process-id -1: wanted a whole number from 0'),
        (launch_train, ('--config', TINY, '--steps', '5'), 'Config keys are written as --config.steps=5.'),
        (launch_train, ('--config', TINY, '--config.seed=-1'), 'seed=-1: wanted a whole number from 0'),
        (launch_train, ('--config', TINY, '--config.seed', '-1'), 'seed=-1: wanted a whole number from 0'),
        (make_triplanes, ('--run', 'x', '--out', 'y', '--pairs', '0'), '--pairs 0: wanted a whole number from 1'),
        (make_triplanes, ('--run', 'x', '--out', 'y', '--psi', 'nan'), '--psi nan: wanted a number from -2 to 2'),
        (make_triplanes, ('--run', 'x', '--out', 'y', '--seed0', '-1'), '--seed0 -1: wanted a whole number from 0'),
        (align_head, ('--out', 'y', '--steps', '0'), '--steps 0: wanted a whole number from 1'),
        (align_head, ('--out', 'file'), '--out file: file is a file, not a folder'),
        (guidance_sweep, ('x', '--scales', '1', 'inf'), '--scales [1.0, inf]: wanted a list'),
        (guidance_sweep, ('x', '--samples', '0'), '--samples 0: wanted a whole number from 1'),
        (sds_table, ('--out', 'file'), '--out file: file is a file, not a folder'),
        (sds_table, ('--out', 'y', 'bach=2'), "unknown config key 'bach'. Did you mean 'batch'?"),
        (mixing_table, ('--out', 'y', '--captions', '1'), '--captions 1: wanted a whole number from 2'),
        (mixing_table, ('--out', 'y', '--settings', '12'), "--settings '12': wanted numbers of"),
        (curves, ('x', '--smooth', '0'), '--smooth 0: wanted a whole number from 1'),
        (curves, ('x', '--out', 'c.pdx'), '--out c.pdx: wanted a name that ends in .png'),
        (bench, ('render', '--repeats', '0'), '0: wanted a whole number from 1'),
        (bench, ('unet', '--batch', '-1'), '-1: wanted a whole number from 1'),
        (bench, ('train', '--repeats', 'x'), 'x'),
        (bench, ('mv', '--sizes', 'huge'), "unknown size 'huge': choose from tiny"),
        (bench, ('sds', '--json', 'file/x'), '--json file/x: file is a file, not a folder'),
        (bench, ('', '--repeats', '1'), 'BENCHMARK is empty'),
    ],
)
def test_launchers_refuse_before_they_work(capsys, tmp_path, launcher, command, expected):
    (tmp_path / 'file').write_text('')
    try:
        status = launcher.main(list(command))
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and expected in error and error.startswith('error: ') and error.count('\n') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize(
    'text', ['0-999999999', '0-10000', '0-4294967295', '0-5000,6000-12000', '1-3-5', '٣', '1e3', '0x1', '-1']
)
def test_seeds_that_are_too_many_or_no_numbers(text):
    with pytest.raises(UsageError, match='^seeds '):
        outputs.parse_seeds(text)


@pytest.mark.parametrize(
    'command, expected',
    [
        (('fly',), "unknown command 'fly'. Commands: generate, train"),
        (('genrate', 'x'), "Did you mean 'generate'?"),
        (('evaluate', 'x'), "Did you mean 'eval'?"),
        (('finetune', 'x'), "Did you mean 'train'?"),
        (('txt2img', 'x'), "Did you mean 'sample2d'?"),
        (('a red cube',), 'to make it, `t3d generate "a red cube"`'),
        (('train', TINY, '--steps', '5'), 'Config keys are written without dashes: steps=5.'),
        (('train', TINY, '--lr=1e-3'), 'optimizer.learning_rate=1e-3.'),
        (('train', TINY, '--batch-size', '8'), 'without dashes: batch=8.'),
        (('train', TINY, '--config.batch=8'), 'without dashes: batch=8.'),
        (('train', TINY, '--config.optimizer.lr', '1e-3'), 'without dashes: optimizer.learning_rate=1e-3.'),
        (('train', '--config', TINY), 'The config goes without a flag: `t3d train configs/instant3d.py:tiny`.'),
        (('train', TINY, '--resume'), 'The same command again, with the same --workdir, resumes'),
        (('train', TINY, '--output_dir', 'x'), 'The run folder is a flag: --workdir DIR.'),
        (('train', TINY, '--epochs', '3'), 'Training is counted in optimizer steps'),
        (('train', TINY, '--init-frm', 'x'), 'Did you mean --init-from?'),
        (('generate', 'x', '--output', 'y'), 'Did you mean --out?'),
        (('render', 'run', 'x', '--fps', '3'), 'unrecognized arguments: --fps'),
    ],
)
def test_words_that_no_command_knows_get_a_next_step(capsys, command, expected):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(command))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and expected in error and error.startswith('error: ') and error.count('\n') == 1


def test_no_word_of_the_field_means_two_things():
    for table in (words.KEYS | words.ADVICE, words.COMMANDS):
        every = [word for others in table.values() for word in others.split()]
        assert sorted(every) == sorted(set(every))


@pytest.mark.parametrize(
    'command',
    [
        ('generate', 'a red cube', '--out'),
        ('export', 'run', 'a red cube', '--out'),
        ('eval', 'run', '--json'),
        ('sample2d', 'a red cube', '--out'),
        ('train', TINY, '--workdir'),
        ('weights', 'run'),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(capsys, tmp_path, monkeypatch, command):
    monkeypatch.setattr(loading, 'load', lambda *words: pytest.fail('the model was read first'))
    (tmp_path / 'file').write_text('kept')
    for place in ('file/inside', '', '  ', 'x' * 300, '/proc/none/x'):
        error = refusal(capsys, *command, place)
        assert 'OUT' in error or command[-1] in error
    assert (tmp_path / 'file').read_text() == 'kept' and [path.name for path in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize(
    'command',
    [
        ('generate', 'a red cube', '--out'),
        ('render', 'run', 'a red cube', '--out'),
        ('eval', 'run', '--json'),
        ('sample2d', 'a red cube', '--out'),
        ('data', 'single-view', 'toy', '--out'),
    ],
)
@pytest.mark.parametrize('address', ['gs://bucket/x', 'https://host/x.png'])
def test_results_are_not_written_to_a_local_folder_of_the_name_of_an_address(capsys, tmp_path, monkeypatch, command, address):
    monkeypatch.setattr(loading, 'load', lambda *words: pytest.fail('the model was read first'))
    assert 'on this machine is written: give one' in refusal(capsys, *command, address)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'command',
    [
        ('info',),
        ('eval',),
        ('generate', 'a red cube', '--run'),
        ('train', TINY, '--workdir'),
        ('train', TINY, '--dry-run', '--init-from'),
    ],
)
def test_a_bucket_that_cannot_be_read_is_one_sentence(capsys, tmp_path, monkeypatch, command):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *rest: None if name == 'gcsfs' else find(name, *rest))
    for address, expected in (
        ('gs://bucket/run', 'gs:// is read by gcsfs, which is not here: pip install gcsfs'),
        ('s3://', "path 's3://' names no bucket: give s3://BUCKET/FOLDER."),
        ('http://host/run', 'http:// is not read; give a local folder, or an address with gs://, s3://, az://, hf://.'),
    ):
        assert expected in refusal(capsys, *command, address)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'command',
    [
        *(
            ('generate', 'x', flag)
            for flag in ('--run', '--weights', '--system', '--config', '--image', '--views', '--prompts')
        ),
        *(('eval', 'run', flag) for flag in ('--metrics', '--evaluate', '--data', '--split', '--align-head', '--clip-weights')),
        *(('eval',), ('info',), ('export',), ('weights', 'check'), ('train',), ('data', 'check'), ('view',)),
        *(('train', TINY, '--init-from'), ('sample2d', 'x', '--weights'), ('view', 'run', '--host')),
    ],
)
def test_an_empty_value_is_not_taken_for_none(capsys, tmp_path, monkeypatch, command):
    """`--run "$RUN"` where RUN is not set would be the shipped weights."""
    monkeypatch.setattr(loading, 'load', lambda *words: pytest.fail('another model was read'))
    name = command[-1] if command[-1].startswith('--') else ''
    for empty in ('', ' ', *(['=--'] if name else ())):
        words = [*command[:-1], f'{name}=--'] if empty == '=--' else [*command, empty]
        error = refusal(capsys, *words)
        assert f'{name} is empty: give a value, or leave it out.' in error
    assert list(tmp_path.iterdir()) == []


def test_a_system_is_not_chosen_beside_a_run(capsys):
    for other in ('--run', '--weights', '--config'):
        error = refusal(capsys, 'generate', 'a red cube', '--system', 'dreamfusion', other, 'x')
        assert f'argument {other}: not allowed with argument --system.' in error


def test_the_working_folder_can_be_written(tmp_path):
    for place in ('.', './', '..', 'a/..', '~', '-', '--x'):
        parsing.writable(place)
    assert list(tmp_path.iterdir()) == []


def test_prompts_without_quotes_are_said_to_be_several(capsys):
    outputs.check(cli.parse(['generate', 'a', 'red', 'cube']))
    assert 'note: 3 prompts of one word each: a, red, cube. ' in (error := capsys.readouterr().err) and '"a red cube"' in error
    for prompts in (['a red cube', 'a cone'], ['cube']):
        outputs.check(cli.parse(['generate', *prompts]))
    assert capsys.readouterr().err == ''


def test_a_relative_data_path_is_found_above_the_run_or_given(tmp_path):
    run, data = tmp_path / 'project' / 'runs' / '0001', tmp_path / 'project' / 'pairs'
    run.mkdir(parents=True)
    loaded = loading.Loaded(configs.load(TINY, ['data.path=pairs']), None, None, 'small', 0, run)
    with pytest.raises(
        UsageError, match="data.path='pairs' of small is neither here nor above its folder: give it with --data DIR"
    ):
        loading.with_data(loaded)
    data.mkdir()
    assert pathlib.Path(loading.with_data(loaded).config.data.path) == data
    (tmp_path / 'pairs').mkdir()  # the working directory counts first
    assert loading.with_data(loaded).config.data.path == 'pairs'
    (tmp_path / 'other').mkdir()
    assert loading.with_data(loaded, 'other').config.data.path == 'other'
    with pytest.raises(UsageError, match='--data nowhere does not exist'):
        loading.with_data(loaded, 'nowhere')
