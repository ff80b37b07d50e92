"""Sweet Home 3D's furniture libraries: containers, catalogue, rotations, look-alikes.

A library is a zip file (`.sh3f`) with `PluginFurnitureCatalog.properties` and OBJ models. Debian's package
`sweethome3d-furniture` carries five of them; upstream offers the same files for every system. `open_libraries` takes the
`.deb`, a `.sh3f`, or a folder that holds either or an unpacked library, and needs the standard library only. What counts is the
hash of each library, not the container it came in.

Models are y up with the front towards +z once `modelRotation` is applied, which is this library's world (geom/cameras.py).
"""

import dataclasses
import hashlib
import io
import pathlib
import re
import tarfile
import zipfile
import zlib

import numpy as np

from t3d.core.errors import UsageError

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
        """The bytes of a file inside; KeyError where there is none."""
        if self.path.is_dir():
            file = self.path / name
            if not file.is_file():
                raise KeyError(name)
            return file.read_bytes()
        return _zip(self.path).read(name)

    def entries(self) -> list[Entry]:
        """The catalogue, in its own order."""
        return parse_catalogue(self.read(CATALOGUE), self.name)


_OPEN = {}  # one open zip per path and process


def _zip(path: pathlib.Path) -> zipfile.ZipFile:
    if path not in _OPEN:
        _OPEN[path] = zipfile.ZipFile(path)
    return _OPEN[path]


# ---------------------------------------------------------------------------------------------------------- containers


def open_libraries(source: str | pathlib.Path, scratch: str | pathlib.Path, *, verify: bool = True) -> list[Library]:
    """The libraries in a `.deb`, a `.sh3f` or a folder, by name; a `.deb` is unpacked into `scratch` (about 130 MB).

    With `verify`, a library that bears one of the five known names must be version 1.8 byte for byte; others are taken as
    they are.
    """
    source = pathlib.Path(source).expanduser()
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
        if library.path.is_file():
            _check(library, verify)
    return libraries


def _library_paths(source: pathlib.Path, scratch: pathlib.Path) -> list[pathlib.Path]:
    if source.is_file():
        if source.suffix == '.deb':
            return unpack_deb(source, scratch)
        if source.suffix == '.sh3f':
            return [source]
        raise UsageError(f'{source.name} is not a furniture source: wanted a .deb, a .sh3f or a folder; {HOW_TO_GET}.')
    if (source / CATALOGUE).is_file():
        return [source]
    paths = list(source.rglob('*.sh3f')) or [path.parent for path in source.rglob(CATALOGUE)]
    if not paths:
        packages = sorted(source.glob('*furniture*.deb'))
        return unpack_deb(packages[-1], scratch) if packages else []
    return paths


def _check(library: Library, verify: bool) -> None:
    found = hashlib.sha256(library.path.read_bytes()).hexdigest()
    wanted = SHA256.get(library.name, found)
    if verify and found != wanted:
        raise UsageError(
            f'{library.path} has SHA-256 {found[:16]}..., but library {library.name} {LIBRARY_VERSION} has '
            f'{wanted[:16]}...: the file is damaged or of another version; {HOW_TO_GET}.'
        )
    if not zipfile.is_zipfile(library.path):
        raise UsageError(f'{library.path} is no zip file, so no furniture library: it is damaged or truncated; {HOW_TO_GET}.')


def unpack_deb(path: str | pathlib.Path, scratch: str | pathlib.Path) -> list[pathlib.Path]:
    """Extracts the `.sh3f` files of a Debian package (an `ar` archive with a `data.tar.*`) into `scratch`, flat.

    Files that are there at full size are kept, so an interrupted unpacking continues.
    """
    scratch = pathlib.Path(scratch)
    with open(path, 'rb') as file:
        for name, size in _ar_members(file, path):
            if name.startswith('data.tar'):
                break
            file.seek(size + size % 2, io.SEEK_CUR)
        else:
            raise UsageError(f'{path} has no data.tar member: it is truncated or no binary package; {HOW_TO_GET}.')
        body = file.read(size)
    if len(body) < size:
        raise UsageError(f'{path} is truncated: its data.tar should hold {size} bytes and {len(body)} are left; {HOW_TO_GET}.')
    scratch.mkdir(parents=True, exist_ok=True)
    paths = []
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        for member in archive:
            if not (member.isfile() and member.name.endswith('.sh3f')):
                continue
            target = scratch / pathlib.PurePosixPath(member.name).name
            if not (target.exists() and target.stat().st_size == member.size):
                partial = target.with_suffix('.partial')
                partial.write_bytes(archive.extractfile(member).read())
                partial.replace(target)
            paths.append(target)
    return paths


def _ar_members(file, path):
    """(name, size) of each member of an `ar` archive; the file is left at the member's first byte."""
    if file.read(8) != b'!<arch>\n':
        raise UsageError(f'{path} is no Debian package (no ar archive): {HOW_TO_GET}.')
    while len(header := file.read(60)) == 60:
        name, size = header[:16].decode('ascii', 'replace').strip().rstrip('/'), header[48:58].strip()
        if header[58:] != b'`\n' or not size.isdigit():
            raise UsageError(f'{path} is damaged: a member header of the ar archive is malformed; {HOW_TO_GET}.')
        yield name, int(size)


# ----------------------------------------------------------------------------------------------------------- catalogue


def parse_catalogue(data: bytes, library: str) -> list[Entry]:
    """Entries of a Java properties file with keys `name#7`; entries without a model are left out."""
    rows = {}
    for key, value in parse_properties(data).items():
        field, _, number = key.partition('#')
        if number.isdigit():
            rows.setdefault(int(number), {})[field] = value
    return [_entry(row, library) for _, row in sorted(rows.items()) if row.get('model') and row.get('name')]


def _entry(row: dict[str, str], library: str) -> Entry:
    numbers = [float(word) for word in row.get('modelRotation', '').split()]
    rotation = tuple(numbers) if len(numbers) == 9 else (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    tags = tuple(tag for tag in (word.strip().lower() for word in row.get('tags', '').split(',')) if tag)
    stem = row.get('id', row['model']).rpartition('#')[2]
    return Entry(
        library=library,
        object_id=f'{library}.{re.sub(r"[^A-Za-z0-9_-]+", "-", stem)}',
        name=row['name'].strip(),
        tags=tuple(tag for tag in tags if tag not in LIBRARY_TAGS),
        category=row.get('category', '').strip(),
        creator=row.get('creator', '').strip(),
        licence=LICENCES.get(library, 'see the library'),
        model=row['model'].lstrip('/'),
        rotation=rotation,
        extent=tuple(float(row.get(key) or 0.0) for key in ('width', 'height', 'depth')),
    )


def parse_properties(data: bytes) -> dict[str, str]:
    """A Java properties file: Latin-1, `#` and `!` comments, `key=value` or `key: value`, backslash escapes, continuations."""
    logical, pending = [], ''
    for line in data.decode('latin-1').splitlines():
        line = pending + line.lstrip()
        pending = ''
        if line[:1] in ('#', '!', ''):
            continue
        if (len(line) - len(line.rstrip('\\'))) % 2:
            pending = line[:-1]
        else:
            logical.append(line)
    properties = {}
    for line in logical + ([pending] if pending else []):
        match = re.match(r'((?:\\.|[^\\=:\s])*)\s*[=:]?\s*(.*)', line)
        properties[_unescape(match[1])] = _unescape(match[2])
    return properties


def _unescape(text: str) -> str:
    plain = {'n': '\n', 't': '\t', 'r': '\r', 'f': '\f'}

    def replace(match):
        return chr(int(match[1], 16)) if match[1] else plain.get(match[2], match[2])

    return re.sub(r'\\(?:u([0-9a-fA-F]{4})|(.))', replace, text)


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
