"""Shares of a work: all of it once, and what is no share."""

import pytest
from test_records import contents, folder, packed, set_of  # noqa: F401

from t3d.core import shares
from t3d.core.errors import UsageError


@pytest.mark.parametrize('count', [1, 3, 7, 12])
def test_all_shares_are_all_tasks_once(count):
    tasks = [f'task {k}' for k in range(10)]
    parts = [shares.Share(number, count).of(tasks) for number in range(count)]
    assert sorted(sum(parts, [])) == tasks and max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize('text', ['4', '4/4', '-1/2', 'a/b', '1/', '0/0', '', '0/99999'])
def test_shares_that_are_none(text):
    with pytest.raises(UsageError, match=f'--share {text}: wanted I/N'):
        shares.parse(text)


def test_a_share_reads_back():
    assert shares.parse('3/4') == (3, 4) and str(shares.parse('3/4')) == '3/4'


@pytest.mark.parametrize('hosts', [2, 7])
def test_hosts_pack_their_shares(folder, set_of, tmp_path, hosts):  # noqa: F811
    out, lines = tmp_path / 'shared', []
    for number in reversed(range(hosts)):
        packed(folder, out, share=shares.Share(number, hosts), log=lines.append)
    assert not (out / 'records.json').exists() and len(list(out.glob('*.array_record'))) == 5
    assert lines[-1].startswith(f'share 0/{hosts} is packed; after all shares')
    assert contents(packed(folder, out, log=lines.append)) == contents(set_of)
    assert '5 of 5 shards were packed before' in lines
    (out / 'train-00001.array_record').unlink()
    for number in range(2):  # each host packs anew what it has to
        packed(folder, out, share=shares.Share(number, 2), log=lines.append)
    assert lines.count('train-00001.array_record: packed anew') == 1
    assert contents(packed(folder, out)) == contents(set_of)
