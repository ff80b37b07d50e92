"""Text files as people write them: any of the usual encodings, any of the usual line ends.

`str.splitlines` also cuts at U+0085, U+2028 and six control characters, which stand inside names; `lines` does not.
"""

import codecs
import re
from collections.abc import Iterator

from t3d.core.errors import UsageError

BLANK = ''.join(map(chr, range(33))) + '\x7f\ufeff'  # what surrounds a word: the space, control characters, a stray mark
_MARKS = (  # byte-order marks; that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, 'utf-8'),
    (codecs.BOM_UTF32_LE, 'utf-32-le'),
    (codecs.BOM_UTF32_BE, 'utf-32-be'),
    (codecs.BOM_UTF16_LE, 'utf-16-le'),
    (codecs.BOM_UTF16_BE, 'utf-16-be'),
)
UTF_16_AND_32 = tuple(mark for mark, encoding in _MARKS if encoding != 'utf-8')  # text in these holds zero bytes
_LINE = re.compile(r'([^\r\n]*)(?:\r\n|\r|\n|\Z)')


def decode(data: bytes) -> str:
    """The text of a file without its byte-order mark; never fails.

    A byte-order mark decides. Without one, a zero among the first two bytes means UTF-16; else UTF-8, and where that does not
    hold, UTF-8 or Latin-1 line by line (a comment of another program is often the only odd line).
    """
    guess = 'utf-16-le' if data[1:2] == b'\0' else 'utf-16-be' if data[:1] == b'\0' else 'utf-8'
    mark, encoding = next((pair for pair in _MARKS if data.startswith(pair[0])), (b'', guess))
    data = data[len(mark) :]
    if encoding != 'utf-8':
        return data.decode(encoding, 'replace')
    try:
        return data.decode('utf-8')
    except UnicodeDecodeError:
        return ''.join(map(_decode_line, re.split(rb'(?<=[\r\n])', data)))


def _decode_line(data: bytes) -> str:
    try:
        return data.decode('utf-8')
    except UnicodeDecodeError:
        return data.decode('latin-1')


def strict(data: bytes, where: str, encoding: str = 'utf-8') -> str:
    """The text of a file without its byte-order mark, where a letter read wrongly would be a wrong word.

    Args:
      where: what the file is called in messages.
      encoding: of a file without a byte-order mark.
    Raises:
      UsageError: bytes that are not of this encoding, with their line and place.
    """
    mark, encoding = next((pair for pair in _MARKS if data.startswith(pair[0])), (b'', encoding))
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(encoding, 'replace')
        line = len(re.findall('\r\n|\r|\n', before)) + 1
        byte, last = error.object[error.start], re.split('\r|\n', before)[-1]
        raise UsageError(
            f'{where}, line {line}: the byte {byte:02x} after {last[-30:]!r} (byte {len(mark) + error.start} of the file) is '
            f'no {encoding.upper()}. Save the file as UTF-8, or as UTF-16 with a byte-order mark.'
        ) from error


def lines(text: str) -> Iterator[str]:
    """The lines of a text without their ends, which are LF, CRLF or a lone CR and nothing else."""
    for match in _LINE.finditer(text):
        if match[0]:
            yield match[1]
