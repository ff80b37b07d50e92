"""`t3d plan`: chips and meshes, bytes of each device, the roof line, whole plans, and what is refused."""

import json
import os
import pathlib
import sys
import time
from unittest.mock import ANY

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from small_cli import alone, refusal, said  # noqa: F401

from t3d.core import config as configs
from t3d.core import platforms
from t3d.core.errors import UsageError
from t3d.diffusion.prior import Prior
from t3d.inference import given as givens
from t3d.inference import loading, shapes
from t3d.plan import chips, hlo_cost, meshes, planner, programs, report, roofline, sweep
from t3d.plan import givens as abstract_givens

TINY = 'configs/instant3d.py:tiny'
ROOT = pathlib.Path(__file__).parent.parent
ASSETS = ROOT / 't3d/assets'
AT_ONCE = 30.0  # seconds, where docs/pods.md says 'at once': nothing was compiled, whatever else the machine does
PLANNER = ROOT / '.venv-plan/bin/python'  # of `make setup-plan`
SYSTEM = """
import dummy_system
from ml_collections import ConfigDict


def get_config():
    return ConfigDict(dummy_system.config(system='small_plan', width=64)).lock()


def make(config, given):
    return dummy_system.make(config.batch, width=config.width)
"""


@pytest.fixture
def own(tmp_path):
    """The config, in the working directory, of a system of one's own: two layers, cut by rules over fsdp and tensor."""
    (tmp_path / 'small_plan.py').write_text(SYSTEM)
    return 'small_plan.py'


# ------------------------------------------------------------------------------------------------------------------- chips


def test_topologies_and_the_vendors_names():
    assert chips.topology('v5e:16x16').count == chips.topology('v5litepod-256').count == 256
    assert chips.topology('v5p-128').name == 'v5p:4x4x4'  # the vendor counts two cores of each chip
    assert chips.topology('v4:4x4x4').ring(0) and not chips.topology('v5p:2x4x4').ring(1)
    assert chips.topology('v5e:16x16').ring(1) and not chips.topology('v5e:8x16').ring(0)
    for name, chip in chips.CHIPS.items():
        counts = [chips.topology(f'{name}:{shape}').count for shape in chip.shapes]
        assert counts == sorted(counts) and counts[-1] >= 256


@pytest.mark.parametrize(
    'text, said_so',
    [
        ('v5x:4x4', 'unknown chip .v5x.: there are v4, v5e, v5p, v6e.*Nearest: v5'),
        ('v5e:16x15', 'v5e has 2x2, .*Nearest: v5e:16x16'),
        ('v5e', 'Nearest: v5e:2x2'),
        ('v5p-100', 'Nearest: v5p-128, which is v5p:4x4x4'),
        ('h100:8', 'unknown chip'),
        ('cpu:0', 'wanted cpu:N'),
    ],
)
def test_unknown_topologies_are_refused_with_the_nearest(text, said_so):
    with pytest.raises(UsageError, match=said_so):
        chips.topology(text)


# ------------------------------------------------------------------------------------------------------------------ meshes


def test_meshes_that_do_not_divide_are_refused_with_the_nearest():
    v5e = chips.topology('v5e:4x4')
    assert meshes.resolve(meshes.parse('data=-1,fsdp=4'), v5e, 32) == {'data': 4, 'fsdp': 4, 'tensor': 1}
    with pytest.raises(UsageError, match=r'fsdp=2: 8 devices, and v5e:4x4 has 16. Nearest: --mesh data=(8,fsdp=2|4,fsdp=4)'):
        meshes.resolve(meshes.parse('data=4,fsdp=2'), v5e, 32)
    with pytest.raises(UsageError, match=r'batch 8 does not divide .* = 16 devices. Nearest: --mesh .*tensor=2, or batch=16'):
        meshes.resolve(meshes.parse('data=4,fsdp=4'), v5e, 8)
    with pytest.raises(UsageError, match="unknown mesh axis 'fdsp'. Did you mean 'fsdp'"):
        meshes.parse('fdsp=4')
    with pytest.raises(UsageError, match='wanted a whole number'):
        meshes.parse('data=two')


def test_bytes_of_each_device_are_those_of_hand_cut_arrays():
    tree = {
        'kernel': jax.ShapeDtypeStruct((64, 48), np.float32),  # by the rule: 64 over fsdp, 48 over tensor
        'odd': {'kernel': jax.ShapeDtypeStruct((9, 48), np.float32)},  # 9 does not divide: over tensor alone
        'large': jax.ShapeDtypeStruct((3, 1024, 256), np.float32),  # no rule: its largest axis over fsdp
        'bias': jax.ShapeDtypeStruct((48,), np.float32),  # below the floor: whole
    }
    rules, sizes = ((r'kernel$', P('fsdp', 'tensor')),), {'data': 2, 'fsdp': 4, 'tensor': 2}
    by_hand = 4 * (64 * 48 // 8 + 9 * 48 // 2 + 3 * 1024 * 256 // 4 + 48)
    assert meshes.bytes_each(tree, rules, sizes, floor=2**16) == by_hand
    assert meshes.undivided(tree, rules, sizes, 2**16) == [(9 * 48 * 4, 'odd/kernel (9, 48) over fsdp=4')]
    assert not meshes.undivided({'odd': tree['odd']}, rules, {**sizes, 'fsdp': 3}, 2**16)


def test_bytes_of_a_configs_arguments_are_those_that_the_compiler_takes(own):
    plan = planner.make(configs.load(own), chips.topology('cpu:8'), {'data': 2, 'fsdp': 2, 'tensor': 2}, log=lambda line: None)
    one = plan['programs']['train_step']
    kernels = 8 * 64 // 4 + 64 * 3 // 2  # the second one's 3 outputs do not divide over tensor
    assert plan['bytes']['params'] == 4 * (kernels + 64 // 2 + 3) and plan['bytes']['batch'] == 4 * 4 * (8 + 3)
    assert plan['undivided'] == {'arrays': 4, 'bytes': 4 * 4 * 64 * 3, 'largest': ANY, 'better': 'data=4,fsdp=2'}
    key, step = 8, 4
    assert one['argument_bytes'] == sum(plan['bytes'].values()) + key + step and plan['fits'] is None
    text = report.text(plan)
    assert (
        'virtual devices of this processor' in text and 'all-gather over ' in text and 'with --mesh data=4,fsdp=2 all' in text
    )
    json.dumps(plan)


# --------------------------------------------------------------------------------------------------------------- roof line


def collective(kind, size, *groups):
    return hlo_cost.Collective(kind, size, groups)


def test_the_roof_line_by_arithmetic():
    v5e = chips.topology('v5e:4x4')  # lines of 4: no ring
    places = np.array([(k // 4, k % 4) for k in range(16)])
    row, every = (0, 1, 2, 3), tuple(range(16))
    link = 50e9
    times = {
        collective('all-gather', 8_000, row): 8_000 * 3 / 4 / link,
        collective('reduce-scatter', 8_000, row): 8_000 * 3 / 4 / link,
        collective('all-reduce', 8_000, row): 2 * 8_000 * 3 / 4 / link,
        collective('all-reduce', 8_000, every): 2 * 8_000 * 15 / 16 / (2 * link),
        collective('all-to-all', 8_000, row): 8_000 * 4 / 4 / link,
        collective('collective-permute', 8_000, (0, 1), (0, 10)): 4 * 8_000 / link,  # two rows and two columns
        collective('all-reduce', 8_000, (3,)): 0.0,
    }
    for one, seconds in times.items():
        assert roofline.seconds(one, v5e, places) == pytest.approx(seconds), one
    line = roofline.of(hlo_cost.Cost(197e12, 819e9 * 2, {next(iter(times)): 5}, 0), v5e, places)
    assert (line.compute, line.memory, line.bound) == (1.0, 2.0, 'memory')
    assert line.links == {'all-gather': pytest.approx(5 * 8_000 * 3 / 4 / link)}
    assert line.least == 2.0 and line.most == pytest.approx(3.0 + line.collectives)


def test_rings_have_links_in_both_directions():
    places = np.array([(k // 16, k % 16) for k in range(256)])
    whole, half = collective('all-gather', 1600, tuple(range(16))), collective('all-gather', 1600, tuple(range(8)))
    v5e = chips.topology('v5e:16x16')
    assert roofline.seconds(whole, v5e, places) == pytest.approx(1600 * 15 / 16 / 100e9)
    assert roofline.seconds(half, v5e, places) == pytest.approx(1600 * 7 / 8 / 50e9)  # half of a ring is a line
    assert roofline.seconds(collective('collective-permute', 1600, (0, 15)), v5e, places) == pytest.approx(1600 / 50e9)


# ------------------------------------------------------------------------------------------------------------ given models


def test_a_prior_by_its_sizes_has_stable_diffusions_parameters_and_no_arrays():
    config = configs.load('configs/instant3d.py:pod_sds')
    with config.unlocked():
        config.text.words = ('a', 'cat')
    (one,) = abstract_givens.abstract(config).values()
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in one.params.items()}
    assert counts == {'text': 340_387_840, 'unet': 865_910_724, 'vae': 83_653_863}
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(one.params))
    assert isinstance(one.functions, Prior) and one.functions.shape(512) == (64, 64, 4)
    with pytest.raises(UsageError, match='given.prior=FOLDER, of Stable Diffusion'):
        givens.require_weights({'prior': one})
    with pytest.raises(UsageError, match='set text.length=77'):
        shapes.open_shapes('shapes:sd21', {**config.text.to_dict(), 'length': 8})
    with pytest.raises(UsageError, match='Nearest: shapes:sd21'):
        shapes.open_shapes('shapes:sd22')


def test_weights_of_a_folder_are_described_and_not_read(monkeypatch):
    from t3d.checkpoint import weights

    monkeypatch.setattr(loading, 'SHIPPED', ASSETS)
    monkeypatch.setattr(weights, 'load', lambda *args, **kwargs: pytest.fail('read'))
    config = configs.load('configs/instant3d.py:sds_trained')
    (one,) = abstract_givens.abstract(config).values()
    assert isinstance(one.functions, Prior)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(one.params))


def test_model_code_is_traced_for_the_planned_platform():
    assert platforms.name() == jax.default_backend()
    with platforms.planned('tpu'):
        assert platforms.name() == 'tpu'
    assert platforms.name() == jax.default_backend()


# ------------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def without_compiler(monkeypatch):
    monkeypatch.setattr(chips, 'has_compiler', lambda: False)


def test_a_plan_without_the_compiler_says_what_it_does_not_know(capsys, own, without_compiler):
    text = said(capsys, 'plan', own, '--topology', 'v5e:2x2', '--mesh', 'data=2,fsdp=2', '--json', 'plan.json')
    assert 'libtpu is not installed' in text and 'make setup-plan' in text and 'not known without libtpu' in text
    plan = json.loads(pathlib.Path('plan.json').read_text())
    assert plan['fits'] is None and plan['smallest'] is None and 'need_bytes' not in plan['programs']['train_step']
    forward = 2 * 16 * (8 * 64 + 64 * 3)
    assert plan['programs']['train_step']['model_flops'] == forward + 2 * forward - 2 * 16 * 8 * 64  # no gradient to the batch


def test_arguments_beyond_the_memory_of_a_chip_do_not_fit_with_or_without_the_compiler(without_compiler):
    plan = {'programs': {'train_step': {}}, 'bytes': {'params': 17 * 2**30}}
    planner._fit(plan, chips.topology('v5e:2x2'))
    assert plan['fits'] is False


def test_an_overflow_says_by_how_much_and_which_mesh_fits():
    error = programs.overflow('RESOURCE_EXHAUSTED: Used 19.25G of 15.75G hbm. Exceeded hbm capacity by 3.50G.')
    assert (error.need, error.have) == (19.25 * 2**30, 15.75 * 2**30)
    text = 'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (48.00G) exceeds '
    other = programs.overflow(f'{text}available HBM (15.75G).', 2**30)  # as libtpu 0.0.42.1 says it
    assert (other.need, other.have) == (49 * 2**30, 15.75 * 2**30)
    assert programs.overflow('RESOURCE_EXHAUSTED: of something').need is None
    plan = {'programs': {'train_step': {'overflow': {'need_bytes': error.need}, 'model_flops': 1}}, 'bytes': {'params': 2**30}}
    planner._fit(plan, chips.topology('v5e:2x2'))
    plan.update(topology='v5e:2x2', smallest=dict(topology='v5e:2x4', mesh='data=8', devices=8, need_bytes=1.0, compiled=False))
    text = '\n'.join(report._fit(plan))
    assert 'does not fit: 19.25 GiB needed, 3.50 GiB more than the 15.75 GiB of v5e' in text
    assert 'smallest mesh that fits this batch: v5e:2x4 --mesh data=8' in text


def test_the_smallest_mesh_by_estimate():
    """Half of a device's need is temporaries, which halve with the rows: two devices of 10 GiB each have room for one of 15."""

    class One:
        system, given, floor, config = None, {}, 0, {}

    plan = {'bytes': {'params': 5 * 2**30}, 'need_bytes': 10 * 2**30, 'fits': True}
    real, programs.bytes_of = programs.bytes_of, lambda one, sizes: {'params': 5 * 2**30}
    try:
        v5e, sizes = chips.topology('v5e:4x4'), {'data': 16, 'fsdp': 1, 'tensor': 1}
        small = planner.smallest(plan, One, v5e, sizes, 32, 0, False, print)
    finally:
        programs.bytes_of = real
    assert (small['topology'], small['devices'], small['compiled']) == ('v5e:2x4', 8, False)  # 5 + 2 x 5 GiB; on 4 they need 25
    assert small['need_bytes'] == 15 * 2**30


def test_after_an_overflow_other_meshes_of_the_same_slice_come_first():
    v5e = chips.topology('v5e:2x2')
    tried = list(meshes.candidates(v5e, {'data': 4, 'fsdp': 1, 'tensor': 1}, 8, wider=True))
    assert [mesh['fsdp'] for other, mesh in tried if other == v5e] == [2, 4] and tried[2][0].name == 'v5e:2x4'
    assert all(other.count <= 4 for other, _ in meshes.candidates(v5e, {'data': 4, 'fsdp': 1, 'tensor': 1}, 8, wider=False))


@pytest.mark.parametrize(
    'words, wanted',
    [
        (['--config', 'configs/instant4d.py:tiny'], 'instant3d'),
        (['--config', 'configs/instant3d.py:pot'], "Did you mean 'pod'"),
        (['--config', TINY, 'bach=4'], "Did you mean 'batch'"),
        (['--config', TINY, '--topology', 'v7:2x2'], 'unknown chip'),
        (['--config', TINY, '--mesh', 'data=3'], 'Nearest: --mesh'),
        (['--config', TINY, '--mesh', 'data=4', 'fsdp=4'], '--table FILE.md'),
        (['--config', TINY, '--mesh', 'data=-1,fsdp=-1'], 'data and fsdp are -1, and the rest is one number'),
        (['--config', TINY, '--mesh', 'data=2,fsdp=2,data=2'], 'data has two sizes: give each axis once'),
        (['--config', TINY, '--batch', '8'], '--table FILE.md'),
        (['--config', TINY, '--batch', '8', '-8', '--table', 'x.md'], '--batch -8: wanted a whole number from 1'),
        (['--config', TINY, '--batch', '0', '--table', 'x.md'], '--batch 0: wanted a whole number from 1'),
        (['--config', TINY, '--table', '.'], '--table . is a folder: give the name of a file'),
        (['--config', TINY, '--tries', '-1'], '--tries'),
        (['--topology', 'v5e:2x2'], 'no config: give one'),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_sentence(capsys, words, wanted, without_compiler):
    rest = [] if '--topology' in words else ['--topology', 'v5e:2x2']
    rest += [] if '--mesh' in words else ['--mesh', 'data=4']
    began = time.monotonic()
    assert wanted in refusal(capsys, 'plan', *words, *rest)
    assert time.monotonic() - began < AT_ONCE


def test_a_system_that_only_samples_has_no_step_to_plan(monkeypatch):
    class Sampler:
        train_step = None

    monkeypatch.setattr(programs.systems, 'make', lambda config, given: Sampler)
    with pytest.raises(UsageError, match='guided_mv has nothing to train'):
        programs.model(configs.load('configs/guided_mv.py:tiny'), {})


# --------------------------------------------------------------------------------------------------------------- the table


def test_a_table_is_filled_row_by_row_and_rows_that_are_there_are_kept(tmp_path, monkeypatch):
    calls = []

    def planned(cell, *args):
        calls.append(cell)
        return None, f'no {cell.topology}|'

    monkeypatch.setattr(sweep, 'plan', planned)
    cells = [sweep.Cell(TINY, (), name, 'data=4', 8) for name in ('v5e:2x2', 'v6e:2x2')]
    path, settings = tmp_path / 'pods.md', dict(tries=0, quick=True, limit=5.0, log=lambda line: None)
    assert sweep.run(cells[:1], path, **settings) == 1
    path.write_text(f'# A page\n\n{path.read_text()}\nThe end.\n')
    assert sweep.run(cells, path, **settings) == 1 and calls == cells
    text = path.read_text()
    assert text.startswith('# A page\n\n| config') and text.endswith('\nThe end.\n')
    assert [row[:5] for row in sweep.rows(path)] == [
        ['`instant3d:tiny`', name, 'data=4', '8', f'not planned: no {name}/'] for name in ('v5e:2x2', 'v6e:2x2')
    ]
    path.write_text('# Another page\n')
    with pytest.raises(UsageError, match='holds no table of plans'):
        sweep.run(cells, path, **settings)


def test_a_plan_in_a_process_of_its_own_comes_back_or_says_why(monkeypatch):
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    made, why = sweep.plan(sweep.Cell('configs/instant3d.py:pot', (), 'cpu:2', 'data=2', 8), 0, False, 120.0)
    assert made is None and "Did you mean 'pod'" in why
    made, why = sweep.plan(sweep.Cell(TINY, (), 'cpu:2', 'data=2', 8), 0, False, 0.2)
    assert made is None and 'stopped after' in why


@pytest.mark.skipif(not (chips.has_compiler() or PLANNER.exists()), reason='libtpu is not installed: make setup-plan')
def test_a_tiny_plan_for_a_tpu_and_one_that_has_no_room(monkeypatch, own):
    """Of a system of one's own, in processes of their own, as libtpu wants them."""
    monkeypatch.delenv('T3D_TYPECHECK', raising=False)
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}{os.pathsep}{ROOT / "tests"}')
    python = sys.executable if chips.has_compiler() else str(PLANNER)
    cell = sweep.Cell(own, (), 'v5e:2x2', 'data=2,fsdp=2', 16)
    plan, why = sweep.plan(cell, 0, False, 600.0, python)
    assert plan, why
    one = plan['programs']['train_step']
    assert plan['fits'] and plan['compiler'].startswith('libtpu') and plan['hbm_bytes'] == 15.75 * 2**30
    assert 0 < one['argument_bytes'] < one['need_bytes'] < 2**28
    assert {row['kind'] for row in one['collectives']} & {'all-gather', 'all-reduce'}
    assert one['roofline']['least_seconds'] > 0.0 and plan['smallest']['devices'] == 4
    large = cell._replace(overrides=('width=65536',), batch=2**18)  # activations of 16 GiB on each of four chips
    plan, why = sweep.plan(large, 0, False, 600.0, python)
    assert plan, why
    assert plan['fits'] is False and plan['need_bytes'] > plan['hbm_bytes'] and plan['smallest']['devices'] > 4
    assert 'does not fit: ' in report.text(plan) and 'more than the 15.75 GiB of v5e' in report.text(plan)
