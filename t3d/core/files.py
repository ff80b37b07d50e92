"""Paths that users give, and files written whole or not at all."""

import contextlib
import importlib.util
import io
import os
import pathlib
import platform
import shlex
import threading

from etils import epath

from t3d.core.errors import UsageError

BUCKETS = {'gs': 'gcsfs', 's3': 's3fs', 'az': 'adlfs', 'hf': 'huggingface_hub'}  # the package that reads each


def path(text) -> epath.Path:
    """The path of a file or folder, local or in a bucket; raises UsageError where it can be neither."""
    name = os.fspath(text)
    scheme, address, _ = name.partition('://')
    if not name:
        raise UsageError("an empty path '': give a folder (is a variable of the shell unset?).")
    if address and scheme not in BUCKETS:
        known = ', '.join(f'{bucket}://' for bucket in BUCKETS)
        raise UsageError(f'path {name!r}: {scheme}:// is not read; give a local folder, or an address with {known}.')
    if name.endswith('://'):
        raise UsageError(f'path {name!r} names no bucket: give {name}BUCKET/FOLDER.')
    if address and importlib.util.find_spec(BUCKETS[scheme]) is None:
        raise UsageError(
            f'path {name!r}: {scheme}:// is read by {BUCKETS[scheme]}, which is not here: pip install {BUCKETS[scheme]}'
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(f'path {ascii(name)} is not UTF-8: rename the folder.') from None
    return epath.Path(text)


def local(text) -> pathlib.Path:
    """A local path with `~` for the home folder; `~name` where nobody has that name stays, as in a shell."""
    return pathlib.Path(os.path.expanduser(text))


def quoted(where) -> str:
    """A path as a word of the shell, for commands that messages show."""
    return shlex.quote(os.fspath(where))


def part_of(where):
    """Where a file of this path is written before it is whole: each host, process and thread has its own."""
    return where.parent / f'{where.name}.{platform.node()}-{os.getpid()}-{threading.get_ident()}.part'


def write(where, data: str | bytes) -> None:
    """Writes a file whole or not at all, whenever the process is killed; text as UTF-8. Errors name the file."""
    where = epath.Path(where)
    part = part_of(where)
    try:
        part.write_bytes(data.encode('utf-8', 'surrogateescape') if isinstance(data, str) else data)
        part.replace(where)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise OSError(error.errno, error.strerror, os.fspath(where)) from error


def write_image(where, image, **options) -> None:
    """Writes a PIL image as `write` does, in the format that the suffix names; options of PIL's `save`."""
    buffer = io.BytesIO()
    image.save(buffer, format=os.path.splitext(where)[1].lstrip('.'), **options)
    write(where, buffer.getvalue())
