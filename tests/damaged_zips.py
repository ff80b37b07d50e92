"""Zips that are wrong in one place each, made by changing the bytes of whole ones."""

import pathlib
import struct
import warnings
import zipfile

FIELDS = {'flags': (6, 8, 'H'), 'method': (8, 10, 'H'), 'crc': (14, 16, 'I'), 'packed': (18, 20, 'I'), 'size': (22, 24, 'I')}
# name -> its place in the local header, in the central directory, and its kind


def write(path: pathlib.Path, members, compression=zipfile.ZIP_DEFLATED) -> pathlib.Path:
    """A zip of {name: content} or of pairs, which may repeat a name."""
    pairs = members.items() if isinstance(members, dict) else members
    with warnings.catch_warnings(), zipfile.ZipFile(path, 'w', compression) as archive:
        warnings.simplefilter('ignore')  # of repeated names
        for name, content in pairs:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return path


def change(path: pathlib.Path, name: str, **values) -> None:
    """Sets header fields of a member, in both of its headers."""
    with zipfile.ZipFile(path) as archive:
        local = archive.getinfo(name).header_offset
        position = archive.start_dir
    data = bytearray(path.read_bytes())
    while data[position : position + 4] == b'PK\x01\x02':
        length, extra, comment = struct.unpack_from('<3H', data, position + 28)
        if data[position + 46 : position + 46 + length].decode() == name:
            for field, value in values.items():
                near, far, kind = FIELDS[field]
                struct.pack_into('<' + kind, data, local + near, value)
                struct.pack_into('<' + kind, data, position + far, value)
        position += 46 + length + extra + comment
    path.write_bytes(data)


def spoil(path: pathlib.Path, name: str) -> None:
    """Inverts bytes in the middle of a member's data."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    data = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len(name.encode())
    middle = start + info.compress_size // 2
    data[middle : middle + 4] = bytes(255 - byte for byte in data[middle : middle + 4])
    path.write_bytes(data)


def cut(path: pathlib.Path, start: int, end: int) -> None:
    """Takes bytes out of a file."""
    data = path.read_bytes()
    path.write_bytes(data[:start] + data[end:])


DAMAGES = {  # what is done to the member 'b.bin' of a zip -> what is said of it
    'encrypted': (lambda path: change(path, 'b.bin', flags=1), 'b.bin is encrypted: pack it again without a password'),
    'Deflate64': (
        lambda path: change(path, 'b.bin', method=9),
        r'b.bin is compressed by method 9 \(Deflate64\): pack it again',
    ),
    'PPMd': (lambda path: change(path, 'b.bin', method=98), r'b.bin is compressed by method 98 \(PPMd\)'),
    'unknown method': (lambda path: change(path, 'b.bin', method=77), r'b.bin is compressed by method 77 \(unknown\)'),
    'checksum': (lambda path: change(path, 'b.bin', crc=1), r'b.bin is damaged \(Bad CRC-32'),
    'spoilt data': (lambda path: spoil(path, 'b.bin'), r'b.bin is damaged \('),
    'LZMA': (lambda path: change(path, 'b.bin', method=14), r'b.bin is compressed by method 14 \(LZMA\)'),
    'not compressed': (lambda path: change(path, 'b.bin', method=0), r'b.bin is damaged \('),
    'says more than it has': (lambda path: change(path, 'b.bin', size=5_000_000), r'b.bin is damaged \(60000 bytes of 5000000'),
    'bomb': (
        lambda path: change(path, 'b.bin', size=4_000_000_000),
        r'b.bin would expand from \d+ to 4000000000 bytes, .*zip bomb',
    ),
}
