"""Captions of objects in folders: from a JSON, CSV or text file beside the pictures, else from the folder's name.

| file | form |
|---|---|
| captions.json (or any *captions*.json) | {object: text} or {object: [text, ...]} |
| captions.csv (or any *captions*.csv) | `uid,caption` a line, with that head or without, as Cap3D's |
| caption.txt in the object's folder | a caption a line |

An object is named by its folder relative to the set, or by the last part of that. Without any: what the layout says ("a chair"
in CO3D), else the folder's name made words; a name that is none ("0a3f...", "00017") gives "an object".
"""

import csv
import io
import pathlib
import re

from t3d.core import strict_json, text
from t3d.core.errors import UsageError
from t3d.data.layouts.scene import Entry

MOST_BYTES = 1 << 30
NAMELESS = 'an object'


class Captions:
    """The captions of a set, by object."""

    def __init__(self, root: pathlib.Path):
        self._table, self.files, self.made = {}, [], {}
        for file in sorted([*root.glob('*caption*.json'), *root.glob('*caption*.csv')]):
            self._table = {**(_json(file) if file.suffix == '.json' else _csv(file)), **self._table}
            self.files.append(file.name)

    def of(self, entry: Entry) -> tuple[str, ...]:
        """At least one caption of an object; one that was made of the folder's name is noted in `made`."""
        beside = entry.folder / 'caption.txt'
        if beside.is_file():
            lines = [line.strip() for line in text.lines(text.strict(_bytes(beside), str(beside)))]
            if lines := tuple(line for line in lines if line):
                return lines
        last = entry.name.rpartition('/')[2]
        for key in (entry.name, last):
            if key in self._table:
                return self._table[key]
        if entry.caption:
            return (entry.caption,)
        self.made[entry.name] = in_words(last)
        return (self.made[entry.name],)


def in_words(name: str) -> str:
    """A folder's name as a caption: 'old_chair-02' is 'old chair 02'."""
    words = re.sub(r'(?<=[a-z])(?=[A-Z])|[\W_]+', ' ', name).lower().split()
    is_name = any(re.search(r'[^\W\d_]{2}', word) for word in words)
    return ' '.join(words) if is_name and not re.fullmatch(r'[0-9a-f]{8,}', ''.join(words)) else NAMELESS


def _bytes(file: pathlib.Path) -> bytes:
    if file.stat().st_size > MOST_BYTES:
        raise UsageError(f'{file} has {file.stat().st_size} bytes: no file of captions is that long.')
    return file.read_bytes()


def _json(file: pathlib.Path) -> dict[str, tuple[str, ...]]:
    tree = strict_json.loads(_bytes(file), str(file))
    if not isinstance(tree, dict):
        raise UsageError(f'{file} holds a {type(tree).__name__}: wanted {{object: caption}} or {{object: [caption, ...]}}.')
    lists = {name: [value] if isinstance(value, str) else value for name, value in tree.items()}
    return {name: _texts(values, f'{file}, {name[:80]!r}') for name, values in lists.items()}


def _csv(file: pathlib.Path) -> dict[str, tuple[str, ...]]:
    table = {}
    try:
        rows = list(csv.reader(io.StringIO(text.strict(_bytes(file), str(file)), newline='')))
    except csv.Error as error:
        raise UsageError(f'{file} is no CSV ({error}): wanted uid,caption a line.') from error
    for number, row in enumerate(rows, 1):
        if not row or (number == 1 and [cell.strip().lower() for cell in row[:2]] in (['uid', 'caption'], ['id', 'caption'])):
            continue
        if len(row) != 2:
            raise UsageError(f'{file}, line {number}: {len(row)} columns, wanted 2: uid,caption, with quotes around commas.')
        table.setdefault(row[0].strip(), []).append(row[1])
    return {name: _texts(values, f'{file}, {name[:80]!r}') for name, values in table.items()}


def _texts(values, where: str) -> tuple[str, ...]:
    good = isinstance(values, list) and values and all(isinstance(value, str) and value.strip() for value in values)
    if not good:
        raise UsageError(f'{where}: {str(values)[:60]!r} is no caption: wanted a text, or a list of texts.')
    return tuple(value.strip() for value in values)
