"""Text files of any encoding, cut at line ends and nowhere else."""

import codecs
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.core import text

WORDS = 'Åred 内部\nстул\r\nWürfel\rend'


@pytest.mark.parametrize(
    'mark, encoding',
    [
        (b'', 'utf-8'),
        (codecs.BOM_UTF8, 'utf-8'),
        (codecs.BOM_UTF16_LE, 'utf-16-le'),
        (codecs.BOM_UTF16_BE, 'utf-16-be'),
        (codecs.BOM_UTF32_LE, 'utf-32-le'),
        (codecs.BOM_UTF32_BE, 'utf-32-be'),
    ],
)
def test_every_unicode_encoding_is_read(mark, encoding):
    assert text.decode(mark + WORDS.encode(encoding)) == WORDS


def test_utf_16_without_a_mark_latin_1_and_mixtures_are_read():
    assert text.decode('red Würfel'.encode('utf-16-le')) == text.decode('red Würfel'.encode('utf-16-be')) == 'red Würfel'
    assert text.decode('caf\xe9 \x85\n'.encode('latin-1')) == 'caf\xe9 \x85\n'
    mixed = '# été\n'.encode('latin-1') + 'usemtl 内部\r'.encode() + b'x'
    assert text.decode(mixed) == '# été\nusemtl 内部\rx'
    assert text.decode(b'') == '' and text.decode(codecs.BOM_UTF8) == ''


@given(st.binary(max_size=60))
def test_no_bytes_fail(data):
    text.decode(data)


@given(st.text(alphabet='ab \r\n\x85\x1c\x0b\x0c\u2028\u2029\x1e', max_size=30))
def test_lines_end_where_universal_newlines_end(given_text):
    expected = [line.removesuffix('\n') for line in io.StringIO(given_text, newline=None)]
    assert list(text.lines(given_text)) == expected
