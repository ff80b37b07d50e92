"""Captioned triplanes by several processes: the bytes of one process, whoever made what and however often it was killed."""

import functools
import itertools
import json
import shutil

import numpy as np
import pytest
import small_triplanes

from t3d.build import make_triplanes, triplane_shares
from t3d.core import shares
from t3d.core.errors import UsageError
from t3d.data.adapters import triplanes
from t3d.inference import loading
from t3d.metrics import fid

PAIRS, BATCH = 10, 2
SAME = ('manifest.json', 'manifest.jsonl', 'frozen/model.safetensors')


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Folders 'g0' and 'g1' of two generators, and blocks of two batches: three of them."""
    monkeypatch.setattr(loading, 'load', functools.cache(lambda folder: small_triplanes.loaded(int(folder[1]), folder)))
    waiting = triplane_shares.waiting
    monkeypatch.setattr(triplane_shares, 'waiting', lambda *args: waiting(*args, size=2))


def run(out, share=None, pairs=PAIRS, source='g0', batch=BATCH, **options):
    share = shares.Share(*share) if share else None
    return make_triplanes.run(source, out, pairs=pairs, batch=batch, share=share, log=lambda line: None, **options)


@pytest.fixture
def alone(tmp_path):
    return run(tmp_path / 'alone')


def same(out, alone):
    for name in SAME:
        assert (out / name).read_bytes() == (alone / name).read_bytes(), name
    assert not (out / triplane_shares.PARTS).exists() and (out / make_triplanes.SHEET).exists()


def names(out):
    return sorted(path.stem.lstrip('0') or '0' for path in (out / triplane_shares.PARTS).iterdir())


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1)])
def test_three_shares_in_any_order_are_one_process(alone, tmp_path, order):
    out = tmp_path / 'shared'
    for number in order:
        run(out, (number, 3))
    assert names(out) == ['0', '4', '8'] and not (out / 'manifest.json').exists()
    run(out)
    same(out, alone)


def test_what_is_missing_is_made_and_another_number_of_processes_goes_on(alone, tmp_path, monkeypatch):
    out = tmp_path / 'shared'
    run(out, (1, 3))  # the middle one alone
    assert names(out) == ['4']
    run(out, (0, 2))  # of two: the first and the last
    drawn, draw = [], make_triplanes.SampleRenderer.__call__
    monkeypatch.setattr(
        make_triplanes.SampleRenderer, '__call__', lambda self, seeds, batch: drawn.append(seeds) or draw(self, seeds, batch)
    )
    run(out, (1, 2))
    assert not drawn  # it was there
    (out / triplane_shares.PARTS / '0000000004.json').unlink()
    run(out)
    same(out, alone)


def test_killed_while_blocks_are_put_together(alone, tmp_path, monkeypatch):
    out = tmp_path / 'shared'
    run(out, (0, 1))
    append, count = make_triplanes.Folder.append, itertools.count()

    def killed(self, *args):
        if next(count) == 3:
            raise KeyboardInterrupt
        append(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(make_triplanes.Folder, 'append', killed)
        with pytest.raises(KeyboardInterrupt):
            run(out)
    assert json.loads((out / 'manifest.json').read_text())['pairs'] == 6  # in the middle of the second block
    with monkeypatch.context() as patch:
        patch.setattr(make_triplanes, '_captioned', lambda *args: pytest.fail('made again'))
        run(out)
    same(out, alone)


def test_a_set_that_grows(alone, tmp_path):
    out = tmp_path / 'grown'
    run(out, pairs=3)
    other = shutil.copytree(out, tmp_path / 'other')
    for number in (1, 0):
        run(out, (number, 2))
    assert names(out) == ['3', '7']
    run(out), run(other)
    same(out, other)
    assert (out / 'manifest.jsonl').read_text().count('\n') == PAIRS


def test_damaged_blocks_and_those_of_another_set_are_refused(tmp_path):
    out = tmp_path / 'shared'
    run(out, (0, 1))
    path = out / triplane_shares.PARTS / '0000000000.json'
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"seed', b'"sEed', 1) if b'"seed' in whole else whole.replace(b'seed', b'sEed', 1))
    with pytest.raises(UsageError, match=r'0000000000.json is not what was written: delete it'):
        run(out)
    path.write_bytes(whole)
    for options, says in (
        ({'batch': 4}, 'batch 2, now 4'),
        ({'psi': 0.5}, 'psi 1.0, now 0.5'),
        ({'source': 'g1'}, 'generator'),
    ):
        with pytest.raises(UsageError, match=f'was made with {says}'):
            run(tmp_path / 'shared', **options)
    shutil.rmtree(out / triplane_shares.PARTS)
    run(out)
    assert triplanes.read_manifest(out)['pairs'] == PAIRS


def test_statistics_come_back_to_the_bit(tmp_path):
    moments = fid.Moments(7, np.random.default_rng(0).normal(size=5) / 3.0, np.array([1e-300, 0.1, 1 / 3, 1e300, 0.0]))
    block = triplane_shares.Block(tmp_path / 'parts' / '0000000000.json', 0, 1)
    triplane_shares.write(block, {'a': 1}, 2, iter([([{'seed': 0}], moments)]), lambda line: None)
    [(lines, read)] = triplane_shares.read(block.path, {'a': 1}, 2)
    assert lines == [{'seed': 0}] and read.n == 7
    np.testing.assert_array_equal(read.mean, moments.mean)
    np.testing.assert_array_equal(read.scatter, moments.scatter)
