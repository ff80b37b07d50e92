"""A target of tests/fuzz.py: folders of posed pictures."""

import functools
import gzip
import json
import pathlib
import tempfile

import fuzz_mutations as mutate
import small_posed

from t3d.data.sets import posed


@functools.cache
def _files(layout: str) -> dict[str, bytes]:
    """{path: content} of a set of two views."""
    with tempfile.TemporaryDirectory() as name:
        small_posed.WRITERS[layout](pathlib.Path(name), small_posed.look(count=2, size=8))
        files = [path for path in sorted(pathlib.Path(name).rglob('*')) if path.is_file()]
        return {path.relative_to(name).as_posix(): path.read_bytes() for path in files}


def views(source, folder):
    """A folder of posed pictures in one of the layouts, with one or two of its files damaged."""
    layout = source.choice(list(small_posed.WRITERS))
    content = _files(layout)
    damaged = source.sample(sorted(content), source.randint(1, min(2, len(content))))
    for name, data in content.items():
        if name in damaged:
            data = _damaged(source, name, data)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    if source.random() < 0.3:
        text = mutate.text(source, source.choice(('{"object": "a red cube"}', 'uid,caption\nobject,a red cube\n')))
        (folder / source.choice(('captions.json', 'captions.csv'))).write_bytes(mutate.encoded(source, text))
    records = posed.PosedSource(folder, 'all', size=8, layout=source.choice(('auto', layout)))
    records.text(0)
    records[0]


def _damaged(source, name: str, data: bytes) -> bytes:
    if name.endswith('.jgz'):
        return gzip.compress(json.dumps(mutate.tree(source, json.loads(gzip.decompress(data)))).encode(errors='replace'))
    if name.endswith('.json') and source.random() < 0.8:
        return json.dumps(mutate.tree(source, json.loads(data))).encode(errors='replace')
    if name.endswith('.txt'):
        return mutate.encoded(source, mutate.text(source, data.decode()))
    return mutate.raw(source, data)
