"""The pinned versions of each Python agree with requirements.txt: an edit of one without the other fails here, not in pip."""

import pathlib
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(ROOT.glob('constraints-*.txt'))


def lines(path: pathlib.Path) -> list[Requirement]:
    """The requirements of a file, without comments."""
    bare = (line.split('#')[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in bare if line]


def test_the_two_tracks_have_a_file_each():
    assert [path.name for path in FILES] == ['constraints-3.11.txt', 'constraints-3.12.txt']


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_requirement_is_pinned_within_its_range(path):
    version = path.stem.removeprefix('constraints-')
    pins = {canonicalize_name(line.name): str(line.specifier).removeprefix('==') for line in lines(path)}
    environment = {'python_version': version, 'python_full_version': f'{version}.0'}
    for required in lines(ROOT / 'requirements.txt'):
        if required.marker is None or required.marker.evaluate(environment):
            pin = pins.get(canonicalize_name(required.name))
            assert pin and required.specifier.contains(pin), f'{path.name} pins {required.name} to {pin}; wanted {required}'


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_pins_are_exact_sorted_and_of_run_time_packages_only(path):
    names = [line.name for line in lines(path)]
    assert names == sorted(names) == [canonicalize_name(name) for name in names]
    assert all(str(line.specifier).startswith('==') and '*' not in str(line.specifier) for line in lines(path))
    assert not {'t3d', 'torch', 'pytest'} & set(names)


@pytest.mark.skipif(shutil.which('make') is None, reason='needs make')
def test_make_hands_pip_the_file_of_the_running_python():
    """And nothing on a Python without a file."""
    rule = 'show: ; @echo $(CONSTRAINTS)'
    option = subprocess.run(
        ['make', '--silent', '--eval', rule, 'show', f'BIN={pathlib.Path(sys.executable).parent}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    name = 'constraints-{}.{}.txt'.format(*sys.version_info)
    assert option == (f'-c {name}' if (ROOT / name).exists() else '')
