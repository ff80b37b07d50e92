"""Names are data: folders, files and prompts with signs that patterns, templates, shells and programs read otherwise."""

import html.parser
import json
import logging
import shlex

import jax.numpy as jnp
import numpy as np
import pytest

from t3d.checkpoint import around_orbax
from t3d.checkpoint import store as stores
from t3d.core import files
from t3d.core.errors import UsageError
from t3d.core.system import TrainState
from t3d.export import report, video
from t3d.train import log as logs

NAMES = (
    *('run [v2]', 'lr[1e-3]', '[!a]', '[', '*', '**', 'a?b', '{x}', '{0}', '$HOME', '%d', '%2F', 'a:b', '12:30', '~', '#1'),
    *(
        "it's",
        '"q"',
        '<b>',
        'new\nline',
        '\t',
        '-x',
        ' lead',
        'trail ',
        'x.',
        'ü',
        'u\u0308',
        '日本',
        '🐈',
        'a|b',
        'a@b',
        'a\\b',
    ),
    *('a&b', '.hidden', 'x' * 200, '\x1b[31m', 'CON', '^$', 'file:', 'checkpoints', 'x.orbax-checkpoint-tmp', '00000003'),
)
BAD = ('gs:', '\udcff')


def state(value: float = 0.0) -> TrainState:
    params = {'a': jnp.arange(6.0).reshape(2, 3) + value}
    return TrainState(step=jnp.int32(3), params=params, ema=params, opt_state={}, extras={})


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_a_run_folder_of_any_name_gives_back_what_was_saved(tmp_path):
    for value, name in enumerate(NAMES):
        store = stores.Store(tmp_path / name / 'checkpoints')
        store.save(state(value), data={'position': 3}, config={})
        store.close()
        store = stores.Store(tmp_path / name / 'checkpoints', read_only=True)
        assert np.array_equal(store.restore_weights()['a'], state(value).params['a']), name
        store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)  # each under its own name, nothing beside
    (tmp_path / 'run [v2]').rename(tmp_path / 'run *')
    assert stores.Store(tmp_path / 'run *' / 'checkpoints', read_only=True).restore_weights()['a'][0, 0] == NAMES.index(
        'run [v2]'
    )


@pytest.mark.parametrize('name', BAD, ids=ascii)
def test_a_folder_that_cannot_hold_checkpoints_is_refused_before_it_is_made(tmp_path, name):
    with pytest.raises(UsageError, match='is no name for a folder. Choose another|is not UTF-8: rename the folder'):
        stores.Store(tmp_path / name / 'checkpoints')
    assert not list(tmp_path.iterdir())


def test_a_backslash_is_refused_where_the_system_has_no_names_for_opened_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(around_orbax, 'DESCRIPTORS', str(tmp_path / 'none'))
    with pytest.raises(UsageError, match=r"checkpoints cannot be kept in .*: 'a\\\\b' is no name for a folder. Choose another"):
        stores.Store(tmp_path / 'a\\b' / 'checkpoints')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text', ['', 'http://host/run', 'ftp://x', 'x://y'])
def test_what_is_no_path_is_one_sentence(text):
    with pytest.raises(UsageError, match=r'an empty path|is not read; give a local folder'):
        files.path(text)


def test_ffmpeg_takes_every_path_for_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.zeros((2, 16, 48, 3), np.uint8)
    for name in (*NAMES, BAD[0], 'pipe:1', 'concat:a|b', '-loglevel', 'a b é %d %03d'):
        path = video.write_mp4(images, f'{name}/turntable.mp4')
        assert (tmp_path / name / 'turntable.mp4').stat().st_size > 500 and str(path) == f'{name}/turntable.mp4'
    (tmp_path / 'taken' / 'turntable.mp4.part').mkdir(parents=True)
    with pytest.raises(UsageError, match='ffmpeg could not write taken/turntable.mp4: .*directory'):
        video.write_mp4(images, 'taken/turntable.mp4')


PROMPTS = (
    *('a {{heading}} and {{sections}}', '{{scripts}}', '{title}', '$title ${x}', '%s %(a)s', '</script><script>f(1)</script>'),
    *('<!--', ']]>', '<img src=x onerror=f(1)>', '"><svg/onload=1>', "'&quot;&amp;", '\\1 \\g<0>', '[red]bold[/red]', ':cat:'),
    *('a\nb', '\x1b[31m', '红色', '🐈', 'e\u0301', '\u202eabc', '\x00', 'x' * 5000),
)


class Text(html.parser.HTMLParser):
    """The tags of a page, and the text of its heading and title."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.inside = [], {'h1': '', 'title': ''}, ''

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ''

    def handle_data(self, data):
        if self.inside in self.texts:
            self.texts[self.inside] += data


@pytest.mark.parametrize('prompt', PROMPTS, ids=lambda prompt: ascii(prompt)[:30])
def test_a_report_shows_any_prompt_as_it_is_and_nothing_of_it_is_markup(tmp_path, prompt):
    tables = {'config': {prompt: prompt, 'a': {'b': '{{subtitle}}'}}, 'facts': {prompt: 1.0}, 'environment': {'x': prompt}}
    rows = [{'step': n, 'loss': 1.0 + n, f'loss/{prompt}': 0.5, prompt: 3} for n in range(3)]
    pages = {}
    for text in (prompt, 'plain'):
        renamed = json.loads(json.dumps(tables).replace(json.dumps(prompt)[1:-1], text)) if text == 'plain' else tables
        read = [{key.replace(prompt, text): value for key, value in row.items()} for row in rows]
        page = report.write(tmp_path / 'r.html', prompt=text, subtitle=f'of {text}', metrics=read, **renamed).read_text('utf-8')
        pages[text] = Text()
        pages[text].feed(page)
    printed = prompt.replace('\x00', '\ufffd') if '\ufffd' in pages[prompt].texts['h1'] else prompt
    assert pages[prompt].texts == {'h1': printed, 'title': f't3d: {printed}'}
    assert pages[prompt].tags == pages['plain'].tags


@pytest.mark.parametrize(
    'line',
    [
        '{"step": "x", "loss": 1}',
        '{"step": null}',
        '[1]',
        '3',
        'null',
        '{"loss": 1}',
        '\ufffd',
        '{"step": 1, "loss": "high"}',
        '[' * 100_000,
    ]
    + [
        '{"step": 1, "loss": 1' + '0' * 400 + '}',
        '{"step": NaN, "loss": NaN}',
        '{"step": 1e999, "loss": -Infinity}',
        '[' * 100_000,
    ],
)
def test_a_damaged_line_of_the_metrics_is_left_out(tmp_path, line):
    good = [json.dumps({'step': n, 'loss': 1.0 / n}) for n in (1, 2, 3)]
    plots = []
    for lines in (good, [good[0], line, *good[1:]]):
        (tmp_path / 'metrics.jsonl').write_bytes('\n'.join(lines).encode().replace('\ufffd'.encode(), b'\xff\xfe{'))
        plots.append(report.loss_plot(report.read_metrics(tmp_path / 'metrics.jsonl')))
    assert plots[0] == plots[1]


def test_lines_on_a_terminal_are_not_markup(monkeypatch):
    import io
    import sys

    class Terminal(io.StringIO):
        isatty = lambda self: True

    monkeypatch.setattr(sys, 'stdout', terminal := Terminal())
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '60')
    log = logs.Log(None, total=4, batch=1)
    log.progress(1, {'loss': 1.0}, seconds=1.0, steps=1)
    lines = ['runs/[red]x[/red]', ':cat: %s {0}', 'x' * 100 + ' [bold', '\\[a]']
    for line in lines:
        log.line(line)
    log.close()
    assert all(line in terminal.getvalue() for line in lines)


@pytest.mark.parametrize('name', [*NAMES, ''])
def test_a_path_in_a_shown_command_is_one_word_of_the_shell(name):
    assert shlex.split(f't3d eval {files.quoted(name)} --limit 4') == ['t3d', 'eval', name, '--limit', '4']
