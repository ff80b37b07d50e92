"""Zips and folders: every spelling of a name is found, every damage is one sentence, memory stays bounded."""

import concurrent.futures
import os
import tracemalloc
import unicodedata

import damaged_zips
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t3d.core.errors import UsageError
from t3d.data.sets import archives

NOISE = np.random.default_rng(0).integers(0, 64, 60_000, np.uint8).tobytes()  # packs to three quarters


@pytest.fixture
def whole(tmp_path):
    return damaged_zips.write(tmp_path / 'a.zip', {'a.txt': b'one', 'b.bin': NOISE, 'c/d.txt': b'two'})


@pytest.mark.parametrize('damage', damaged_zips.DAMAGES)
def test_a_damaged_member_is_named_in_one_sentence_and_the_others_are_read(whole, damage):
    make, message = damaged_zips.DAMAGES[damage]
    make(whole)
    archive = archives.Archive(whole)
    with pytest.raises(archives.Damaged, match=message) as caught:
        archive.read('b.bin')
    assert '\n' not in str(caught.value) and str(whole) in str(caught.value)
    assert archive.read('a.txt') == b'one' and archive.read('c/d.txt') == b'two'


@pytest.mark.parametrize(
    'start, end', [(100, None), (0, 30), (-22, None), (-60, -40), (20, 2000), (-100, -90), (None, None), (-21, -20)]
)
def test_a_zip_with_a_spoilt_index_is_refused_or_its_members_are(whole, start, end):
    size = whole.stat().st_size
    start, end = (0 if start is None else start % size), (size if end is None else end % size)
    damaged_zips.cut(whole, start, end)
    with pytest.raises(UsageError, match=r'neither a folder nor a whole zip|is damaged'):
        archive = archives.Archive(whole)
        [archive.read(name) for name in archive.members]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6))
def test_no_change_of_bytes_ends_in_anything_but_the_content_or_a_sentence(tmp_path, changes):
    path = damaged_zips.write(tmp_path / 'x.zip', {'a.txt': b'one' * 50, 'b.bin': NOISE[:300]})
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(data)
    try:
        archive = archives.Archive(path)
    except UsageError:
        return
    for name in archive.members:
        try:
            content = archive.read(name)
        except UsageError as error:
            assert '\n' not in str(error).replace(name, '')
        else:
            assert len(content) <= 1000


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    """Nothing of 40 MB of zeros stays in memory, also where the header says that they are 10 bytes."""
    monkeypatch.setattr(archives, 'MOST_BYTES', 16 << 20)
    path = damaged_zips.write(tmp_path / 'x.zip', {'zeros': bytes(40 << 20), 'a': b'x'})
    tracemalloc.start()
    with pytest.raises(UsageError, match='zip bomb'):
        archives.Archive(path).read('zeros')
    damaged_zips.change(path, 'zeros', size=10)
    with pytest.raises(UsageError, match='damaged'):
        archives.Archive(path).read('zeros')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert archives.Archive(path).read('a') == b'x'


def test_large_members_that_are_data_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, 'MOST_BYTES', 1000)
    path = damaged_zips.write(tmp_path / 'x.zip', {'noise': NOISE, 'text': b'0.123 ' * 30})
    assert archives.Archive(path).read('noise') == NOISE
    assert archives.Archive(path).read('text') == b'0.123 ' * 30


def test_names_that_lead_outside_are_left_alone(tmp_path):
    names = ['../up.txt', '/abs.txt', 'a/../../b.txt', 'C:\\x.txt', '..\\y.txt', './in.txt', 'sub\\deep.txt', 'sub/']
    archive = archives.Archive(damaged_zips.write(tmp_path / 'x.zip', dict.fromkeys(names, b'x')))
    assert sorted(archive.members) == ['in.txt', 'sub/deep.txt'] and len(archive.outside) == 5
    assert archive.read('sub/deep.txt') == b'x'
    with pytest.raises(KeyError):
        archive.read('../up.txt')


def test_a_name_borne_twice_is_refused_only_where_the_contents_differ(tmp_path):
    path = damaged_zips.write(tmp_path / 'x.zip', [('a', b'1'), ('a', b'1'), ('b', b'1'), ('b', b'2')])
    archive = archives.Archive(path)
    assert archive.read('a') == b'1'
    with pytest.raises(UsageError, match=r'x\.zip holds b twice with different contents: remove one'):
        archive.read('b')


@pytest.mark.parametrize('folder', [False, True])
@pytest.mark.parametrize('asked', ['M/Täfel.PNG', 'm/täfel.png', unicodedata.normalize('NFD', 'm/Täfel.png')])
def test_other_spellings_of_a_name_are_found(tmp_path, folder, asked):
    if folder:
        (tmp_path / 'x/m').mkdir(parents=True)
        (tmp_path / 'x/m/Täfel.png').write_bytes(b'x')
    else:
        damaged_zips.write(tmp_path / 'x', {'m/Täfel.png': b'x'})
    archive = archives.Archive(tmp_path / 'x')
    assert archive.read(archive.locate(asked)) == b'x' and archive.locate('m/none.png') is None


def test_utf_8_names_without_the_flag_are_read(tmp_path):
    """As macOS packs: the bytes of UTF-8, and no flag that says so."""
    path = damaged_zips.write(tmp_path / 'x.zip', {'m/Tafel_x.png': b'x'})
    path.write_bytes(path.read_bytes().replace(b'Tafel_x', 'Täfelx'.encode()))
    assert list(archives.Archive(path).members) == ['m/Täfelx.png']


def test_many_threads_read_one_archive(tmp_path):
    members = {f'{k}': bytes([k]) * 1000 for k in range(50)}
    archive = archives.Archive(damaged_zips.write(tmp_path / 'x.zip', members))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(archive.read, list(members) * 4)) == list(members.values()) * 4


def test_what_is_no_zip_is_refused(tmp_path):
    for content in (b'', b'PK\x05\x06', b'PK\x05\x06' + bytes(18) + b'x' * 70000, os.urandom(1000)):
        (tmp_path / 'x.zip').write_bytes(content)
        with pytest.raises(UsageError, match=r'x\.zip is neither a folder nor a whole zip \(.*\): it is damaged or truncated'):
            archives.Archive(tmp_path / 'x.zip')
    with pytest.raises(FileNotFoundError):
        archives.Archive(tmp_path / 'gone.zip')
