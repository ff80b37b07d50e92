"""Benchmarks on a machine with JAX, ml_collections and nothing that is optional: figures of made-up data, which say so."""

import json
import os
import subprocess
import sys

from test_imports import OPTIONAL, ROOT

from t3d import systems
from t3d.bench import start, train
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
