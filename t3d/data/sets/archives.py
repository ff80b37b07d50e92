"""Zip files and folders as people have them: names in any spelling, damage told in one sentence, memory bounded.

A zip is read, never unpacked. Members with absolute names or `..` in them are outside of it and are left alone.
"""

import contextlib
import os
import pathlib
import posixpath
import re
import threading
import unicodedata
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from t3d.core.errors import UsageError

MOST_BYTES = 256 << 20  # of a member in memory; more only where the zip itself holds 1 / MOST_EXPANSION of it
MOST_EXPANSION = 20  # text packs about 5-fold, pictures hardly at all: what expands further is no data
# Methods that are not read: Python lacks them, or its decompressor cannot be held to the announced length.
METHODS = {9: 'Deflate64', 12: 'bzip2', 14: 'LZMA', 93: 'Zstandard', 95: 'XZ', 98: 'PPMd'}
_PIECE = 1 << 20  # bytes read at once: a header may lie about the length
_ENCRYPTED, _UTF8 = 0x1, 0x800  # bits of a member's flags


class Damaged(UsageError):
    """A file of an archive that is there and cannot be read; the message names both."""


class Archive:
    """The files of a zip or a folder by name; safe to read from several threads.

    Attributes:
      path: the zip or the folder.
      members: names as paths with `/`, relative to the root, each with the ZipInfo (None in a folder).
      outside: names that lead out of the archive, as written; they cannot be read.
      doubled: names that several members of different content bear; reading them is refused.

    Raises:
      UsageError: the path is neither a folder nor a whole zip.
    """

    def __init__(self, path: pathlib.Path):
        self.path = pathlib.Path(path)
        self._own = threading.local()
        self._spelled = None
        self.members, self.outside, self.doubled = {}, [], set()
        if self.path.is_dir():
            files = (pathlib.Path(folder, name) for folder, _, names in os.walk(self.path) for name in names)
            self.members = {file.relative_to(self.path).as_posix(): None for file in files}
            return
        for info in self._zip().infolist():
            name = _plain(_name(info))
            if name is None:
                self.outside.append(info.filename)
            elif not name.endswith('/'):
                other = self.members.get(name)
                if other and (other.CRC, other.file_size) != (info.CRC, info.file_size):
                    self.doubled.add(name)
                self.members[name] = info

    def locate(self, path: str) -> str | None:
        """The name of a member that differs from `path` at most in the case of letters and the form of accents."""
        if path in self.members:
            return path
        if self._spelled is None:
            self._spelled = {_folded(name): name for name in reversed(self.members)}
        return self._spelled.get(_folded(path))

    def read(self, name: str) -> bytes:
        """The bytes of a member; KeyError where there is none, Damaged where it cannot be had."""
        with self.open(name) as file, self._blaming(name):
            content = b''.join(iter(lambda: file.read(_PIECE), b''))
            info = self.members[name]
            if info is not None and len(content) != info.file_size:
                raise ValueError(f'{len(content)} bytes of {info.file_size}')
            return content

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A member as a stream; errors as of `read`."""
        info = self.members[name]
        if name in self.doubled:
            raise Damaged(f'{self.path} holds {name} twice with different contents: remove one and pack it again.')
        if info is None:
            with open(self.path / name, 'rb') as file:
                yield file
            return
        self._check(name, info)
        with self._blaming(name):
            file = self._zip().open(info)
        with file:
            yield file

    def _check(self, name: str, info: zipfile.ZipInfo) -> None:
        if info.flag_bits & _ENCRYPTED:
            raise Damaged(f'{self.path}: {name} is encrypted: pack it again without a password.')
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            method = f'{info.compress_type} ({METHODS.get(info.compress_type, "unknown")})'
            raise Damaged(f'{self.path}: {name} is compressed by method {method}: pack it again with deflate, the usual one.')
        if info.file_size > max(MOST_BYTES, MOST_EXPANSION * info.compress_size):
            raise Damaged(
                f'{self.path}: {name} would expand from {info.compress_size} to {info.file_size} bytes, more than {MOST_BYTES} '
                f'and than {MOST_EXPANSION} times what is stored: a zip bomb, or pack it again without compression.'
            )

    @contextlib.contextmanager
    def _blaming(self, name: str) -> Iterator[None]:
        """Turns whatever the zip reader and its decompressors raise into Damaged."""
        try:
            yield
        except UsageError:
            raise
        except Exception as error:  # BadZipFile, zlib.error, EOFError, OSError, struct.error, NotImplementedError, ...
            reason = str(error) or type(error).__name__
            raise Damaged(f'{self.path}: {name} is damaged ({reason}): copy it again.') from error

    def _zip(self) -> zipfile.ZipFile:
        """This thread's own handle: one shared handle would make readers wait for each other."""
        if not hasattr(self._own, 'zip'):
            try:
                self._own.zip = zipfile.ZipFile(self.path)
            except FileNotFoundError:
                raise
            except Exception as error:  # a spoilt index raises BadZipFile, UnicodeDecodeError, struct.error, ...
                reason = str(error) or type(error).__name__
                raise UsageError(
                    f'{self.path} is neither a folder nor a whole zip ({reason}): it is damaged or truncated; copy it again.'
                ) from error
        return self._own.zip


def _name(info: zipfile.ZipInfo) -> str:
    """The member's name; macOS and older packers write UTF-8 without saying so, which zipfile takes for code page 437."""
    if not info.flag_bits & _UTF8 and not info.filename.isascii():
        with contextlib.suppress(UnicodeError):
            return info.filename.encode('cp437').decode('utf-8')
    return info.filename


def _plain(name: str) -> str | None:
    """A name with `/` and without `.` parts; None where it leads outside."""
    name = name.replace('\\', '/')
    if not name.strip('.') or name.startswith('/') or re.match('[A-Za-z]:', name) or '..' in name.split('/'):
        return None
    return posixpath.normpath(name) + ('/' if name.endswith('/') else '')


def _folded(name: str) -> str:
    return unicodedata.normalize('NFC', name).casefold()


# -------------------------------------------------------------------------------------------------------- looking things up


def find(locate, name: str, folders: tuple[str, ...]) -> str | None:
    """The path of a file that another file names, or None.

    Names come with `/` or backslashes, `.` and `..`, drives, and from other machines: the whole name is tried first, then
    what is left of it without its first folders, to the bare file name; each in all `folders`. Paths that lead above the root
    do not count.

    Args:
      locate: `Archive.locate`, or any function from a path to the name it has there, None where it has none.
    """
    for spelling in dict.fromkeys((name, _unquoted(name))):
        parts = [part for part in re.sub(r'^[A-Za-z]:', '', spelling.replace('\\', '/')).split('/') if part not in ('', '.')]
        for start in range(len(parts)):
            for folder in folders:
                path = posixpath.normpath(posixpath.join(folder, *parts[start:]))
                if path not in ('.', '..') and not path.startswith('../') and (member := locate(path)) is not None:
                    return member
    return None


def _unquoted(name: str) -> str:
    from urllib.parse import unquote

    return unquote(name) if '%' in name else name


def locate_by_reading(read):
    """A `locate` for a reader that cannot list: tries the usual spellings of a path one after the other."""

    def locate(path: str) -> str | None:
        folder, name = posixpath.split(path)
        stem, suffix = posixpath.splitext(name)
        names = (name, name.lower(), stem + suffix.lower(), stem + suffix.upper(), stem.lower() + suffix.upper(), name.upper())
        beside = [posixpath.join(folder, spelling) for spelling in (*names, name.capitalize())]
        accents = [unicodedata.normalize(form, path) for form in ('NFC', 'NFD')]
        for spelling in dict.fromkeys((*beside, path.lower(), path.upper(), *accents)):
            try:
                read(spelling)
            except (KeyError, OSError):
                continue
            return spelling
        return None

    return locate
