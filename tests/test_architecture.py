"""docs/architecture.md: its example runs from an empty folder as it stands, its walks are short, its rooms are there."""

import importlib
import pathlib
import re
import shlex
import sys

import pytest

from t3d import cli

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / 'docs/architecture.md').read_text()
sys.path.insert(0, str(ROOT / 'tests'))
reading_path = importlib.import_module('reading_path')


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [str(ROOT), *(path for path in sys.path if path)])
    yield tmp_path
    sys.modules.pop('my_ball', None)


def test_the_example_trains_resumes_is_scored_generates_and_is_timed(empty, capsys):
    code, commands = re.search(r'```python\n(.*?)```\n\n```\n(.*?)```', PAGE, re.S).groups()
    assert len(code.splitlines()) <= 70 and 'my_ball.py' in PAGE
    (empty / 'my_ball.py').write_text(code)
    commands = [shlex.split(line)[1:] for line in commands.splitlines()]
    assert [words[0] for words in commands] == ['train', 'eval', 'generate', 'bench']
    train, others = commands[0], commands[1:]
    assert cli.main([*train, 'mesh.data=1', '--stop-after', '20']) == 0
    assert cli.main([*train, 'mesh.data=1']) == 0
    assert 'resuming from step 20' in capsys.readouterr().out
    for words in others:
        assert cli.main([*words, *(['mesh.data=1', '--steps', '1'] if words[0] == 'bench' else [])]) == 0, words
    out = capsys.readouterr().out
    scores = {name: float(value) for name, value in re.findall(r'^  (\S+)\s+([\d.]+)$', out, re.M)}
    assert {'mesh.glb', 'sheet.png', 'report.html'} <= {path.name for path in (empty / 'out/ball').iterdir()}
    assert 'step ms' in out
    assert scores['held_out/n'] == 48 and scores['held_out/psnr'] > scores['control/held_out/psnr_mean_picture'] + 0.5
    assert scores['held_out/nearest'] > 0.15 > scores['control/held_out/nearest_shuffled_prompts']  # colours, not shapes


@pytest.mark.parametrize('command', ['t3d train', 't3d generate'])
def test_the_walks_name_files_that_are_there_and_are_short(command):
    paths = reading_path.walks()[command]
    assert 5 <= len(paths) <= reading_path.MOST_FILES and reading_path.lines(paths) <= reading_path.MOST_LINES


def test_a_walk_that_names_no_file_or_several_is_refused():
    for text in ('`nothing.py`', '`single_view.py` and `__init__.py`'):
        with pytest.raises(SystemExit, match='write it with its room'):
            reading_path._files(text)


def test_the_rooms_are_those_of_the_package():
    block = PAGE.split('```\n')[1]
    named = {line.split()[0] for line in block.splitlines() if line and not line.startswith(' ')}
    there = {path.name for path in (ROOT / 't3d').iterdir() if (path / '__init__.py').exists()} - {'assets'}
    assert named == there
