"""Benchmarks on a machine with JAX, ml_collections and nothing that is optional: figures of made-up data, which say so."""

import json
import os
import shlex
import subprocess
import sys

import pytest
from test_imports import OPTIONAL, ROOT

from t3d import systems
from t3d.bench import gpu, series, start, train
from t3d.core import config as configs
from t3d.plan import dry_run

LACKING = tuple(name for name in OPTIONAL if name != 'ml_collections')
BARE = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if any(name == one or name.startswith(one + '.') for one in {LACKING!r}):
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Block())
"""
# What a machine with PyTorch and JAX alone does not have; its Python finds none of it, as if it was not installed.
MACHINE_LACKS = (
    *('diffusers', 'transformers', 'grain', 'array_record', 'tensorflow', 'tensorflow_datasets', 'tensorboard', 'tensorboardX'),
    *('xatlas', 'imageio', 'trimesh', 'viser', 'gradio', 'embreex', 'beartype', 'hypothesis', 'skimage', 'tokenizers'),
)
HIDDEN = f"""
import sys
class Hidden:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition('.')[0] in {MACHINE_LACKS!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Hidden(finder) for finder in sys.meta_path]
"""
BENCH = 'from t3d import cli\nsys.exit(cli.main(["bench", *sys.argv[1:]]))'
SMALL = (
    'batch=2',
    'text.width=16',
    'text.layers=1',
    'text.heads=2',
    'unet.block_out_channels=(16,)',
    'unet.layers_per_block=1',
    'unet.attention_levels=(True,)',
    'unet.attention_head_dim=2',
    'unet.cross_attention_dim=16',
    'unet.norm_num_groups=4',
    'data.size=8',
)
TOY, FURNITURE = 'configs/image_diffusion.py:tiny', 'configs/image_diffusion.py:furniture'
START = 'from t3d.bench import start\nsys.exit(start.one(sys.argv[1:], start.ALONE, 0.0))'


def bare(folder, code: str, *words: str) -> str:
    """What a program prints where nothing optional can be imported, its data in a folder."""
    mine = {'T3D_DATA': str(folder), 'JAX_NUM_CPU_DEVICES': '1', 'T3D_TYPECHECK': '0'}
    command = [sys.executable, '-c', BARE + code, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **mine})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_packages_that_read_data_are_blocked(tmp_path):
    code = """
for name in ('grain', 'tensorflow_datasets', 'transformers', 'torch'):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        print(error.name)
"""
    assert bare(tmp_path, code).split() == ['grain', 'tensorflow_datasets', 'transformers', 'torch']


def test_a_set_that_is_not_built_is_said_to_be_so(tmp_path):
    code = """
from t3d.data.sets import furniture_source
try:
    furniture_source.FurnitureSource()
except FileNotFoundError as error:
    print(error)
"""
    assert bare(tmp_path, code).startswith(f'no furniture data under {tmp_path} (there: nothing built)')


def test_words_stand_in_for_a_set_that_nothing_installed_reads(monkeypatch, capsys):
    def lacks(*args):
        raise ModuleNotFoundError("No module named 'tensorflow_datasets'")

    monkeypatch.setattr(dry_run.sources, 'resolve', lacks)
    monkeypatch.setattr(dry_run.sources, 'make', lacks)
    config = dry_run.resolve(configs.load(FURNITURE))
    assert dry_run.has_made_up_words(config) and "note: No module named 'tensorflow_datasets'" in capsys.readouterr().out
    assert dry_run.data(config, systems.make(config)) == "data: not here: No module named 'tensorflow_datasets'"


def test_a_train_step_of_a_set_that_is_not_built(tmp_path):
    file = tmp_path / 'figures.jsonl'
    words = ['--config', FURNITURE, *SMALL, '--repeats', '1', '--steps', '1', '--json', str(file)]
    assert 'note: no furniture data size=8 ' in bare(tmp_path, BENCH, 'train', *words)
    figures = json.loads(file.read_text())['figures']
    assert figures['data'] == 'made up' and figures['row']['t3d_ms'][0] > 0 and figures['row']['gflop'] > 0
    assert figures['attentions by cuDNN'] == 0


def test_a_first_step_of_toy_data(tmp_path):
    *notes, figures = bare(tmp_path, START, TOY, *SMALL).splitlines()
    seconds, data = json.loads(figures)
    assert "note: No module named 'grain'" in notes and data == 'made up' and seconds > 0


def test_the_figures_of_a_start_say_what_its_data_are(tmp_path, monkeypatch, capsys):
    file, seconds = tmp_path / 'figures.jsonl', iter((4.0, 3.0, 2.0, 1.0))
    monkeypatch.setattr(start, '_process', lambda *words: (next(seconds), 'made up'))
    assert start.main(['--repeats', '1', '--config', TOY, '--json', str(file)]) == 0
    figures = json.loads(file.read_text())['figures']
    assert figures.pop('data') == 'made up' and [one for (one,) in figures.values()] == [4.0, 3.0, 2.0, 1.0]
    assert capsys.readouterr().out.endswith('| the step alone, warm | 1.0 [1.0, 1.0] |\n\ndata: made up\n')


def test_the_attentions_that_cudnn_computes_are_counted():
    call = 'custom-call(f32[3]{0} %x), custom_call_target="TARGET", api_version=API_VERSION_ORIGINAL'
    forward, backward, others = (
        call.replace('TARGET', name) for name in ('__cudnn$fmhaSoftmax', '__cudnn$fmhaSoftmaxBackward', '__cudnn$convForward')
    )
    assert train.by_cudnn('\n'.join([forward, others, backward, backward])) == 3 and train.by_cudnn(others) == 0


@pytest.fixture
def on_a_bare_machine(tmp_path, monkeypatch):
    """Every Python that is started finds nothing of MACHINE_LACKS; returns a file for figures."""
    (tmp_path / 'sitecustomize.py').write_text(HIDDEN)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), str(ROOT)]))
    for name, value in {'T3D_DATA': str(tmp_path), 'JAX_NUM_CPU_DEVICES': '1', 'T3D_TYPECHECK': '0'}.items():
        monkeypatch.setenv(name, value)
    code = f'import importlib.util as u\nfor name in {MACHINE_LACKS!r}: assert u.find_spec(name) is None, name'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
    return tmp_path / 'gpu.jsonl'


def of_the_plan(start: str) -> list[str]:
    """The words of the first benchmark of a rehearsal that begin so."""
    return next(words for words in gpu.plan(True) if shlex.join(words).startswith(start))


def test_the_series_runs_on_a_bare_machine(on_a_bare_machine, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = of_the_plan('roof')
    assert series.one(words, on_a_bare_machine, 300.0) is None
    assert series.read(on_a_bare_machine)[-1]['asked'] == words


@pytest.mark.slow
@pytest.mark.parametrize('start', ['unet --sizes tiny --check', 'train', 'sds --check'])
def test_others_of_the_series_run_on_a_bare_machine(on_a_bare_machine, monkeypatch, start):
    monkeypatch.chdir(ROOT)
    assert series.one(of_the_plan(start), on_a_bare_machine, 600.0) is None
    (line,) = series.read(on_a_bare_machine)
    known = {'train': None, 'unet': None, 'sds': 'diffusers is not installed: pip install "t3d[test]"'}
    assert line.get('no peer') == known[line['benchmark']]
