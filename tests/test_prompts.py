"""Files of prompts and JSON in every encoding that editors write; what is no text is refused by line."""

import json
import os
import threading

import pytest

from t3d import cli
from t3d.core import prompts, strict_json, tokens
from t3d.core.errors import UsageError

TEXT = 'a red cube\nein grüner Würfel\n红色立方体 🚀\n'
LINES = ['a red cube', 'ein grüner Würfel', '红色立方体 🚀']


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r', '\n\n \t\n'])
def test_every_encoding_and_line_end_is_read(tmp_path, encoding, end):
    (tmp_path / 'p.txt').write_bytes(TEXT.replace('\n', end).encode(encoding))
    assert prompts.read(tmp_path / 'p.txt') == LINES
    (tmp_path / 'p.txt').write_bytes('\ufeffbig endian\nü'.encode('utf-16-be'))
    assert prompts.read(tmp_path / 'p.txt') == ['big endian', 'ü']


def test_every_line_is_a_prompt_and_nothing_else(tmp_path):
    lines = ['# a comment', '--out elsewhere', '@file', '{prompt}', '*', "it's", 'x=3', 'a\tb', 'next\x85line\u2028here', '%s']
    (tmp_path / 'p.txt').write_text('\n'.join(lines))
    assert prompts.read(tmp_path / 'p.txt') == lines
    long = 'word ' * 100_000
    (tmp_path / 'p.txt').write_text(long)
    assert prompts.read(tmp_path / 'p.txt') == [long.strip()]


@pytest.mark.parametrize(
    'data, message',
    [
        ('ok\nein grüner'.encode('latin-1'), r"line 2: the byte fc after 'ein gr' \(byte 9 of the file\) is no UTF-8. Save"),
        ('ok\r\nx\rgrün'.encode('cp1252'), "line 3: the byte fc after 'gr'"),
        (b'\xff\xfea\0b', 'line 1: the byte 62 .* is no UTF-16-LE'),
        ('a red cube'.encode('utf-16-le'), 'line 1: a zero byte. Save it as text in UTF-8'),
        (b'a\nb\0c', 'line 2: a zero byte'),
        (b'a\n\x1b[31m', r'line 2: the control character U\+001B'),
        (b'', r'holds no prompt \(0 bytes\): write one prompt a line'),
        (b'\xef\xbb\xbf\r\n \n', r'holds no prompt \(7 bytes\)'),
        (b'\x89PNG\r\n\x1a\n', 'line 1: the byte 89'),
    ],
)
def test_what_is_no_list_of_prompts_is_refused_by_line(tmp_path, data, message):
    (tmp_path / 'p.txt').write_bytes(data)
    with pytest.raises(UsageError, match=f'prompts file .*p.txt.* ?{message}'):
        prompts.read(tmp_path / 'p.txt')


def test_files_that_are_not_there(tmp_path):
    (tmp_path / 'prompts.txt').write_text('x')
    for path, message in (
        (tmp_path, 'is a folder: give a text file'),
        (tmp_path / 'promts.txt', r'no prompts file .*promts.txt: give a text file, .*Did you mean .*/prompts.txt\?'),
        (tmp_path / 'no/where.txt', 'no prompts file'),
        ('a red cube', 'A prompt itself goes without --prompts, in quotes'),
    ):
        with pytest.raises(UsageError, match=message):
            prompts.read(path)


def test_a_pipe_is_read_and_an_endless_one_is_not(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / 'pipe')
    thread = threading.Thread(target=(tmp_path / 'pipe').write_text, args=(TEXT,))
    thread.start()
    assert prompts.read(tmp_path / 'pipe') == LINES
    thread.join()
    monkeypatch.setattr(prompts, 'LARGEST', 1 << 20)
    with pytest.raises(UsageError, match='/dev/zero has more than 1 MiB'):
        prompts.read('/dev/zero')


def test_the_command_line_reads_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'cache'))
    (tmp_path / 'p.txt').write_bytes('a red cube\r\na blue cone\r\n'.encode('utf-16'))
    assert cli.main(['generate', '--prompts', str(tmp_path / 'p.txt'), '--dry-run']) == 0
    assert "prompts = ['a red cube', 'a blue cone']" in capsys.readouterr().out
    for data, message in (
        (b'\n', 'holds no prompt'),
        ('Würfel\n'.encode(), 'not trained on: "würfel", in the prompt "Würfel"'),
    ):
        (tmp_path / 'p.txt').write_bytes(data)
        assert cli.main(['generate', '--prompts', str(tmp_path / 'p.txt'), '--dry-run']) == 2
        printed = capsys.readouterr().err
        assert printed.startswith('error: ') and message in printed and printed.count('\n') == 1


def test_a_prompt_in_the_bytes_of_another_encoding_is_refused():
    words = os.fsdecode('ein grüner'.encode('latin-1'))
    with pytest.raises(UsageError, match=r"the prompt 'ein gr\\udcfcner' is no text in UTF-8: set the encoding"):
        tokens.check_prompts({}, [words])


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32'])
def test_json_of_every_encoding_is_read(encoding):
    value = {'a': ['ü😀', 1.5, None, True], '内部': {}}
    assert strict_json.loads(json.dumps(value, ensure_ascii=False).encode(encoding), 'x') == value
    assert strict_json.loads(json.dumps(value).encode(encoding), 'x') == value  # escaped pairs of surrogates


@pytest.mark.parametrize(
    'data, message',
    [
        (b'', r'x\.json is no JSON \(Expecting value: line 1'),
        (b"{'a': 1}", 'is no JSON'),
        (b'{"a": 1,}', 'is no JSON'),
        (b'{"a": 1}\0', 'is no JSON'),
        ('{"a": "ü"}'.encode('latin-1'), 'line 1: the byte fc after \'{"a": "\' '),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "has the key 'c' twice"),
        (rb'{"a": "\ud83d"}', 'half of a surrogate pair'),
        (rb'{"\udc00": 1}', 'half of a surrogate pair'),
        (b'[' * 100_000, 'nested too deeply'),
        (b'9' * 5000, 'is no JSON'),
    ],
)
def test_json_that_has_to_be_guessed_at_is_refused(data, message):
    with pytest.raises(UsageError, match=message):
        strict_json.loads(data, 'x.json')
