"""Checkpoints: exact, verified, restorable on any mesh, with errors that name what is wrong."""

import contextlib
import itertools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dummy_system import make
from jax.sharding import PartitionSpec as P

from t3d.checkpoint import digests
from t3d.checkpoint import store as stores
from t3d.core import tree
from t3d.core.errors import NonFinite
from t3d.core.system import TrainState
from t3d.parallel import devices, sharding

SYSTEM = make()
# After a failed read the library's abandoned tasks complain when they are freed.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def init():
    state = SYSTEM.init(jax.random.key(0), None)
    return state.replace(extras={'key': jax.random.key(3), 'seen': jnp.array([True, False]), 'half': jnp.ones(3, jnp.bfloat16)})


def target(*sizes):
    mesh = devices.make(dict(zip(devices.AXES, sizes or (1, 1, 1))))
    abstract = jax.eval_shape(init)
    return sharding.abstract_with(abstract, sharding.shardings(abstract, SYSTEM.sharding, mesh, 64))


def placed(*sizes):
    return jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, target(*sizes)))()


def at(state, step):
    return state.replace(step=jnp.int32(step))


def bits(state):
    """Every array of a state by its name: (type, shape, bytes), so that -0.0 is not 0.0."""
    data = lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    arrays = tree.flatten(jax.device_get(jax.tree.map(data, state)))
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A folder with steps 2 (saved on 2 x 4 devices) and 4, each with its own values."""
    folder = tmp_path_factory.mktemp('run') / 'checkpoints'
    store, state = stores.Store(folder), placed(2, 4, 1)
    store.save(at(state, 2), data={'position': 2}, config={'batch': 4})
    store.save(at(state, 4).replace(ema=jax.tree.map(lambda x: x + 1, state.ema)), data={'position': 4}, config={'batch': 4})
    store.close()
    return folder


@pytest.mark.parametrize('sizes', [(1, 1, 1), (2, 1, 1), (1, 8, 1), (2, 2, 2)], ids=lambda s: 'x'.join(map(str, s)))
def test_restores_exactly_on_any_mesh(saved, sizes):
    store, want = stores.Store(saved, read_only=True), target(*sizes)
    restored = store.restore(want, 2)
    assert restored.data == {'position': 2} and restored.meta['config'] == {'batch': 4}
    assert jax.tree.map(lambda leaf: leaf.sharding, restored.state) == jax.tree.map(lambda leaf: leaf.sharding, want)
    assert bits(restored.state) == bits(at(placed(2, 4, 1), 2))
    store.close()


def test_latest_and_averaged_parameters_alone(saved):
    store = stores.Store(saved, read_only=True)
    assert store.latest() == 4 and store.steps() == [2, 4]
    ema = store.restore_weights()
    chex.assert_trees_all_equal(ema, jax.tree.map(lambda x: np.asarray(x) + 1, placed(2, 4, 1).ema))
    store.close()


def test_keeps_the_last_every_nth_and_the_best(tmp_path):
    store, state = stores.Store(tmp_path, keep=2, keep_every=4, best='loss'), placed()
    for step, loss in ((2, 1.0), (3, 0.5), (4, 2.0), (5, 3.0), (6, 4.0), (7, 5.0)):
        store.save(at(state, step), data={}, config={}, metrics={'loss': loss})
    store.wait()
    assert store.steps() == [3, 4, 6, 7]
    assert store.save(at(state, 7), data={}, config={}) is False
    store.close()
    store = stores.Store(tmp_path, keep=2, keep_every=4, best='loss')  # the best one is remembered after a restart
    store.save(at(state, 8), data={}, config={}, metrics={'loss': 6.0})
    store.close()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == [f'{s:08d}' for s in (3, 4, 7, 8)]


@pytest.mark.parametrize('best', ['loss', ''])
def test_keep_0_keeps_all(tmp_path, best):
    store, state = stores.Store(tmp_path, keep=0, best=best), placed()
    for step in (1, 2, 3, 4):
        store.save(at(state, step), data={}, config={}, metrics={'loss': step})
    store.close()
    assert stores.Store(tmp_path, read_only=True).steps() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match='checkpoint.keep=-1, .* wanted 0 or more'):
        stores.Store(tmp_path, keep=-1)


def test_donated_state_is_saved_as_it_was(tmp_path):
    """The step after an asynchronous save overwrites the donated buffers."""

    def init():
        params = {'w': jax.random.normal(jax.random.key(0), (2048, 1024))}
        return TrainState(jnp.int32(1), params, (), tree.copy(params), {})

    state = jax.jit(init)()
    step = jax.jit(
        lambda s: s.replace(step=s.step + 1, params=jax.tree.map(lambda x: x * 1.5, s.params), ema=s.params), donate_argnums=0
    )
    before = jax.device_get(state)
    store = stores.Store(tmp_path)
    store.save(state, data={}, config={})
    for _ in range(5):
        state = step(state)
    store.wait()
    sharding_ = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    want = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_), state)
    chex.assert_trees_all_equal(jax.device_get(store.restore(want, 1).state), before)  # restore verifies the digests too
    store.close()


def test_flipped_byte_is_found_and_the_leaf_named(tmp_path):
    """A value changed behind Orbax's back, without damage that its own reader could see."""
    store, state = stores.Store(tmp_path), placed()
    store.save(at(state, 2), data={'position': 2}, config={})
    store.close()
    flipped = jax.tree.map(np.array, jax.device_get(state.params))
    flipped['layer_out']['kernel'].view(np.uint8)[3, 5] ^= 1
    path = tmp_path / '00000002'
    store = stores.Store(tmp_path / 'other')
    store.save(at(state, 2).replace(params=jax.tree.map(jnp.asarray, flipped)), data={'position': 2}, config={})
    store.close()
    _replace(path / 'state', tmp_path / 'other' / '00000002' / 'state')
    store = stores.Store(tmp_path, read_only=True)
    with pytest.raises(stores.CorruptCheckpoint, match=r'00000002 is corrupt: .* params/layer_out/kernel are not .* no other'):
        store.restore(target())
    chex.assert_trees_all_equal(store.restore_weights(), jax.device_get(state.ema))  # the averages are intact
    store.close()


@pytest.mark.parametrize('item', ['state', 'weights', 'meta', 'data'])
def test_damaged_files_never_restore_silently(saved, tmp_path, item):
    """One byte flipped in each file of an item: the whole state comes back as saved, or an error names the folder."""
    import shutil

    shutil.copytree(saved, tmp_path / 'checkpoints')
    rng, refused = np.random.default_rng(0), []
    files = (tmp_path / 'checkpoints' / '00000004' / item).rglob('*')
    files = sorted((path for path in files if path.is_file()), key=lambda path: (path.parent, path.stat().st_size))
    state = at(placed(2, 4, 1), 4)
    expected = bits(state.replace(ema=jax.tree.map(lambda x: x + 1, state.ema)))
    assert {name.split('/')[0] for name in expected} == {'step', 'params', 'opt_state', 'ema', 'extras'}
    for path in files:
        raw = path.read_bytes()
        damaged = bytearray(raw)
        damaged[rng.integers(len(raw))] ^= 16
        path.write_bytes(bytes(damaged))
        store = stores.Store(tmp_path / 'checkpoints', read_only=True)
        try:
            restored = store.restore(target())
            assert bits(restored.state) == expected
            assert restored.data == {'position': 4} and restored.meta['config'] == {'batch': 4}
        except stores.CorruptCheckpoint as error:
            refused.append(path)
            assert '00000004' in str(error) and 'Delete that folder to go on from step 2' in str(error)
        store.close()
        path.write_bytes(raw)
    holds = [path for path in files if (path.parent.name == 'd' if item in ('state', 'weights') else path.name == 'metadata')]
    assert set(refused) & set(holds), refused  # files that hold the item's own numbers, not what describes them


def test_a_changed_name_of_the_weights_is_damage_that_leaves_them_readable(saved, tmp_path):
    """Each bit of the path by which meta names them: they load whole, or the step is said to be corrupt."""
    import shutil

    shutil.copytree(saved, tmp_path / 'checkpoints')
    path = tmp_path / 'checkpoints' / '00000004' / 'meta' / 'metadata'
    raw = path.read_bytes()
    start, store = raw.index(b'["ema"]'), stores.Store(tmp_path / 'checkpoints', read_only=True)
    wanted, read = bits(store.restore_weights()), 0
    for place, bit in itertools.product(range(start, start + 7), range(8)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :])
        with contextlib.suppress(stores.CorruptCheckpoint):
            assert bits(store.restore_weights()) == wanted
            read += 1
    store.close()
    assert read


READ = """
import sys
from t3d.checkpoint import store as stores
store = stores.Store(sys.argv[1], read_only=True)
try:
    store.restore_weights()
except stores.CorruptCheckpoint as error:
    print(error)
store.close()


class Gone:
    def __del__(self):
        raise ValueError('another')


Gone()
"""


def test_a_truncated_file_is_one_line_and_nothing_else_on_the_console(saved, tmp_path):
    import shutil
    import subprocess
    import sys

    for kept in (0, 100):
        folder = shutil.copytree(saved, tmp_path / str(kept))
        files = [path for path in (folder / '00000004' / 'weights').rglob('d/*') if path.is_file()]
        with open(max(files, key=lambda path: path.stat().st_size), 'r+b') as file:
            file.truncate(kept)
        done = subprocess.run([sys.executable, '-c', READ, str(folder)], capture_output=True, text=True, check=False)
        assert len(done.stdout.splitlines()) == 1 and 'Delete that folder to go on from step 2' in done.stdout
        assert done.stderr.splitlines()[-1:] == ['ValueError: another'] and done.stderr.count('Traceback') == 1, done.stderr


def test_digest_sees_every_bit_and_no_layout():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 24)).astype(np.float32)
    plain = int(digests.digest(jnp.asarray(x)))
    mesh = devices.make({'data': 2, 'fsdp': 4})
    cut = jax.device_put(x, jax.NamedSharding(mesh, P('fsdp', 'data')))
    assert int(jax.jit(digests.digest)(cut)) == plain
    for _ in range(200):
        y = x.copy()
        y.view(np.uint32)[rng.integers(16), rng.integers(24)] ^= np.uint32(1) << rng.integers(32, dtype=np.uint32)
        assert int(digests.digest(jnp.asarray(y))) != plain
    assert int(digests.digest(jnp.asarray(x[::-1]))) != plain
    assert int(digests.digest(jnp.zeros(4))) != int(digests.digest(jnp.zeros(5)))


def test_other_model_gives_a_short_difference(saved):
    store, want = stores.Store(saved, read_only=True), target()
    params = dict(want.params, extra={'kernel': jax.ShapeDtypeStruct((3,), jnp.float32)})
    params.pop('layer_in')
    params['layer_out'] = {'kernel': jax.ShapeDtypeStruct((9, 3), jnp.float32), 'bias': params['layer_out']['bias']}
    with pytest.raises(ValueError) as error:
        store.restore(want.replace(params=params))
    text = str(error.value)
    assert 'missing: params/extra/kernel\n' in text and 'unknown: params/layer_in/bias, params/layer_in/kernel' in text
    assert 'params/layer_out/kernel (32, 3) given, (9, 3) wanted' in text and len(text.splitlines()) == 5
    store.close()


def test_nothing_to_restore(tmp_path, saved):
    for store in (stores.Store(tmp_path / 'empty', read_only=True), stores.Store(tmp_path / 'new')):
        assert store.latest() is None
        with pytest.raises(FileNotFoundError, match='no checkpoint found in .*: train first'):
            store.restore(target())
        store.close()
    with pytest.raises(FileNotFoundError, match=r'no checkpoint of step 3 .*: there are \[2, 4\]'):
        stores.Store(saved, read_only=True).restore(target(), 3)


def test_newer_format_is_refused(saved, monkeypatch):
    monkeypatch.setattr(stores, 'FORMAT', 0)
    with pytest.raises(ValueError, match='has format 2, this t3d reads up to 0: update t3d'):
        stores.Store(saved, read_only=True).restore(target())


def test_non_finite_state_is_not_saved(tmp_path):
    store, state = stores.Store(tmp_path), placed()
    bad = state.replace(opt_state=optax.tree.map_params(optax.adam(1e-2), lambda x: x * jnp.nan, state.opt_state))
    first = 'opt_state/0/mu/layer_in/bias, opt_state/0/mu/layer_in/kernel, opt_state/0/mu/layer_out/bias'
    for step, good in ((3, 'no checkpoint was saved before. Train in another'), (5, f'checkpoint: step 4 in {store.folder}. ')):
        with pytest.raises(NonFinite) as error:
            store.save(at(bad, step), data={}, config={})
        message = f'not saved: NaN or infinity in {first} and 5 more at step {step}; '
        assert str(error.value).startswith(message) and good in str(error.value)
        store.save(at(state, 4), data={}, config={})
    assert f'`python -m launch.train --init-from {store.folder.parent}`' in str(error.value) and store.steps() == [4]
    store.close()


def _replace(old: pathlib.Path, new: pathlib.Path):
    import shutil

    shutil.rmtree(old)
    shutil.copytree(new, old)
