"""Files of prompts, one a line: what `--prompts FILE` names; and prompts that say from which side an object is seen."""

import difflib
import pathlib
import unicodedata

from t3d.core import text
from t3d.core.errors import UsageError

SUFFIXES = ('front view', 'side view', 'back view', 'overhead view')
LARGEST = 64 << 20  # bytes; a million prompts have about 50 MB


def read(path) -> list[str]:
    """The prompts of a text file: every line that is not blank, without the blanks around it.

    UTF-8 with or without a byte-order mark, UTF-16 and UTF-32 with one; lines end in LF, CRLF or CR. A line is a prompt
    whatever it begins with: there are no comments and no options.

    Raises:
      UsageError: the file is not there, is a folder, is not text, has control characters, or has no prompt.
    """
    data = _bytes(path)
    where = f'prompts file {path}'
    if not data.startswith(text.UTF_16_AND_32) and b'\0' in data:
        line = data[: data.index(b'\0')].count(b'\n') + 1
        raise UsageError(f'{where}, line {line}: a zero byte. Save it as text in UTF-8, one prompt a line.')
    prompts = []
    for number, line in enumerate(text.lines(text.strict(data, where)), 1):
        strange = [character for character in line if unicodedata.category(character) == 'Cc' and not character.isspace()]
        if strange:
            raise UsageError(f'{where}, line {number}: the control character U+{ord(strange[0]):04X}. Write plain text.')
        if line.strip():
            prompts.append(line.strip())
    if not prompts:
        raise UsageError(f'{where} holds no prompt ({len(data)} bytes): write one prompt a line.')
    return prompts


def with_sides(prompt: str) -> list[str]:
    """The prompt with each suffix: 'a red cube, front view', ..."""
    return [f'{prompt}, {suffix}' for suffix in SUFFIXES]


def _bytes(path) -> bytes:
    path = pathlib.Path(path)
    if path.is_dir():
        raise UsageError(f'prompts file {path} is a folder: give a text file, one prompt a line.')
    try:
        with path.open('rb') as file:  # a pipe will do
            data = file.read(LARGEST + 1)
    except FileNotFoundError as error:
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, 1, 0.6)
        hint = f' Did you mean {path.parent / near[0]}?' if near else ''
        quotes = ' A prompt itself goes without --prompts, in quotes.' if ' ' in path.name else ''
        raise UsageError(f'no prompts file {path}: give a text file, one prompt a line.{hint}{quotes}') from error
    if len(data) > LARGEST:
        raise UsageError(f'prompts file {path} has more than {LARGEST >> 20} MiB: split it.')
    return data
