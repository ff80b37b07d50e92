"""The optimizer's state in the host's memory: the same bits, resumed both ways, its bytes in plans, and what is refused."""

import os
import re
import sys
import types

import dummy_system
import jax
import numpy as np
import pytest
import test_image_diffusion as small
from jax.sharding import PartitionSpec as P
from small_cli import alone  # noqa: F401
from test_plan import PLANNER, ROOT, SYSTEM

from t3d import systems
from t3d.checkpoint import digests
from t3d.checkpoint import store as stores
from t3d.core import config as configs
from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.parallel import devices, offload
from t3d.plan import chips, dry_run, planner, programs, report, sweep
from t3d.train import failures, loop, states
from t3d.train import program as compiled

ON, MESH = 'optimizer', {'data': 2, 'fsdp': 4, 'tensor': 1}
ADAM = [f'opt_state/0/{moment}/layer_{layer}/kernel' for moment in ('mu', 'nu') for layer in ('in', 'out')]
BIASES = [name.replace('kernel', 'bias') for name in ADAM]


@pytest.fixture
def own(tmp_path):
    """The config, in the working directory, of a system of one's own that has the key."""
    (tmp_path / 'small_plan.py').write_text(SYSTEM.replace('width=64)', "width=64, offload='')"))
    return 'small_plan.py'


def run(folder, lines=(), **changes):
    """The digest of every leaf of the state that a run of the dummy ends with."""
    write = lines.append if isinstance(lines, list) else lambda line: None
    loop.run(dummy_system.config(**changes), folder, system=dummy_system.make(), data=dummy_system.DATA, log=write)
    store = stores.Store(folder / 'checkpoints', read_only=True)
    try:
        return {name: leaf['digest'] for name, leaf in store.describe()[0]['leaves'].items()}
    finally:
        store.close()


def target(**changes):
    settings = configs.from_dict(dummy_system.config(**changes))
    mesh = devices.make(settings.mesh)
    return settings, mesh, states.abstract(settings, dummy_system.make(), mesh)


def memories(state):
    return {name: leaf.sharding.memory_kind for name, leaf in tree.flatten(state).items()}


def on_host(state):
    return sorted(name for name, kind in memories(state).items() if kind == 'pinned_host')


def test_arrays_of_the_optimizer_go_and_counts_and_small_ones_stay():
    large = 32 * 3 * 4  # bytes of the smaller kernel; the larger bias has 128
    assert on_host(target(offload=ON, fsdp_floor=large)[2]) == sorted(ADAM)
    assert on_host(target(offload=ON, fsdp_floor=large + 1)[2]) == [ADAM[0], ADAM[2]]
    assert on_host(target(offload=ON, fsdp_floor=0, mesh=MESH)[2]) == sorted(ADAM + BIASES)
    assert on_host(target(offload='')[2]) == on_host(target()[2]) == []
    abstract = target(offload=ON, fsdp_floor=0, mesh=MESH)[2]
    specs = [tree.flatten(abstract)[name].sharding.spec for name in (ADAM[0], 'params/layer_in/kernel')]
    assert specs == [P(None, ('fsdp', 'tensor'))] * 2  # where on the mesh is not touched


@pytest.mark.parametrize('mesh', [{'data': 1, 'fsdp': 1, 'tensor': 1}, MESH], ids=['1', '8'])
def test_a_run_ends_with_the_same_bits_and_goes_on_with_and_without(tmp_path, mesh):
    plain, lines = run(tmp_path / 'plain', mesh=mesh), []
    assert run(tmp_path / 'offloaded', lines, mesh=mesh, offload=ON) == plain
    assert mesh is not MESH or any('of these in the memory of its host' in line for line in lines)
    run(tmp_path / 'first', mesh=mesh, steps=4, offload=ON)
    assert run(tmp_path / 'first', lines, mesh=mesh) == plain
    run(tmp_path / 'second', mesh=mesh, steps=4)
    assert run(tmp_path / 'second', lines, mesh=mesh, offload=ON) == plain
    assert lines.count('resuming from step 4') == 2


def test_a_state_is_made_stepped_and_restored_in_the_right_memory(tmp_path):
    settings, mesh, abstract = target(offload=ON, mesh=MESH)
    system, batch = dummy_system.make(), {'x': np.ones((16, 8), np.float32), 'y': np.ones((16, 3), np.float32)}
    with jax.set_mesh(mesh):
        state = states.fresh(settings, system, abstract)
        assert memories(state) == memories(abstract) and len(on_host(state)) == 6  # the biases of 3 numbers stay
        state, _ = compiled.Program(settings, system, mesh, abstract)(state, batch)
        assert memories(state) == memories(abstract)
    store = stores.Store(tmp_path, weights=('ema',))
    store.save(state, data={'position': 1}, config={})
    store.wait()
    for wanted in (abstract, target(mesh=MESH)[2]):
        restored = store.restore(wanted).state
        assert memories(restored) == memories(wanted)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))
    store.close()
    assert digests.inspect(state)[0] == digests.inspect(restored)[0]  # of both memories


@pytest.mark.slow
def test_a_system_with_many_arrays_steps_with_the_same_bits():
    found = []
    for what in ('', ON):
        settings = small.config(f'offload={what}', 'fsdp_floor=0', 'mesh.data=1')
        system, mesh, batch = systems.make(settings), devices.make(settings.mesh), small.batch()
        with jax.set_mesh(mesh):
            abstract = states.abstract(settings, system, mesh)
            program, state = compiled.Program(settings, system, mesh, abstract), states.fresh(settings, system, abstract)
            for number in range(2):
                state, metrics = program(state, jax.device_get(batch), number)
        assert len(on_host(state)) == (0 if not what else sum(leaf.ndim > 0 for leaf in jax.tree.leaves(state.opt_state)))
        found.append(jax.device_get((state, metrics)))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_a_step_lowered_for_a_tpu_copies_each_array_there_and_back():
    """Counted in the text of the program, on which this platform has no say."""
    _, mesh, abstract = target(offload=ON, fsdp_floor=64, mesh=MESH)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def step(state):
        state = offload.fetched(state)
        return offload.returned(jax.tree.map(lambda leaf: leaf * 2, state), placed)

    traced = jax.jit(step, donate_argnums=0, out_shardings=placed).trace(abstract)
    text = traced.lower(lowering_platforms=('tpu',)).as_text()
    assert len(re.findall(r'@annotate_device_placement\(%arg\d+\).*_xla_buffer_placement = "device"', text)) == 6
    assert (
        len(re.findall(r'(%\d+) = stablehlo.optimization_barrier .*\n.*@annotate_device_placement\(\1\).*"pinned_host"', text))
        == 6
    )
    assert len(on_host(abstract)) == 6


def test_what_has_no_such_memory_is_refused_and_what_could_be_set_is_said(monkeypatch):
    device = types.SimpleNamespace(platform='abacus', addressable_memories=lambda: [types.SimpleNamespace(kind='beads')])
    mesh = types.SimpleNamespace(devices=np.array([[[device]]]))
    leaf, where = {'opt_state': {'mu': np.zeros(4)}}, {'opt_state': {'mu': types.SimpleNamespace(mesh=mesh)}}
    with pytest.raises(UsageError, match=r"'optimizer': devices of the platform abacus have the memories beads, and pinned"):
        offload.place(leaf, where, ON, 0)
    assert offload.place(leaf, where, ON, 33) == where  # nothing large enough to go
    with pytest.raises(UsageError, match=r"offload='optimiser'.*Did you mean 'optimizer'|offload.*optimizer"):
        configs.load('configs/instant3d.py:tiny', ['offload=optimiser'])
    error = RuntimeError('RESOURCE_EXHAUSTED: Out of memory')
    settings = configs.from_dict(dummy_system.config(offload=''))
    assert 'offload' not in str(failures.out_of_memory(error, settings))  # a CPU has one memory
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    assert str(failures.out_of_memory(error, settings)).endswith(', offload=optimizer.')


# ------------------------------------------------------------------------------------------------------------------- plans


def plan(spec, *overrides):
    sizes = {'data': 2, 'fsdp': 2, 'tensor': 2}
    return planner.make(configs.load(spec, list(overrides)), chips.topology('cpu:8'), sizes, log=lambda line: None)


def test_a_plan_has_the_bytes_of_the_host_apart(own):
    plain, moved = plan(own), plan(own, 'offload=optimizer')
    kernels, biases = 8 * 64 // 4 + 64 * 3 // 2, 64 // 2  # 3 numbers of 12 bytes stay
    assert plain['host_bytes'] == {} and moved['host_bytes'] == {'opt_state': 2 * 4 * (kernels + biases)}
    assert moved['bytes'] == {**plain['bytes'], 'opt_state': 2 * 4 * 3 + 4}  # and Adam's count
    less = [one['programs']['train_step']['argument_bytes'] for one in (plain, moved)]
    assert less[0] - less[1] == moved['host_bytes']['opt_state']
    assert less[1] == sum(moved['bytes'].values()) + 8 + 4  # key and step
    assert "in the host's memory for each device: opt_state 2.00 KiB; a step moves" in report.text(moved), report.text(moved)
    assert "host's memory" not in report.text(plain)


def test_a_dry_run_says_what_lies_on_the_host(own):
    one = programs.model(configs.load(own, ['offload=optimizer', 'width=8192']), {})
    mesh = devices.make({'data': 1, 'fsdp': 2, 'tensor': 1})
    lines = dry_run.compiled(one.config, one.system, one.state, mesh, {})
    bytes_each = 2 * 4 * ((8 + 3) * 8192 // 2 + 8192)  # kernels cut in two; the bias has no rule, and 8,192 numbers divide
    bytes_each -= 2 * 4 * 8192 // 2
    assert lines[-1] == f"in the host's memory for each device: opt_state {bytes_each / 2**30:.3f} GiB"


@pytest.mark.slow
@pytest.mark.skipif(not (chips.has_compiler() or PLANNER.exists()), reason='libtpu is not installed: make setup-plan')
@pytest.mark.parametrize('mesh', ['data=4', 'data=1,fsdp=4'])
def test_compiled_for_a_tpu_the_arguments_fall_by_what_lies_on_the_host(monkeypatch, own, mesh):
    monkeypatch.delenv('T3D_TYPECHECK', raising=False)
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}{os.pathsep}{ROOT / "tests"}')
    python = sys.executable if chips.has_compiler() else str(PLANNER)
    made = []
    for what in ('', ON):
        cell = sweep.Cell(own, (f'offload={what}', 'width=65536', 'fsdp_floor=1000000'), 'v5e:2x2', mesh, 16)
        one, why = sweep.plan(cell, 0, False, 600.0, python)
        assert one, why
        made.append(one)
    host = made[1]['host_bytes']['opt_state']
    assert host == 2 * 4 * 65536 * 8 // (4 if 'fsdp' in mesh else 1)  # layer_in's kernel, 2 MiB
    less = [one['programs']['train_step'] for one in made]
    assert host <= less[0]['argument_bytes'] - less[1]['argument_bytes'] < 1.01 * host
