"""Wavefront MTL: materials by name, and the names of files and materials that statements hold.

Names are the trouble of the format: they may have blanks and `#` in them, stand in quotes, follow options, or precede a
comment. What a statement says whole is looked for first; only what is not there is read as a comment or options.

Source: the MTL format as published by Wavefront (appendix B of the Advanced Visualizer manual).
"""

import dataclasses
import math
import re
import unicodedata
from collections.abc import Iterator

import numpy as np

from t3d.core import text as texts

UNDEFINED_DIFFUSE = (0.8, 0.8, 0.8)  # what Blender gives a material that says nothing
MAP_OPTIONS = {
    '-s': 3,
    '-o': 3,
    '-t': 3,
    '-mm': 2,
    '-bm': 1,
    '-blendu': 1,
    '-blendv': 1,
    '-boost': 1,
    '-cc': 1,
    '-clamp': 1,
    '-texres': 1,
    '-imfchan': 1,
    '-type': 1,
}  # option of a map statement -> the most arguments it takes
_WORD_OPTIONS = {'-blendu', '-blendv', '-cc', '-clamp', '-imfchan', '-type'}  # those whose argument is not a number
_COMMENT = re.compile(r'(?:^|[\x00-\x20])#(?!\d)')  # 3ds Max names materials "Material #25"
_KEYWORD = re.compile(
    r'(?:v|vt|vn|vp|f|fo|l|p|g|o|s|usemtl|mtllib|newmtl|k[adse]|n[si]|d|tr|tf|illum|map_\w+|bump|disp|refl)[\x00-\x20]',
    re.IGNORECASE,
)
_NOT_FINITE = re.compile(r'[-+]?(?:nan|inf|1\.#)', re.IGNORECASE)  # also as Microsoft's C library prints them
_LINEAR_RGB_FROM_XYZ = np.array(
    [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]]
)  # IEC 61966-2-1, white D65


@dataclasses.dataclass(frozen=True)
class Part:
    """One material of a model."""

    name: str
    diffuse: tuple[float, float, float] = UNDEFINED_DIFFUSE  # Kd, display values in [0, 1]
    opacity: float = 1.0  # d, 0 = invisible
    texture: str | None = None  # map_Kd, as a path for the reader that gave the OBJ
    spectrum: str | None = None  # a file of `Kd spectral`, which is not read: `diffuse` is then UNDEFINED_DIFFUSE


def statements(data: str) -> Iterator[tuple[int, str]]:
    """(number of its last line, statement) of an OBJ or MTL text, continued lines joined, comments left out.

    A backslash in a comment continues nothing, nor does one before a line that begins with a keyword: names of Windows end so.
    """
    pieces = []
    for number, line in enumerate(texts.lines(data), 1):
        line = line.strip(texts.BLANK)
        if line[:1] == '#':
            continue
        if pieces and _KEYWORD.match(line):
            yield number - 1, ' '.join(pieces)
            pieces = []
        if '\\' in line and '#' not in line and line[-1] == '\\':
            pieces.append(line[:-1])
        elif pieces:
            yield number, ' '.join([*pieces, line])
            pieces = []
        elif line:
            yield number, line
    if pieces:
        yield number, ' '.join(pieces)


def statement(line: str) -> tuple[str, str]:
    """(keyword, rest) of a line; any blanks and control characters separate, those at the ends are dropped."""
    words = re.split('[\x00-\x20]+', line.strip(texts.BLANK), maxsplit=1)
    return words[0], words[1] if len(words) > 1 else ''


def uncommented(rest: str) -> str:
    """A name without the comment behind it."""
    comment = _COMMENT.search(rest)
    return rest[: comment.start()].strip(texts.BLANK) if comment else rest


def number(word: str) -> float | None:
    """The number a word is, with a decimal comma too; NaN for every spelling of what is not finite; None where it is none."""
    if _NOT_FINITE.match(word):
        return math.nan
    try:
        value = float(word.replace(',', '.'))
    except ValueError:
        return None
    return value if math.isfinite(value) else math.nan


def numeric_words(rest: str) -> list[str]:
    """The words of a statement of numbers, up to a comment, which may follow without a blank."""
    words = rest.split()
    for place, word in enumerate(words):
        if '#' in word and not _NOT_FINITE.match(word):
            head = word.partition('#')[0]
            return words[:place] + [head] * bool(head)
    return words


def parse_mtl(data: str) -> dict[str, Part]:
    """Materials by name as written; of two definitions of one name the statements of the later one add to the first."""
    materials, fields = {}, None
    for _, line in statements(data):
        key, rest = statement(line)
        key = key.lower()
        if key == 'newmtl':
            fields = materials.setdefault(unquoted(rest), {'name': unquoted(uncommented(rest))})
        elif fields is not None and key in _READERS:
            fields.update(_READERS[key](rest, fields))
    return {name: Part(**fields) for name, fields in materials.items()}


def _kd(rest: str, fields: dict) -> dict:
    words = numeric_words(rest)
    kind = words[0].lower() if words else ''
    if kind == 'spectral':
        return {'spectrum': ' '.join(words[1:2]), 'diffuse': UNDEFINED_DIFFUSE}
    values = [number(word) for word in words[kind == 'xyz' :][:3]]
    if not values or None in values or not np.isfinite(values).all():
        return {}
    values = np.array(values if len(values) == 3 else values[:1] * 3)  # one number means grey
    if kind == 'xyz':
        linear = np.clip(_LINEAR_RGB_FROM_XYZ @ values, 0.0, 1.0)
        values = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return {'diffuse': tuple(np.clip(values, 0.0, 1.0).tolist()), 'spectrum': None}


def _opacity(rest: str, fields: dict) -> dict:
    value = _first_finite(rest)
    return {} if value is None else {'opacity': float(np.clip(value, 0.0, 1.0))}


def _transparency(rest: str, fields: dict) -> dict:
    value = _first_finite(rest)
    return {} if value is None or 'opacity' in fields else {'opacity': float(np.clip(1.0 - value, 0.0, 1.0))}


def _first_finite(rest: str) -> float | None:
    values = [number(word) for word in numeric_words(rest)]  # skips -halo
    return next((value for value in values if value is not None and math.isfinite(value)), None)


def _map(rest: str, fields: dict) -> dict:
    return {'texture': map_name(rest)} if map_name(rest) else {}


_READERS = {'kd': _kd, 'd': _opacity, 'tr': _transparency, 'map_kd': _map}


# -------------------------------------------------------------------------------------------------------------- names


def unquoted(name: str) -> str:
    """A name without quotes around it, and without what follows the closing one."""
    if name[:1] in ('"', "'"):
        inside, closing, _ = name[1:].partition(name[0])
        return inside if closing else name
    return name


def map_name(rest: str) -> str:
    """The file of a map statement: what follows its options, blanks and comment and all."""
    rest = rest.strip(texts.BLANK)
    while True:
        key, after = statement(rest)
        if key.lower() not in MAP_OPTIONS or not after:
            return unquoted(rest)
        rest, taken = after, 0
        while taken < MAP_OPTIONS[key.lower()]:
            word, after = statement(rest)
            if not after or not (_is_number(word) or key.lower() in _WORD_OPTIONS):
                break
            rest, taken = after, taken + 1


def _is_number(word: str) -> bool:
    return number(word) is not None


def spellings(name: str) -> list[str]:
    """What a map statement's file may be called, the likeliest first: whole, without comment, without options behind."""
    bare = uncommented(name)
    tail = re.sub(r'[\x00-\x20]-(?:' + '|'.join(option[1:] for option in MAP_OPTIONS) + r')[\x00-\x20].*', '', bare)
    words = bare.split()
    after = [' '.join(words[start:]) for start in range(1, len(words))] if bare.startswith('-') else []  # unknown options
    return list(dict.fromkeys(unquoted(spelling.strip(texts.BLANK)) for spelling in (name, bare, tail, *after)))


def library_names(rest: str, find) -> tuple[list[str], list[str]]:
    """(paths, names not found) of an `mtllib` statement: one name with blanks, several names, quoted ones, a comment behind.

    `find(name)` gives a path or None.
    """
    groups = re.findall(r'"[^"]+"|\'[^\']+\'|\S.*?\.mtl(?=[\x00-\x20]|$)|\S+', uncommented(rest), re.IGNORECASE)
    path_of = {group: find(unquoted(group)) for group in groups}
    whole = find(unquoted(rest)) or find(unquoted(uncommented(rest)))
    if None in path_of.values() and whole is not None:
        return [whole], []
    paths, missing = [], []
    for group, path in path_of.items():
        inside = [path] if path is not None else [path for path in map(find, group.split()) if path is not None]
        paths += inside
        missing += [] if inside else [unquoted(group)]
    return paths, missing


class Table:
    """Materials by the names that `usemtl` gives them; of two libraries the first one named defines a material."""

    def __init__(self, materials: dict[str, Part]):
        self.materials = materials
        self._other = {}
        for part in materials.values():
            self._other.setdefault(part.name, part)  # without its comment
        for part in materials.values():
            self._other.setdefault(_folded(part.name), part)

    def get(self, name: str) -> Part | None:
        """The material of a `usemtl` statement's text, which may have a comment, quotes or another case of letters."""
        for spelling in (name, unquoted(name), unquoted(uncommented(name)), re.split('[\x00-\x20]#', name)[0]):
            part = self.materials.get(spelling) or self._other.get(spelling) or self._other.get(_folded(spelling))
            if part is not None:
                return part
        return None


def _folded(name: str) -> str:
    return re.sub(r'\s+', ' ', unicodedata.normalize('NFC', name)).strip().casefold()
