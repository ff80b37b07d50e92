"""Traced functions on disk: the same bits as a plain trace, found again only where nothing has changed."""

import contextlib
import functools
import json
import os
import pathlib
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dummy_system import DATA, config, make
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t3d import systems
from t3d.checkpoint import store as stores
from t3d.core import config as configs
from t3d.core import tree
from t3d.core.system import Given
from t3d.inference import loading
from t3d.parallel import devices
from t3d.plan import dry_run
from t3d.train import loop, states, traced

MESHES = {'one': {'data': 1}, 'data x fsdp x tensor': {'data': 2, 'fsdp': 2, 'tensor': 2}}
CODE = traced.code.__wrapped__
struct = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)


@pytest.fixture(autouse=True)
def known_code(monkeypatch):
    """These tests hold while somebody edits the package."""
    monkeypatch.setattr(traced, 'code', lambda: 'the code')


def train(keep, mesh, system, steps=3):
    """The state after some steps, the last metrics, and whether the first state was donated."""
    settings = configs.from_dict(config())
    with jax.set_mesh(mesh):
        target = states.abstract(settings, system, mesh)
        program = loop.Program(settings, system, mesh, target, keep=keep)
        first = state = states.fresh(settings, system, target, keep)
        batch = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
        for _ in range(steps):
            state, metrics = program(state, {'x': batch, 'y': batch[:, :3]})
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(lambda leaf: leaf.sharding, target)
    return jax.device_get((state, metrics)), all(leaf.is_deleted() for leaf in jax.tree.leaves(first))


@pytest.mark.parametrize('shape', MESHES.values(), ids=MESHES)
def test_the_same_bits_as_a_plain_trace_without_tracing(shape, tmp_path):
    mesh, system = devices.make(shape), make()
    plain, _ = train(traced.NOTHING, mesh, system)
    kept, donated = train(traced.Keep(tmp_path, config()), mesh, system)
    assert donated and sorted(path.name.split('-')[0] for path in tmp_path.iterdir()) == ['init', 'train_step']

    again, donated = train(traced.Keep(tmp_path, config()), mesh, system._replace(train_step=never))
    assert donated
    for other in (kept, again):
        jax.tree.map(np.testing.assert_array_equal, plain, other)


def never(*args):
    raise AssertionError('traced again')


def test_a_run_resumed_from_kept_traces_ends_with_the_bits_of_a_plain_one(tmp_path):
    options = {'data': DATA, 'log': lambda line: None}
    whole = loop.run(config(steps=4), tmp_path / 'whole', system=make(), **options)
    kept = {**options, 'traced_in': tmp_path / 'traced'}
    loop.run(config(steps=4), tmp_path / 'parts', system=make(), stop_after=2, **kept)
    loop.run(config(steps=4), tmp_path / 'parts', system=make()._replace(train_step=never), **kept)  # not to be called
    ends = [json.loads((folder / 'metrics.jsonl').read_text().splitlines()[-1]) for folder in (whole, tmp_path / 'parts')]
    assert ends[0]['step'] == ends[1]['step'] == 4 and ends[0]['loss'] == ends[1]['loss']
    whole, parts = (stores.Store(folder / 'checkpoints', read_only=True) for folder in (whole, tmp_path / 'parts'))
    assert whole.describe(4)[0]['leaves'] == parts.describe(4)[0]['leaves']  # digests of every array
    whole.close(), parts.close()


def test_the_digest_sees_what_a_trace_depends_on(monkeypatch, tmp_path):
    mesh, shape = devices.make({'data': -1}), (struct((2, 3)),)
    (tmp_path / 'vocab.json').write_text('{}')
    (tmp_path / 'many').mkdir()
    config = {'a': 1, 'text.folder': str(tmp_path)}
    base = traced.digest(config, shape)
    others = [
        traced.digest({**config, 'a': 2}, shape),
        traced.digest(config, (struct((3, 2)),)),
        traced.digest(config, (jax.ShapeDtypeStruct((2, 3), jnp.int32),)),
        traced.digest(config, (struct((2, 3), sharding=NamedSharding(mesh, P())),)),
        traced.digest(config, ({'x': struct((2, 3))},)),
    ]
    with jax.set_mesh(mesh):
        others.append(traced.digest(config, shape))
    with jax.default_matmul_precision('default'):
        others.append(traced.digest(config, shape))
    changes = [
        (traced, 'code', lambda: 'other code'),
        (traced.platform, 'python_version', lambda: '3.99'),
        (traced.environment, 'versions', lambda names=(): {'jax': '99'}),
        (traced.jax, 'devices', lambda: jax.local_devices()[:2]),
    ]
    for change in changes:
        with monkeypatch.context() as patch:
            patch.setattr(*change)
            others.append(traced.digest(config, shape))
    with monkeypatch.context() as patch:
        patch.setenv('T3D_TYPECHECK', '0')
        others.append(traced.digest(config, shape))
    flax.config.update('flax_fix_rng_separator', not flax.config.flax_fix_rng_separator)
    others.append(traced.digest(config, shape))
    flax.config.update('flax_fix_rng_separator', not flax.config.flax_fix_rng_separator)
    assert traced.digest(config, shape) == base
    (tmp_path / 'vocab.json').write_text('{"a": 1}')
    others.append(traced.digest(config, shape))
    assert len({base, *others}) == 1 + len(others)


def test_the_code_is_all_of_the_package_as_it_was_imported(monkeypatch, tmp_path):
    (tmp_path / 'nets').mkdir()
    layers = tmp_path / 'nets' / 'layers.py'
    (tmp_path / '__init__.py').write_text('')
    layers.write_text('a = 1')
    monkeypatch.setattr('t3d.__file__', str(tmp_path / '__init__.py'))
    code = CODE
    monkeypatch.setattr('t3d.IMPORTED', time.time() + 10.0)
    before = code()
    layers.write_text('a = 2')
    assert before and code() not in (before, None)
    monkeypatch.setattr('t3d.IMPORTED', time.time() - 10.0)  # edited since: what runs is not what lies there
    assert code() is None
    monkeypatch.setattr(traced, 'code', lambda: None)
    assert float(call(traced.Keep(tmp_path / 'folder', {}))[0][0]) == 2.0 and not (tmp_path / 'folder').exists()


@contextlib.contextmanager
def changed(name, value):
    """A setting of JAX."""
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


def double(x):
    return [2.0 * x]


def call(keep, function=double, shape=(3,)):
    """Through a jit, as the loop does."""
    return jax.jit(lambda x: keep('double', function, struct(shape))(x))(jnp.ones(shape))


def wrong(x):
    raise AssertionError('traced')


def test_what_cannot_be_read_is_traced_anew(tmp_path):
    keep = traced.Keep(tmp_path, {})
    call(keep)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    flipped, zeroed = bytearray(whole), bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    zeroed[len(whole) // 2 :] = bytes(len(whole) - len(whole) // 2)
    for broken in (b'', b'nothing', whole[: len(whole) // 2], flipped, zeroed):
        path.write_bytes(broken)
        with pytest.raises(AssertionError, match='traced'):
            call(keep, wrong)
        assert float(call(keep)[0][0]) == 2.0 and path.read_bytes() == whole
    assert float(call(keep, wrong)[0][0]) == 2.0


def test_what_cannot_be_kept_is_traced_each_time(tmp_path, caplog):
    def printing(x):
        jax.debug.callback(lambda value: None, x)
        return [3.0 * x]

    (tmp_path / 'file').write_text('')
    assert float(call(traced.Keep(tmp_path / 'file', {}))[0][0]) == 2.0  # no folder can be made there
    assert float(call(traced.Keep(tmp_path / 'folder', {}), printing)[0][0]) == 3.0
    assert not (tmp_path / 'folder').exists()
    assert 'double is traced at every start' in caplog.text


def test_a_folder_of_somebody_else_is_read(tmp_path, monkeypatch):
    keep = traced.Keep(tmp_path, {})
    call(keep)
    monkeypatch.setattr(traced.os, 'utime', lambda path: (_ for _ in ()).throw(PermissionError(str(path))))
    assert float(call(keep, wrong)[0][0]) == 2.0


@pytest.mark.parametrize('name', traced.DEBUGGING)
def test_who_looks_for_a_fault_sees_the_code(name, tmp_path):
    with changed(name, True):
        assert traced.Keep(tmp_path, {})('double', double, struct((3,))) is double


@pytest.mark.parametrize('target', traced.CUDNN)
def test_attention_of_cudnn_is_kept(target, tmp_path):
    """Its custom calls, which JAX exports only on request; nothing here can run them."""
    attention = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct((3,), jnp.float32))
    traced.Keep(tmp_path, {})('attention', lambda x: [attention(x)], struct((3,)))
    assert [path.name.split('-')[0] for path in tmp_path.iterdir()] == ['attention']


def test_the_oldest_go(tmp_path, monkeypatch):
    monkeypatch.setattr(traced, 'KEEP', 2)
    keep = traced.Keep(tmp_path, {})
    for size in (1, 2):
        call(keep, shape=(size,))
        for path in tmp_path.iterdir():
            os.utime(path, (0, os.stat(path).st_mtime - 100))
    call(keep, wrong, shape=(1,))  # used: now the newest
    call(keep, shape=(3,))
    assert len(list(tmp_path.iterdir())) == 2
    call(keep, wrong, shape=(1,))
    with pytest.raises(AssertionError, match='traced'):
        call(keep, wrong, shape=(2,))


def test_folder_is_beside_the_compilation_cache():
    shipped, own = {'system': 'instant3d'}, {'system': 'my_package.my_system'}
    with changed('jax_compilation_cache_dir', 'there/jax'):
        assert traced.folder(shipped) == pathlib.Path('there/jax/traced')
        assert traced.folder(own) is None  # nothing would see a change of its code
        assert traced.folder(shipped, {'prior': Given(None, {}, shipped), 'other': Given(None, {})}) is not None
        assert traced.folder(shipped, {'prior': Given(None, {}, own)}) is None
    for cache in (None, 'gs://bucket/cache'):
        with changed('jax_compilation_cache_dir', cache):
            assert traced.folder(shipped) is None
    with changed('jax_enable_compilation_cache', False):
        assert traced.folder(shipped) is None


@pytest.mark.parametrize('name', ['instant3d', 'ganfusion_gan', 'ganfusion_diffusion', 'image_diffusion', 'renderdiffusion'])
def test_every_system_can_be_kept(name, tmp_path):
    settings = dry_run.resolve(configs.load(f'configs/{name}.py:tiny', []))
    given, mesh = loading.open_given(settings, random=True), devices.make({'data': 2, 'fsdp': 2})
    system = systems.make(settings, given)
    keep = traced.Keep(tmp_path, settings)
    with jax.set_mesh(mesh):
        params = states.placed(given, mesh, settings.fsdp_floor)
        target = states.abstract(settings, system, mesh, params)
        program = loop.Program(settings, system, mesh, target, keep=keep, given=params)
        lowered = program.step.lower(*program._arguments)
    assert [path.name.split('-')[0] for path in tmp_path.iterdir()] == ['train_step']
    state, _ = lowered.out_info
    assert tree.flatten(state).keys() == tree.flatten(target).keys()
