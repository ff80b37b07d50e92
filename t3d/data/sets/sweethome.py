"""Sweet Home 3D's furniture libraries: containers, catalogue, rotations, look-alikes.

A library is a zip file (`.sh3f`) with `PluginFurnitureCatalog.properties` and OBJ models. Debian's package
`sweethome3d-furniture` carries five of them; upstream offers the same files for every system. `open_libraries` takes the
`.deb`, a `.sh3f`, or a folder that holds either or an unpacked library, and needs the standard library only. What counts is the
hash of each library, not the container it came in.

Models are y up with the front towards +z once `modelRotation` is applied, which is this library's world (geom/cameras.py).
"""

import dataclasses
import functools
import hashlib
import pathlib
import posixpath
import re
import unicodedata
import urllib.parse
import zlib

import numpy as np

from t3d.core import files
from t3d.core import text as texts
from t3d.core.errors import UsageError
from t3d.data.sets import archives, deb

CATALOGUE = 'PluginFurnitureCatalog.properties'
LIBRARY_VERSION = '1.8'
SHA256 = {
    'Scopia': 'b4505451b1e8ab339c101c0afddfef4e1a07b95aa8c821c61ec41487afd43850',
    'BlendSwap-CC-0': '7ef093fe70cedbb160bdb532d86a84580459635e34130c16777f549eba1993dc',
    'BlendSwap-CC-BY': '29ae78937b4d5dbe93db74067817a984fa411f017b007fd666bc40368bdb0c83',
    'KatorLegaz': 'f512443b5d3a6903497573095f971f44334b3165ab32182133051fa9487764a6',
    'Reallusion': 'dd553207876ccec6372dde7aaea6b2dcf2d631997fcdb8a9856a639e0db9aa9b',
}
LICENCES = {
    'Scopia': 'CC-BY 3.0',
    'BlendSwap-CC-0': 'CC0 1.0',
    'BlendSwap-CC-BY': 'CC-BY 3.0',
    'KatorLegaz': 'CC-BY 3.0 US',
    'Reallusion': 'CC-BY 3.0 US',
}
HOW_TO_GET = (
    'download the Debian package sweethome3d-furniture (or the .sh3f libraries from the models page of '
    'sweethome3d.com) and pass its path with --source'
)
MOST_ID = 100  # letters of an object id: file names end at 255 bytes
LIBRARY_TAGS = {'blend swap', 'scpts'}  # say where a model came from, not what it is


@dataclasses.dataclass(frozen=True)
class Entry:
    """One catalogue entry."""

    library: str
    object_id: str  # unique over the five libraries, safe as a file name
    name: str  # 'Chair'
    tags: tuple[str, ...]  # lower case, without those that name the library
    category: str
    creator: str
    licence: str
    model: str  # path inside the library
    rotation: tuple[float, ...]  # 3x3 row-major, world from file
    extent: tuple[float, float, float]  # catalogue width (x), height (y), depth (z) in cm


@dataclasses.dataclass(frozen=True)
class Library:
    """An opened library; pickles by path."""

    name: str
    path: pathlib.Path  # a zip file or an unpacked folder

    def read(self, name: str) -> bytes:
        """The bytes of a file inside; KeyError where there is none, archives.Damaged where it cannot be had."""
        return self._archive().read(name)

    def locate(self, path: str) -> str | None:
        """The name of a file inside that differs from `path` at most in the case of letters and the form of accents."""
        return self._archive().locate(path)

    def model(self, entry: 'Entry') -> str:
        """The path of an entry's model inside the library.

        Raises:
          UsageError: there is none, or it is no OBJ file.
        """
        for spelling in (entry.model, urllib.parse.unquote(entry.model)):
            path = self.locate(posixpath.normpath(spelling.replace('\\', '/').lstrip('/')))
            if path is not None and posixpath.splitext(path)[1].lower() != '.obj':
                raise UsageError(f'{path} is no OBJ file, the one format that is read')
            if path is not None:
                return path
        raise UsageError(f'{entry.model} is not in the library')

    def catalogue(self) -> tuple[list['Entry'], dict[str, str]]:
        """The entries in the catalogue's own order, and what is wrong with those that are left out, by number."""
        name = self.locate(CATALOGUE)
        if name is None:
            inner = [name for name in self._archive().members if name.lower().endswith('/' + CATALOGUE.lower())]
            hint = f' There is {inner[0]}: the library has to start at its folder.' if inner else ''
            raise UsageError(f'{self.path} has no {CATALOGUE}, so it is no furniture library.{hint}')
        return read_catalogue(self.read(name), self.name)

    def entries(self) -> list['Entry']:
        """The catalogue, in its own order."""
        return self.catalogue()[0]

    def _archive(self) -> archives.Archive:
        """Opened once in a process, again when the file has changed."""
        status = self.path.stat()
        return _opened(self.path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(16)
def _opened(path: pathlib.Path, *changed: int) -> archives.Archive:
    return archives.Archive(path)


# ---------------------------------------------------------------------------------------------------------- containers


def open_libraries(source: str | pathlib.Path, scratch: str | pathlib.Path, *, verify: bool = True) -> list[Library]:
    """The libraries in a `.deb`, a `.sh3f` or a folder, by name; a `.deb` is unpacked into `scratch` (about 130 MB).

    With `verify`, a library that bears one of the five known names must be version 1.8 byte for byte; others are taken as
    they are.
    """
    source = files.local(source)
    if not source.exists():
        raise FileNotFoundError(f'no furniture source at {source}: wanted a .deb, a .sh3f or a folder with them; {HOW_TO_GET}.')
    paths = _library_paths(source, pathlib.Path(scratch))
    if not paths:
        raise UsageError(
            f'{source} holds no furniture library: wanted *.sh3f, a sweethome3d-furniture .deb or a folder with '
            f'{CATALOGUE}; {HOW_TO_GET}.'
        )
    by_name = {}  # a folder may hold a library twice: the one nearest to its top counts
    for path in sorted(paths, key=lambda path: (len(path.parts), path)):
        by_name.setdefault(path.name if path.is_dir() else path.stem, path)
    libraries = [Library(name, path) for name, path in sorted(by_name.items())]
    for library in libraries:
        if library.path.is_file() and verify:
            _verify(library)
        library.locate(CATALOGUE)  # a damaged zip is met here
    return libraries


def _library_paths(source: pathlib.Path, scratch: pathlib.Path) -> list[pathlib.Path]:
    if source.is_file():
        if source.suffix.lower() == '.deb':
            return _unpack(source, scratch)
        if source.suffix.lower() == '.sh3f':
            return [source]
        raise UsageError(f'{source.name} is not a furniture source: wanted a .deb, a .sh3f or a folder; {HOW_TO_GET}.')
    if (source / CATALOGUE).is_file():
        return [source]
    paths = list(source.rglob('*.sh3f')) or [path.parent for path in source.rglob(CATALOGUE)]
    if not paths:
        packages = sorted(source.glob('*furniture*.deb'))
        return _unpack(packages[-1], scratch) if packages else []
    return paths


def _unpack(package: pathlib.Path, scratch: pathlib.Path) -> list[pathlib.Path]:
    try:
        return deb.unpack(package, scratch, '.sh3f')
    except UsageError as error:
        raise UsageError(f'{error}; {HOW_TO_GET}.') from error


def _verify(library: Library) -> None:
    with open(library.path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    expected = SHA256.get(library.name, digest)
    if digest != expected:
        raise UsageError(
            f'{library.path} has SHA-256 {digest[:16]}..., but library {library.name} {LIBRARY_VERSION} has '
            f'{expected[:16]}...: the file is damaged or of another version; {HOW_TO_GET}.'
        )


# ----------------------------------------------------------------------------------------------------------- catalogue


def parse_catalogue(data: bytes, library: str) -> list[Entry]:
    """The entries of `read_catalogue`."""
    return read_catalogue(data, library)[0]


def read_catalogue(data: bytes, library: str) -> tuple[list[Entry], dict[str, str]]:
    """Entries of a Java properties file with keys `name#7`, and {'7': what is wrong} of entries that are left out."""
    rows = {}
    for key, value in parse_properties(data).items():
        match = re.fullmatch(r'([^#]*)#([0-9]{1,9})', key)
        if match:
            rows.setdefault(int(match[2]), {})[match[1]] = value
    entries, wrong, taken = [], {}, set()
    for number, row in sorted(rows.items()):
        try:
            entry = _entry(row, library)
        except UsageError as error:
            wrong[str(number)] = str(error)
            continue
        if entry.object_id.casefold() in taken:
            entry = dataclasses.replace(entry, object_id=f'{entry.object_id}-{number}')
        taken.add(entry.object_id.casefold())
        entries.append(entry)
    return entries, wrong


def _entry(row: dict[str, str], library: str) -> Entry:
    for field in ('name', 'model'):
        if not row.get(field, '').strip():
            raise UsageError(f'it has no {field}')
    tags = tuple(tag for tag in (word.strip().lower() for word in row.get('tags', '').split(',')) if tag)
    return Entry(
        library=library,
        object_id=f'{library}.{_safe(row.get("id", row["model"]).rpartition("#")[2])}',
        name=' '.join(row['name'].split()),
        tags=tuple(tag for tag in tags if tag not in LIBRARY_TAGS),
        category=row.get('category', '').strip(),
        creator=row.get('creator', '').strip(),
        licence=LICENCES.get(library, 'see the library'),
        model=row['model'].strip().lstrip('/'),
        rotation=_rotation(row.get('modelRotation', '')),
        extent=tuple(_number(row.get(key, '')) for key in ('width', 'height', 'depth')),
    )


def _safe(stem: str) -> str:
    """Letters and digits of any script, `_` and `-`: part of a file name."""
    safe = re.sub(r'[^\w-]+', '-', unicodedata.normalize('NFC', stem))
    return safe if len(safe) <= MOST_ID else f'{safe[:MOST_ID]}-{bucket(stem, 2**32):08x}'


def _rotation(text: str) -> tuple[float, ...]:
    if not text.split():
        return (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    numbers = tuple(_number(word) for word in text.split())
    if len(numbers) != 9 or not np.isfinite(numbers).all() or np.linalg.matrix_rank(np.reshape(numbers, (3, 3))) < 3:
        raise UsageError(f'its modelRotation is {text.strip()[:60]!r}: wanted the 9 numbers of a rotation')
    return numbers


def _number(word: str) -> float:
    """NaN for what is no number."""
    try:
        return float(word)
    except ValueError:
        return float('nan')


def parse_properties(data: bytes) -> dict[str, str]:
    """A Java properties file: UTF-8 or Latin-1, `#` and `!` comments, `key=value`, `key: value` or `key value`, backslash
    escapes, continued lines.
    """
    blank = ' \t\f'
    logical, pending = [], None
    for line in texts.lines(texts.decode(data)):
        line = line.lstrip(blank)
        if pending is None and line[:1] in ('#', '!', ''):
            continue
        line, pending = (pending or '') + line, None
        if (len(line) - len(line.rstrip('\\'))) % 2:
            pending = line[:-1]
        else:
            logical.append(line)
    properties = {}
    for line in logical + ([pending] if pending else []):
        match = re.match(r'((?:\\.|[^\\=: \t\f])*)[ \t\f]*[=:]?[ \t\f]*(.*)', line, re.DOTALL)
        properties[_unescape(match[1])] = _unescape(match[2])
    return properties


def _unescape(text: str) -> str:
    plain = {'n': '\n', 't': '\t', 'r': '\r', 'f': '\f'}

    def replace(match):
        return chr(int(match[1], 16)) if match[1] else plain.get(match[2], match[2])

    units = re.sub(r'\\(?:u([0-9a-fA-F]{4})|(.))', replace, text)
    return units.encode('utf-16-le', 'surrogatepass').decode('utf-16-le', 'replace')  # beyond U+FFFF Java writes two units


# --------------------------------------------------------------------------------------------------- groups and splits


def look_alike_groups(signatures: dict[str, tuple]) -> list[list[str]]:
    """Groups of two or more object ids with equal signatures (triangles, vertices, parts), in the order given."""
    groups = {}
    for object_id, signature in signatures.items():
        groups.setdefault(tuple(signature), []).append(object_id)
    return [group for group in groups.values() if len(group) > 1]


def bucket(text: str, modulus: int) -> int:
    """crc32 of a text modulo `modulus`: the hash that decides splits, the same on every machine."""
    return zlib.crc32(text.encode('utf-8')) % modulus


def noun_splits(nouns: dict[str, str], groups: list[list[str]]) -> dict[str, str]:
    """'train', 'val' or 'test' for each object id, from nouns {id: noun} in catalogue order.

    The hash of the noun decides: below 10 of 100 test, below 20 val. Nouns that share a look-alike group stay together and
    follow the first noun, so neither a noun nor a look-alike crosses a border.
    """
    leader = {noun: noun for noun in nouns.values()}

    def find(noun):
        while leader[noun] != noun:
            noun = leader[noun]
        return noun

    order = {noun: place for place, noun in enumerate(leader)}
    for group in groups:
        for other in group[1:]:
            first, second = sorted((find(nouns[group[0]]), find(nouns[other])), key=order.get)
            leader[second] = first
    splits = {}
    for object_id, noun in nouns.items():
        place = bucket(find(noun), 100)
        splits[object_id] = 'test' if place < 10 else 'val' if place < 20 else 'train'
    return splits


def rotate(mesh, entry: Entry):
    """The mesh with `modelRotation` applied to positions and normals."""
    matrix = np.array(entry.rotation, np.float32).reshape(3, 3)
    if np.array_equal(matrix, np.eye(3)):
        return mesh
    return dataclasses.replace(mesh, positions=mesh.positions @ matrix.T, normals=mesh.normals @ matrix.T)
