"""A seed names the same numbers under every setting of JAX, in a batch and on many devices; and no draw forgets to."""

import ast
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t3d.core import prng
from t3d.core.errors import UsageError

ROOT = pathlib.Path(__file__).parent.parent
SEEDS = (0, 1, 5, 1000, 2**31 - 1, 2**31, 2**32 - 1)
# jax.random's draws and the place of dtype among their arguments; None for what gives no numbers of a float or integer type.
DTYPE = {
    'normal': 2,
    'uniform': 2,
    'randint': 4,
    'bits': 2,
    'split': None,
    'fold_in': None,
    'key_data': None,
    'permutation': None,
}
DRAWS = {
    'normal': lambda key: jax.random.normal(key, (3, 5), jnp.float32),
    'one': lambda key: jax.random.normal(key, (), jnp.float32),
    'uniform': lambda key: jax.random.uniform(key, (2, 3, 4), jnp.float32, -1.0, 2.0),
    'randint': lambda key: jax.random.randint(key, (9,), 0, 7, jnp.int32),
    'bits': lambda key: jax.random.bits(key, (7,), jnp.uint8),
    'permutation': lambda key: jax.random.permutation(key, jnp.arange(31, dtype=jnp.int32)),
    'split': lambda key: jax.random.key_data(jax.random.split(key, 7)),
    'fold_in': lambda key: jax.random.key_data(jax.random.fold_in(key, 2**32 - 1)),
    'nested': lambda key: jax.vmap(lambda key: jax.random.normal(key, (4,), jnp.float32))(jax.random.split(key, (3, 2))[0]),
}


@pytest.mark.parametrize('name', DRAWS)
def test_the_numbers_are_those_of_jax_as_it_comes(name):
    """Threefry-2x32 with `jax_threefry_partitionable`: what shipped weights and sets were made with."""
    draw = jax.jit(DRAWS[name])
    for seed in SEEDS:
        np.testing.assert_array_equal(draw(prng.key(seed)), draw(jax.random.key(np.uint32(seed), impl='threefry2x32')))


def test_threefry_is_that_of_its_paper():
    """Random123's known answers (kat_vectors, threefry2x32, 20 rounds), by fold_in's words: counter (0, n)."""
    keys = [prng.of_data(np.zeros(2, np.uint32)), prng.of_data(np.full(2, 2**32 - 1, np.uint32))]
    assert [hex(word) for word in np.asarray(jax.random.key_data(jax.random.fold_in(keys[0], 0)))] == [
        '0x6b200159',
        '0x99ba4efe',
    ]
    assert not np.array_equal(*(jax.random.key_data(jax.random.fold_in(key, 0)) for key in keys))


def every(seed) -> dict:
    """All the draws of a seed, of a key that this module makes and of one that a caller made."""
    keys = {'': prng.key(seed), ' settled': prng.settled(jax.random.wrap_key_data(key_words(seed), impl='threefry2x32'))}
    draws = {name + kind: draw(key) for kind, key in keys.items() for name, draw in DRAWS.items()}
    draws['coin'] = prng.coin(keys[''], 0.3, (20,))
    return {**draws, 'each': jax.random.key_data(prng.each(keys[''], 4))}


def key_words(seed):
    return jnp.stack([jnp.uint32(0), jnp.asarray(seed, jnp.uint32)])


SETTINGS = [
    {'jax_enable_x64': True},
    {'jax_default_prng_impl': 'rbg'},
    {'jax_threefry_partitionable': False},
    {'jax_random_seed_offset': 7},
    {'jax_enable_x64': True, 'jax_default_prng_impl': 'unsafe_rbg', 'jax_threefry_partitionable': False},
]


@pytest.mark.parametrize('settings', SETTINGS, ids=lambda settings: ' '.join(settings))
def test_no_setting_of_jax_changes_a_draw(settings):
    """Draws of a seed alone, and of the same seed as one of a batch."""
    draws = jax.device_get(jax.jit(lambda seed: every(seed))(np.uint32(5)))
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        alone = jax.device_get(jax.jit(lambda seed: every(seed))(np.uint32(5)))
        batch = jax.device_get(jax.jit(jax.vmap(every))(np.array([4, 5], np.uint32)))
        eager = {name: np.asarray(DRAWS[name](prng.key(5))) for name in ('normal', 'randint')}
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    for name, value in draws.items():
        np.testing.assert_array_equal(alone[name], value, err_msg=name)
        np.testing.assert_array_equal(batch[name][1], value, err_msg=name)
        np.testing.assert_array_equal(eager.get(name, value), value, err_msg=name)
        assert alone[name].dtype == value.dtype, name


def test_a_draw_is_the_same_in_pieces_on_many_devices():
    """Each device makes its own part: nothing is gathered."""
    mesh = jax.make_mesh((4, 2), ('a', 'b'), devices=jax.devices()[:8])
    draw = lambda key: jax.random.normal(key, (8, 6, 4), jnp.float32)
    spread = jax.jit(draw, out_shardings=NamedSharding(mesh, P('a', None, 'b')))
    np.testing.assert_array_equal(spread(prng.key(9)), draw(prng.key(9)))
    text = spread.lower(prng.key(9)).compile().as_text()
    assert not any(word in text for word in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'))


def test_keys_of_a_call_do_not_depend_on_its_size():
    data = jax.random.key_data(prng.each(prng.key(3), 5))
    np.testing.assert_array_equal(data[:2], jax.random.key_data(prng.each(prng.key(3), 2)))
    for k in range(5):
        np.testing.assert_array_equal(data[k], jax.random.key_data(jax.random.fold_in(jax.random.key(3), k)))
    raw = jax.random.key_data(jax.random.key(3))  # an old-style key
    np.testing.assert_array_equal(data, jax.random.key_data(prng.each(raw, 5)))
    other = jax.random.key(3, impl='rbg')
    assert prng.settled(other) is other


def test_a_coin_is_jax_s():
    key = prng.key(2)
    np.testing.assert_array_equal(prng.coin(key, 0.3, (40, 2)), jax.random.bernoulli(key, jnp.float32(0.3), (40, 2)))
    shares = jnp.array([0.0, 1.0, 0.5])
    assert prng.coin(key, shares, (200, 3)).mean(0)[:2].tolist() == [0.0, 1.0]


@pytest.mark.parametrize('seed', [-1, 2**32, 2**64, np.int64(-5)])
def test_seeds_that_are_none(seed):
    with pytest.raises(UsageError, match=f'^seed {seed}: wanted 0 to 2\\^32 - 1.$'):
        prng.key(seed)


def faults(text: str) -> list[str]:
    """What a source file does with random numbers that would depend on settings, or on nothing."""
    lines = []
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = [alias.name for alias in node.names] + [getattr(node, 'module', None) or '']
            if 'random' in names or any(name in ('jax.random', 'numpy.random') for name in names):
                lines.append(f'line {node.lineno}: imports a module of random numbers under another name')
        module = ast.unparse(node.value) if isinstance(node, ast.Attribute) else ''
        if module in ('np.random', 'numpy.random') and node.attr not in ('default_rng', 'Generator'):
            lines.append(f'line {node.lineno}: {module}.{node.attr} draws from a global state')
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name == 'hash':
            lines.append(f'line {node.lineno}: hash() of a text differs from process to process')
        if name.endswith('random.default_rng') and not node.args:
            lines.append(f'line {node.lineno}: {name} without a seed')
        if name == 'self.param' and len(node.args) < 4:
            lines.append(f'line {node.lineno}: a parameter without dtype')
        if not name.startswith('jax.random.'):
            continue
        draw = name.removeprefix('jax.random.')
        if draw not in DTYPE:
            lines.append(f'line {node.lineno}: {name}: keys are made by core.prng, coins by prng.coin; others state a dtype')
        elif DTYPE[draw] is not None and len(node.args) <= DTYPE[draw] and 'dtype' not in {word.arg for word in node.keywords}:
            lines.append(f'line {node.lineno}: {name} without dtype')
    return lines


@functools.cache
def sources() -> list[pathlib.Path]:
    return [path for folder in ('t3d', 'launch', 'configs') for path in sorted((ROOT / folder).rglob('*.py'))]


def test_every_draw_of_the_package_states_what_it_depends_on():
    wrong = {
        str(path.relative_to(ROOT)): lines
        for path in sources()
        if path.name != 'prng.py' and (lines := faults(path.read_text()))
    }
    assert not wrong, json.dumps(wrong, indent=1)
    assert len(sources()) > 100


@pytest.mark.parametrize(
    'line',
    [
        'jax.random.normal(key, (3,))',
        'jax.random.uniform(key, (3,), minval=-1.0)',
        'jax.random.randint(key, (3,), 0, 4)',
        'jax.random.bernoulli(key, 0.5, (3,))',
        'jax.random.key(0)',
        'jax.random.PRNGKey(0)',
        'from jax import random',
        'import jax.random as jr',
        'np.random.seed(0)',
        'np.random.default_rng()',
        'hash("a text")',
        "self.param('w', init, (3,))",
    ],
)
def test_the_reader_of_sources_finds(line):
    assert len(faults(line)) == 1


def test_normals_beyond_the_counter_are_drawn_row_by_row(monkeypatch):
    key, shape = prng.key(3), (4, 6, 5)
    np.testing.assert_array_equal(prng.rows(key, shape), jax.random.normal(key, shape, jnp.float32))
    monkeypatch.setattr(prng, 'COUNTED', 4 * 6 * 5)
    keys = jax.random.split(key, 4)
    one_by_one = np.stack([jax.random.normal(one, shape[1:], jnp.float32) for one in keys])
    np.testing.assert_array_equal(prng.rows(key, shape), one_by_one)
