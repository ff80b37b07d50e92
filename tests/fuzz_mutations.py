"""Changes that make good inputs into odd ones: of text, of bytes, of plain data. Functions of a `random.Random` alone."""

import copy
import random

WORDS = (
    '', ' ', '-', '--', '---', '--=', '-1', '0', '1', '-0', '2', '3', '9999999999999999999999', '-9' * 3, '9' * 400, '1e999',
    '-1e999',
    'nan', 'inf', '1.#QNAN', '0,5', '0x10', '1_000', '٣', '²', 'true', 'None', 'null', '[]', '{}', '()', '[[[', '(1,2)', '"',
    "'", '\\', '\\\\',
    '\\u12', '/', '//', '..', '../..', './', '~', '~nobody', '/dev/null', '/proc/self/mem', 'C:\\x\\y', '\\\\h\\s',
    'file:///x', 'http://x/y',
    '[', ']', '*', '?', '%', '%s', '%n%n', '%61', '{0}', '{{', '${HOME}', '$(id)', '`id`', ';', '|', '&', '<b>', '<script>',
    '=', 'a=b', '#', '# x',
    '\0', '\x01', '\x1a', '\x1c', '\x7f', '\x85', '\xa0', '\u2028', '\ufeff', '\ufffe', '\u202e', '\ud800', '\udcff',
    '\U0001f600', '内部', 'Würfel', 'e\u0301',
    '\n', '\r', '\r\n', '\t', '\v', 'x' * 300, 'a' * 5000, ' ' * 2000, 'f', 'v', 'vt', 'usemtl', 'mtllib', 'newmtl', 'Kd',
    'map_Kd', '-s', 'spectral',
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 7, 1000, -1000, 2**31, 2**32, 2**63, 2**64, 10**30, 10**400, 0.5, -0.5, 1e-30, 1e30,
    1e308, float('nan'), float('inf'), '', 'x', '1', 'nan', '内部', '\ud800', 'x' * 1000, [], {}, [0], [1, 2], ['x'], [[]],
    [None], {'x': 1}, {'': {}},
)  # fmt: skip


def words(source: random.Random, most: int = 5) -> str:
    return source.choice(('', ' ', '\n', '\t')).join(source.choice(WORDS) for _ in range(source.randint(0, most)))


def text(source: random.Random, good: str) -> str:
    """The text with a few places changed: characters, words, lines, copies, ends."""
    for _ in range(source.choice((0, 1, 1, 2, 3, 8))):
        start = source.randint(0, len(good))
        end = min(len(good), start + source.choice((0, 1, 1, 2, 5, 40)))
        lines = good.split('\n')
        change = source.randrange(7)
        if change == 0:
            good = good[:start] + good[end:]
        elif change == 1:
            good = good[:start] + source.choice(WORDS) + good[end:]
        elif change == 2:
            good = good[:start] + good[start:end] * source.choice((2, 3, 50)) + good[end:]
        elif change == 3:
            good = (
                good[:start]
                + chr(source.choice((source.randrange(32), source.randrange(256), source.randrange(0xD800))))
                + good[end:]
            )
        elif change == 4:
            source.shuffle(lines)
            good = '\n'.join(lines)
        elif change == 5:
            place = source.randrange(len(lines))
            parts = lines[place].split(' ')
            parts[source.randrange(len(parts))] = source.choice(WORDS)
            lines[place] = ' '.join(parts)
            good = '\n'.join(lines)
        else:
            good = good.replace('\n', source.choice(('\r', '\r\n', '\n\n', '\x85', ' ', '\\\n', ' # x\n', '\\')))
    return good


def encoded(source: random.Random, good: str) -> bytes:
    """Bytes of a text in one of the encodings that files have, sometimes wrongly marked."""
    encoding = source.choice(('utf-8', 'utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-32', 'latin-1', 'gbk', 'cp1252'))
    mark = source.choice((b'',) * 8 + (b'\xef\xbb\xbf', b'\xff\xfe', b'\xfe\xff', b'\xff\xfe\0\0'))
    return mark + good.encode(encoding, source.choice(('replace', 'ignore')))


def raw(source: random.Random, good: bytes) -> bytes:
    """Bytes with a few places changed."""
    data = bytearray(good)
    for _ in range(source.choice((0, 1, 1, 2, 4, 16))):
        start = source.randint(0, len(data))
        end = min(len(data), start + source.choice((1, 1, 2, 4, 8, 100)))
        change = source.randrange(6)
        if change == 0:
            data[start:end] = bytes(source.randrange(256) for _ in range(end - start))
        elif change == 1:
            data[start:end] = source.choice((b'\0', b'\xff', b'\x7f', b'\x80')) * (end - start)
        elif change == 2:
            del data[start:end]
        elif change == 3:
            data[start:start] = bytes(data[start:end]) * source.choice((1, 2, 20))
        elif change == 4:
            data = data[:start] if source.random() < 0.5 else data[start:]
        elif start < len(data):
            data[start] ^= 1 << source.randrange(8)
    return bytes(data)


def tree(source: random.Random, good):
    """Plain data with a few values or keys changed."""
    good = copy.deepcopy(good)
    for _ in range(source.choice((0, 1, 1, 2, 3))):
        if isinstance(good, dict | list) and good and source.random() < 0.97:
            _change(source, good)
        else:
            good = source.choice(VALUES)
    return good


def _change(source: random.Random, node) -> None:
    """Changes one place below a node that is not empty."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    key = source.choice(keys)
    if isinstance(node[key], dict | list) and node[key] and source.random() < 0.75:
        return _change(source, node[key])
    change = source.randrange(6)
    if change == 0:
        del node[key]
    elif change == 1 and isinstance(node, dict):
        node[source.choice((*map(str, WORDS), key.upper(), f'{key}_'))] = node.pop(key)
    elif change == 2:
        node[key] = [node[key]] * source.choice((1, 2, 30))
    elif change == 3 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
        node[key] = source.choice((-node[key], node[key] * 2, node[key] + 1, node[key] // 3, str(node[key])))
    elif change == 4 and isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))
    else:
        node[key] = copy.deepcopy(source.choice(VALUES))
