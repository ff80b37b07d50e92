"""Captioned triplanes by many processes, each its share, put together into the folder that one process would have written.

Pairs that are lacking are made in blocks of `BLOCK` batches. Share i of n makes the blocks i, i + n, i + 2 n, ... that are not
there, each a file that is written whole or not at all:

    parts/0000001024.json    of the pairs from 1024 on: the manifest's head, their lines, the statistics of every batch

The same call without a share takes the blocks in order, adds their statistics batch by batch as one process adds them, and
makes what is missing. So the manifest and the lines are the same to the bit, however many processes there were, and another
number of them may go on. Blocks are removed once they are in the manifest.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from t3d.core import files, shares, strict_json
from t3d.core.errors import UsageError
from t3d.metrics import fid

PARTS = 'parts'
BLOCK = 64  # batches
AGAIN = 'delete it, and the share that makes it makes it again'


class Block(NamedTuple):
    """The pairs start, ..., stop - 1, in a file of their own."""

    path: pathlib.Path
    start: int
    stop: int


def waiting(out: pathlib.Path, share: shares.Share, have: int, pairs: int, batch: int, size: int = BLOCK) -> list[Block]:
    """The blocks of a share that are not there, of a folder that has `have` pairs of `pairs`; `size` in batches."""
    starts = share.of(range(have, pairs, batch * size))
    every = [Block(out / PARTS / f'{start:010d}.json', start, min(start + batch * size, pairs)) for start in starts]
    return [block for block in every if not block.path.exists()]


def after(out: pathlib.Path, have: int, head: dict, batch: int) -> list[tuple[list[dict], fid.Moments]]:
    """(lines, statistics) of the batches that follow the first `have` pairs, from the block that holds them; [] without one."""
    for path in sorted((out / PARTS).glob('*.json'), reverse=True):
        start = int(path.stem)
        if start <= have and (have - start) % batch == 0:
            return read(path, head, batch)[(have - start) // batch :]
    return []


def remove(out: pathlib.Path, have: int) -> None:
    """Removes the blocks that begin before pair `have`, of a folder that has them, and the folder of blocks if none is left."""
    for path in (out / PARTS).glob('*.json'):
        if int(path.stem) < have:
            path.unlink()
    if (out / PARTS).is_dir() and not any((out / PARTS).iterdir()):
        (out / PARTS).rmdir()


def write(block: Block, head: dict, batch: int, made: Iterator[tuple[list[dict], fid.Moments]], log: Callable) -> None:
    """Writes a block of what is made of its batches, in order: (lines, statistics) of each."""
    lines, moments = [], []
    for some, of_batch in made:
        lines += some
        moments.append([of_batch.n, of_batch.mean.tolist(), of_batch.scatter.tolist()])
    body = json.dumps({'head': head, 'batch': batch, 'lines': lines, 'moments': moments})
    block.path.parent.mkdir(parents=True, exist_ok=True)
    files.write(block.path, json.dumps({'sha256': _digest(body), 'body': body}))
    log(f'{block.path.name}: pairs {block.start} to {block.stop - 1}')


def read(path: pathlib.Path, head: dict, batch: int) -> list[tuple[list[dict], fid.Moments]]:
    """(lines, statistics) of each batch of a block.

    Raises:
      UsageError: it is damaged, or of another set or batch.
    """
    whole = strict_json.loads(path.read_bytes(), str(path))
    if not isinstance(whole, dict) or _digest(str(whole.get('body'))) != whole.get('sha256'):
        raise UsageError(f'{path} is not what was written: {AGAIN}.')
    tree = json.loads(whole['body'])
    there, now = tree['head'] | {'batch': tree['batch']}, head | {'batch': batch}
    wrong = [f'{name} {there.get(name)!r}, now {value!r}' for name, value in now.items() if there.get(name) != value]
    if wrong:
        raise UsageError(
            f'{path} was made with {wrong[0]}: give the same --run, --batch and settings to all shares and to the call that '
            'puts them together, or choose another --out.'
        )
    moments = [fid.Moments(n, np.array(mean), np.array(squares)) for n, mean, squares in tree['moments']]
    return [(tree['lines'][k * batch : (k + 1) * batch], one) for k, one in enumerate(moments)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
