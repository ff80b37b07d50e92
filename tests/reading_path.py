"""Counts what a reader of one walk of docs/architecture.md opens, and what runs: `python -m tests.reading_path [--run]`.

The page names the files of each walk in the order in which they are read; a name that is none of the package's, or several,
is an error. `--run` then trains Instant3D for two steps and generates from its shipped weights, sees which files' functions run
(helpers of all rooms with them), and fails if a file of a walk is not among them.
"""

import argparse
import os
import pathlib
import re
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / 'docs/architecture.md'
MOST_FILES, MOST_LINES = 20, 3500
SMALL = ('steps=2', 'preview_every=0', 'data.size=16', 'batch=2', 'loss.rays=16', 'render.samples=8', 'mesh.data=1')
WALKS = {
    't3d train': ('train', 'configs/instant3d.py:tiny', *SMALL, '--workdir', '{out}/run'),
    't3d generate': ('generate', 'a red cube', '--out', '{out}/made', '--grid', '32', '--frames', '0', '--texture', '0'),
}


def walks() -> dict[str, list[pathlib.Path]]:
    """{first words of the command: files in reading order}, from the section "Two walks"."""
    section = PAGE.read_text().split('## Two walks')[1].split('\n## ')[0]
    parts = re.split(r'^`(t3d \w+)[^`]*`:$', section, flags=re.M)[1:]
    return {command: _files(text) for command, text in zip(parts[::2], parts[1::2], strict=True)}


def _files(text: str) -> list[pathlib.Path]:
    files = []
    for name in re.findall(r'`([\w/]+\.py)`', text):
        places = [path for path in (ROOT / 't3d').rglob(pathlib.Path(name).name) if str(path).endswith(f'/{name}')]
        if len(places) != 1:
            raise SystemExit(f'{PAGE.name}: {name} is {len(places)} files of t3d: write it with its room.')
        files += [path for path in places if path not in files]
    return files


def lines(paths) -> int:
    """The number of lines of all files."""
    return sum(len(path.read_text().splitlines()) for path in paths)


def ran(words) -> set[pathlib.Path]:
    """The files of the package of which a function ran while the command did."""
    seen = set()

    def watch(frame, event, argument):
        if event == 'call' and frame.f_code.co_name != '<module>':
            seen.add(frame.f_code.co_filename)

    from t3d import cli

    with tempfile.TemporaryDirectory() as out:
        threading.setprofile(watch)
        sys.setprofile(watch)
        try:
            status = cli.main([word.format(out=out) for word in words])
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    if status:
        raise SystemExit(f't3d {words[0]} ended with status {status}')
    return {pathlib.Path(name) for name in seen if name.startswith(f'{ROOT / "t3d"}{os.sep}')}


def main() -> int:
    """Prints the counts; 1 if a walk is too long, or names a file that did not run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--run', action='store_true', help='also run both commands and count what runs')
    args, bad = parser.parse_args(), False
    for command, paths in walks().items():
        print(f'{command}: {len(paths)} files, {lines(paths)} lines to read')
        bad |= len(paths) > MOST_FILES or lines(paths) > MOST_LINES
        if args.run:
            executed = ran(WALKS[command])
            print(f'{command}: {len(executed)} files, {lines(executed)} lines of which a function runs')
            for path in (path for path in paths if path not in executed):
                bad = True
                print(f'  {path.relative_to(ROOT)} is in the walk and does not run')
    return int(bad)


if __name__ == '__main__':
    sys.exit(main())
