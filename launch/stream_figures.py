"""`python -m launch.stream_figures`: what sets of records cost as they grow: start, memory, records a second.

Writes synthetic sets of captioned objects (4 views of 16 pixels) into a temporary folder and reads each in its own process:
the set is opened as a training opens it, then batches are drawn from it at random through the pipeline.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from t3d.core import config as configs
from t3d.core import parsing
from t3d.core.rules import Whole
from t3d.data import pipeline, sources
from t3d.data.sets import caption_words, record_bytes, shapes, shards, toy

RANGES = {'batches': Whole(1, 10**6, 'that are read'), 'batch': Whole(1, 10**4, 'records of a batch')}
VIEWS, SIZE, SHARD = 4, 16, 1000


def main(argv: list[str] | None = None) -> None:
    parser = parsing.Parser(prog='python -m launch.stream_figures', description=__doc__)
    parser.add_argument('--records', type=int, nargs='+', default=[1_000, 100_000], help='of each set (default: 1000 100000)')
    parser.add_argument('--batches', type=int, default=2000, help='that are read (default: 2000)')
    parser.add_argument('--batch', type=int, default=16, help='records of a batch (default: 16)')
    parser.add_argument('--measure', help='of a set that is there, in this process')
    args = parser.parse_args(argv)
    with parsing.refusing(parser):
        parsing.held(args, RANGES)
        if args.measure:
            return print(json.dumps(measured(args.measure, args.batches, args.batch)))
        print(
            f'| records | files | on disk | to open | memory after opening | after {args.batches} batches | records/s |'
        )
        print('|---|---|---|---|---|---|---|')
        for count in args.records:
            with tempfile.TemporaryDirectory() as folder:
                files = write(pathlib.Path(folder), count)
                told = subprocess.run(
                    [sys.executable, '-m', 'launch.stream_figures', '--measure', folder]
                    + ['--batches', str(args.batches), '--batch', str(args.batch)],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
                found = json.loads(told.splitlines()[-1])
            print(
                f'| {count:,} | {files["files"]} | {files["bytes"] / 2**20:.0f} MB | {1e3 * found["open"]:.0f} ms | '
                f'+{found["opened"]:.1f} MB | +{found["read"]:.1f} MB | {found["rate"]:,.0f} |',
                flush=True,
            )


def write(folder: pathlib.Path, count: int) -> dict[str, int]:
    """Writes a set of `count` objects, all different by a number in their pixels; returns its files and bytes."""
    from array_record.python import array_record_module

    scenes = shapes.singles('all')
    angles = np.linspace(0.0, 2.0 * np.pi, VIEWS, endpoint=False), np.full(VIEWS, 0.4)
    models = [toy.record(scene, *angles, SIZE) for scene in scenes]
    listed, counts = [], []
    for start in range(0, count, SHARD):
        number, captions = start // SHARD, []
        path = folder / f'train-{number:05d}.array_record'
        writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1,uncompressed')
        for index in range(start, min(start + SHARD, count)):
            record = {name: models[index % len(models)][name] for name in ('captions', 'image', 'world_from_cam', 'intrinsics')}
            record['image'] = record['image'].copy()
            record['image'][:, 0, 0, :3] = index // 65536, index // 256 % 256, index % 256  # behind alpha 0
            writer.write(record_bytes.encode({**record, 'name': f'{index}'}, 'png', at=[number, index - start]))
            captions += record['captions']
        writer.close()
        listed.append(shards.Shard(path.name, index + 1 - start, path.stat().st_size, ''))
        counts.append(caption_words.counted(captions))
    split = shards.Split(VIEWS, tuple(listed), caption_words.together(counts))
    index = {'format_version': shards.FORMAT, 'size': SIZE, 'splits': {'train': split.tree()}}
    (folder / shards.INDEX).write_text(json.dumps(index))
    return {'files': len(listed), 'bytes': sum(shard.bytes for shard in listed)}


def measured(folder: str, batches: int, batch: int) -> dict[str, float]:
    """Seconds to open, megabytes beyond those of the libraries after it and after reading, records a second, of a set."""
    import grain  # noqa: F401
    from array_record.python import array_record_module  # noqa: F401
    from PIL import Image  # noqa: F401

    names = ('data.name=records', f'data.path={folder}', f'data.size={SIZE}', f'data.views={VIEWS}', f'batch={batch}')
    config = configs.load('instant3d:tiny', names)
    before, began = resident(), time.monotonic()
    config = sources.resolve(config)
    source, transform = sources.make(config)
    opened, memory = time.monotonic() - began, resident() - before
    reading = pipeline.make(source, transform, batch=batch, seed=0)
    for _ in range(50):
        next(reading)
    began = time.monotonic()
    for _ in range(batches):
        next(reading)
    rate = batches * batch / (time.monotonic() - began)
    return {'open': opened, 'opened': memory, 'read': resident() - before, 'rate': rate}


def resident() -> float:
    """Megabytes of this process in memory."""
    import resource

    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


if __name__ == '__main__':
    main()
