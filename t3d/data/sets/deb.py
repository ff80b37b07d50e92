"""Debian packages, without `dpkg`: an `ar` archive with a `data.tar.*` in it, from which files of one kind are taken."""

import io
import lzma
import pathlib
import shutil
import tarfile
import zlib

from t3d.core import files
from t3d.core.errors import UsageError

MOST_BYTES = 2 << 30  # of one file on disk; the largest furniture library has 90 MB


def unpack(path: pathlib.Path, scratch: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    """Extracts the files of a package whose names end in `suffix` into `scratch`, flat.

    Files that are there at full size are kept, so an interrupted unpacking continues.

    Raises:
      UsageError: what is wrong with the package, as half a sentence: the caller adds what to do.
    """
    with open(path, 'rb') as file:
        for name, size in _members(file, path):
            if name.startswith('data.tar'):
                break
            file.seek(size + size % 2, io.SEEK_CUR)
        else:
            raise UsageError(f'{path} has no data.tar member: it is truncated or no binary package')
        body = file.read(size)
    if len(body) < size:
        raise UsageError(f'{path} is truncated: its data.tar should hold {size} bytes and {len(body)} are left')
    try:
        with tarfile.open(fileobj=io.BytesIO(body)) as archive:
            members = (member for member in archive if member.isfile() and member.name.lower().endswith(suffix))
            return [_extract(archive, member, scratch) for member in members]
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
        reason = str(error).partition('\n')[0].rstrip(':')
        raise UsageError(f'{path} is damaged, or its {name} is compressed in a way that is not read here ({reason})') from error


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, scratch: pathlib.Path) -> pathlib.Path:
    """The file in `scratch`, written whole or not at all."""
    if member.size > MOST_BYTES:
        raise UsageError(f'{member.name} of the package has {member.size} bytes, wanted at most {MOST_BYTES}')
    target = scratch / pathlib.PurePosixPath(member.name).name
    if not (target.exists() and target.stat().st_size == member.size):
        scratch.mkdir(parents=True, exist_ok=True)
        partial = files.part_of(target)
        try:
            with open(partial, 'wb') as file:
                shutil.copyfileobj(archive.extractfile(member), file)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    return target


def _members(file, path):
    """(name, size) of each member of an `ar` archive; the file is left at the member's first byte."""
    if file.read(8) != b'!<arch>\n':
        raise UsageError(f'{path} is no Debian package (no ar archive)')
    while len(header := file.read(60)) == 60:
        name, size = header[:16].decode('ascii', 'replace').strip().rstrip('/'), header[48:58].strip()
        if header[58:] != b'`\n' or not size.isdigit():
            raise UsageError(f'{path} is damaged: a member header of the ar archive is malformed')
        yield name, int(size)
