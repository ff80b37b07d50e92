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

from t3d.build import pack_records
from t3d.core import config as configs
from t3d.core import parsing
from t3d.core.rules import Whole
from t3d.data import pipeline, sources
from t3d.data.sets import caption_words, record_bytes, shapes, shards, toy

RANGES = {'batches': Whole(1, 10**6, 'that are read'), 'batch': Whole(1, 10**4, 'records of a batch')}
VIEWS, SIZE, SHARD = 4, 16, 2000


def main(argv: list[str] | None = None) -> None:
    parser = parsing.Parser(prog='python -m launch.stream_figures', description=__doc__)
    parser.add_argument('--records', type=int, nargs='+', default=[1_000, 100_000], help='of each set (default: 1000 100000)')
    parser.add_argument('--batches', type=int, default=2000, help='that are read (default: 2000)')
    parser.add_argument('--batch', type=int, default=16, help='records of a batch (default: 16)')
    parser.add_argument('--config', default='instant3d:tiny', help='that reads the sets (default: instant3d:tiny)')
    parser.add_argument('--measure', help='of a set that is there, in this process')
    args = parser.parse_args(argv)
    with parsing.refusing(parser):
        parsing.held(args, RANGES)
        if args.measure:
            return print(json.dumps(measured(args.measure, args.config, args.batches, args.batch)))
        read = f'after {args.batches} batches | records/s | of the processor'
        print(f'| records | files | on disk | to open | memory after opening | {read} |')
        print('|---|---|---|---|---|---|---|---|')
        for count in args.records:
            with tempfile.TemporaryDirectory() as folder:
                files = write(pathlib.Path(folder), count)
                told = subprocess.run(
                    [sys.executable, '-m', 'launch.stream_figures', '--measure', folder, '--config', args.config]
                    + ['--batches', str(args.batches), '--batch', str(args.batch)],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
                found = json.loads(told.splitlines()[-1])
            print(
                f'| {count:,} | {files["files"]} | {files["bytes"] / 2**20:.0f} MB | {1e3 * found["open"]:.0f} ms | '
                f'+{found["opened"]:.1f} MB | +{found["read"]:.1f} MB | {found["rate"]:,.0f} | {found["of_processor"]:,.0f} |',
                flush=True,
            )


def write(folder: pathlib.Path, count: int) -> dict[str, int]:
    """Writes a set of `count` objects, the 64 of the toy set under numbers of their own; returns its files and bytes."""
    from array_record.python import array_record_module

    scenes = shapes.singles('all')
    angles = np.linspace(0.0, 2.0 * np.pi, VIEWS, endpoint=False), np.full(VIEWS, 0.4)
    names = ('captions', 'image', 'world_from_cam', 'intrinsics')
    models = [toy.record(scene, *angles, SIZE) for scene in scenes]
    encoded = [record_bytes.encode({name: model[name] for name in names}, 'png') for model in models]
    listed, counts = [], []
    for start in range(0, count, SHARD):
        number, captions = start // SHARD, []
        path = folder / f'train-{number:05d}{pack_records.SUFFIX}'
        writer = array_record_module.ArrayRecordWriter(str(path), pack_records.WRITER)
        for index in range(start, min(start + SHARD, count)):
            writer.write(with_facts(encoded[index % len(models)], name=f'{index}', at=[number, index - start]))
            captions += models[index % len(models)]['captions']
        writer.close()
        listed.append(shards.Shard(path.name, index + 1 - start, path.stat().st_size, ''))
        counts.append(caption_words.counted(captions))
    split = shards.Split(VIEWS, tuple(listed), caption_words.together(counts))
    index = {'format_version': shards.FORMAT, 'size': SIZE, 'splits': {'train': split.tree()}}
    (folder / shards.INDEX).write_text(json.dumps(index))
    return {'files': len(listed), 'bytes': sum(shard.bytes for shard in listed)}


def with_facts(data: bytes, **facts) -> bytes:
    """The bytes of a record that says more; its pictures are not encoded again."""
    end = record_bytes.LENGTH + int.from_bytes(data[: record_bytes.LENGTH], 'little')
    head = json.dumps({**json.loads(data[record_bytes.LENGTH : end]), **facts}).encode()
    return len(head).to_bytes(record_bytes.LENGTH, 'little') + head + data[end:]


def measured(folder: str, spec: str, batches: int, batch: int) -> dict[str, float]:
    """What a set costs in this process.

    Returns:
      open: seconds of the processor until the first batch can be asked for; opened, read: megabytes beyond those of the
      libraries, then and after reading; rate, of_processor: records a second, and a second of the processor.
    """
    import grain  # noqa: F401
    from array_record.python import array_record_module  # noqa: F401
    from PIL import Image  # noqa: F401

    names = ['data.name=records', 'data.split=train', f'data.path={folder}', f'data.size={SIZE}', f'batch={batch}']
    single = configs.load(spec).data.get('kind') == 'single_view'
    config = configs.load(spec, names if single else [*names, f'data.views={VIEWS}'])
    before, began = resident(), time.process_time()
    config = sources.resolve(config)
    source, transform = sources.make(config)
    opened, memory = time.process_time() - began, resident() - before
    reading = pipeline.make(source, transform, batch=batch, seed=0)
    for _ in range(50):
        next(reading)
    began, worked = time.monotonic(), time.process_time()
    for _ in range(batches):
        next(reading)
    rates = {
        'rate': batches * batch / (time.monotonic() - began),
        'of_processor': batches * batch / (time.process_time() - worked),
    }
    return {'open': opened, 'opened': memory, 'read': resident() - before, **rates}


def resident() -> float:
    """Megabytes of this process in memory."""
    import resource

    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


if __name__ == '__main__':
    main()
