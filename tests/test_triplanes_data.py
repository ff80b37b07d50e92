"""The data set of stage 2: pairs of seed and caption, bound to one generator."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_triplanes

from t3d.checkpoint import weights
from t3d.core import config as configs
from t3d.core import prng, tokens, tree
from t3d.core.errors import UsageError
from t3d.data import pipeline, sources
from t3d.data.adapters import triplanes
from t3d.data.sets import shapes

PAIRS = [(3, 'a red cube', 0.1), (4, 'a blue cone', 0.2), (5, 'a red cube', 0.7), (4000000000, 'large white sphere', 0.3)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Written by hand, as data/adapters/triplanes.py says."""
    out = tmp_path_factory.mktemp('triplanes')
    loaded = small_triplanes.loaded()
    weights.save(out / 'frozen', jax.device_get(loaded.weights), loaded.config)
    lines = [{'seed': seed, 'caption': text, 'slots': {'distance': far}} for seed, text, far in PAIRS]
    (out / 'manifest.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    write_manifest(out)
    return out


def write_manifest(out, **changes):
    leaves = {name: np.asarray(leaf) for name, leaf in tree.flatten(small_triplanes.loaded().weights).items()}
    manifest = {
        'format_version': 1,
        'generator_sha256': triplanes.fingerprint(leaves),
        'generator': 'small, step 5',
        'psi': 1.0,
        'pairs': len(PAIRS),
        'triplanes': triplanes.meaning(small_triplanes.config()),
        'stats': {'count': 4, 'mean': [0.25] * 12, 'squares': [16.0] * 12},
    }
    (out / 'manifest.json').write_text(json.dumps({**manifest, **changes}))


def config(folder, *overrides, **changes):
    """A stage-2 config that leaves to the folder what the folder knows."""
    made = configs.from_dict(
        {
            'system': 'ganfusion_diffusion',
            'batch': 4,
            'psi': 1.0,
            'sr_style': 'unit',
            'given': {'generator': ''},
            'planes': {'mean': (), 'std': ()},
            'text': {'words': (), 'length': 6, 'folder': '', 'open_vocabulary': False},
            'data': {'name': 'triplanes', 'path': str(folder), 'split': 'train', 'max_distance': 0.0},
            'preview': {'rows': 3},
            **changes,
        }
    )
    for override in overrides:
        configs.apply(made, override)
    return made


def test_batches_of_tokens_and_seeds(folder):
    made = sources.resolve(config(folder))
    source, transform = sources.make(made)
    assert len(source) == 4 and source[0] == {
        'seed': 3,
        'caption': 'a red cube',
        'captions': ('a red cube',),
        'slots': {'distance': 0.1},
    }
    tokenize = tokens.make(made.text)
    for k, (seed, text, _) in enumerate(PAIRS):
        example = transform(source[k], np.random.default_rng(0))
        assert set(example) == {'tokens', 'seed'}
        assert example['seed'].dtype == np.uint32 and example['seed'].shape == () and example['seed'] == seed
        assert example['tokens'].dtype == np.int32
        np.testing.assert_array_equal(example['tokens'], tokenize([text])[0])
    examples = next(pipeline.make(source, transform, batch=4, seed=1))
    assert {name: (leaf.shape, leaf.dtype.name) for name, leaf in examples.items()} == {
        'tokens': ((4, 6), 'int32'),
        'seed': ((4,), 'uint32'),
    }
    assert sorted(examples['seed'].tolist()) == sorted(seed for seed, _, _ in PAIRS)
    with pytest.raises(IndexError):
        source[4]
    batch, captions = sources.preview(made, {})
    assert captions == ['a blue cone', 'a red cube', 'large white sphere']
    np.testing.assert_array_equal(batch['seed'], np.array([4, 3, 4000000000], np.uint32))
    np.testing.assert_array_equal(batch['tokens'], tokenize(captions))


def test_the_config_is_filled_from_the_folder(folder):
    made = sources.resolve(config(folder))
    assert made.given.generator == str(folder / 'frozen')
    assert made.planes.mean == (0.25,) * 12 and made.planes.std == (2.0,) * 12  # sqrt(16 / 4)
    assert made.text.words == ('a', 'cube', 'red', 'blue', 'cone', 'large', 'sphere', 'white')
    assert made.is_locked and sources.resolve(made) == made
    kept = sources.resolve(config(folder, given={'generator': 'elsewhere'}, text={'words': ('mine',), 'length': 3}))
    assert (kept.given.generator, kept.text.words) == ('elsewhere', ('mine',))
    described = sources.resolve(config(folder, given={'generator': 'configs/ganfusion_gan.py:tiny'}))
    assert described.given.generator == str(folder / 'frozen')  # a config only describes one


def test_what_nobody_chose_follows_the_folder_and_what_was_given_is_not_overruled(tmp_path):
    theirs = configs.load('configs/ganfusion_gan.py:tiny', ['generator.plane_resolution=8', 'generator.plane_channels=4'])
    for override in ('render.samples=7', 'generator.sr.channels=(8,4)', 'generator.sr_style=w', 'render.plane_axes=legacy'):
        configs.apply(theirs, override)
    weights.save(tmp_path / 'frozen', {'generator': {'a': np.ones(2, np.float32)}}, theirs)
    (tmp_path / 'manifest.jsonl').write_text(json.dumps({'seed': 1, 'caption': 'a red cube', 'slots': {}}) + '\n')
    sha = triplanes.fingerprint({'generator/a': np.ones(2, np.float32)})
    write_manifest(tmp_path, generator_sha256=sha, psi=0.7, pairs=1, triplanes=triplanes.meaning(theirs))

    def resolved(*overrides):
        return sources.resolve(configs.load('configs/ganfusion_diffusion.py:tiny', [f'data.path={tmp_path}', *overrides]))

    made = resolved()
    assert made.psi == 0.7 and made.sr_style == 'ones_w' and made.is_locked
    assert sources.resolve(made) == made == resolved() and sources.make(made)
    assert resolved('sr_style=w_avg').sr_style == 'w_avg'
    with pytest.raises(UsageError, match='holds planes of psi=0.7, this config has psi=0.5: set that of the folder'):
        resolved('psi=0.5')


def test_another_frozen_generator_is_refused(folder, tmp_path):
    weights.save(tmp_path / 'other', jax.device_get(small_triplanes.loaded(1).weights), small_triplanes.config())
    with pytest.raises(UsageError, match='is another generator .*not what the captions say'):
        sources.resolve(config(folder, given={'generator': str(tmp_path / 'other')}))
    shutil.copytree(folder / 'frozen', tmp_path / 'same')
    same = {'generator': str(tmp_path / 'same')}
    assert sources.resolve(config(folder, given=same)).given.generator == same['generator']


def test_pairs_of_toy_know_its_whole_grammar(folder, tmp_path):
    shutil.copytree(folder, tmp_path / 'copy')
    write_manifest(tmp_path / 'copy', captioner='toy')
    made = sources.resolve(config(tmp_path / 'copy'))
    assert made.text.words == shapes.WORDS and 'purple' in made.text.words  # which no caption of the four says


def test_failures_of_the_captioner_can_be_left_out(folder):
    made = sources.resolve(config(folder, 'data.max_distance=0.5'))
    assert [record['seed'] for record in sources.make(made)[0].records] == [3, 4, 4000000000]
    with pytest.raises(UsageError, match='no pair within data.max_distance=0.01'):
        sources.resolve(config(folder, 'data.max_distance=0.01'))


@pytest.mark.parametrize(
    'section, key, value, text',
    [
        ('render', 'plane_axes', 'legacy', "render.plane_axes='legacy', there 'orthogonal'"),
        ('render', 'box_warp', 1.0, 'render.box_warp=1.0, there 2.0'),
        ('render', 'background', 1.0, 'render.background=1.0, there 0.5'),
        ('generator', 'plane_resolution', 16, 'generator.plane_resolution=16, there 8'),
        ('generator', 'plane_channels', 8, 'generator.plane_channels=8, there 4'),
        ('generator', 'sr_style', 'w', "generator.sr_style='w', there 'unit'"),
    ],
    ids=lambda value: str(value)[:16],
)
def test_planes_that_mean_something_else_are_refused(folder, tmp_path, section, key, value, text):
    """Planes of the folder's own generator, and of a copy elsewhere with the same arrays."""
    theirs = small_triplanes.config().to_dict()
    other = configs.from_dict({**theirs, section: {**theirs[section], key: value}})
    shutil.copytree(folder / 'frozen', tmp_path / 'same')
    (tmp_path / 'same' / 'config.json').write_text(configs.to_json(other))
    refused = pytest.raises(UsageError, match="holds other triplanes than its generator's config describes: " + text)
    with refused:
        sources.resolve(config(folder, given={'generator': str(tmp_path / 'same')}))
    shutil.copytree(folder, tmp_path / 'copy')
    shutil.copy(tmp_path / 'same' / 'config.json', tmp_path / 'copy' / 'frozen' / 'config.json')
    with refused:
        sources.resolve(config(tmp_path / 'copy'))


def test_a_folder_of_an_older_version_says_how_it_is_made_new(folder, tmp_path):
    """There the statistics were arrays beside the generator."""
    shutil.copytree(folder, tmp_path / 'old')
    stats = {'mean': np.zeros(12, np.float32), 'std': np.ones(12, np.float32)}
    weights.save(
        tmp_path / 'old' / 'frozen',
        {**jax.device_get(small_triplanes.loaded().weights), 'stats': stats},
        small_triplanes.config(),
    )
    with pytest.raises(UsageError, match='made by an older t3d: run the command that made it once more .* keeps the pairs'):
        sources.resolve(config(tmp_path / 'old'))


def test_a_manifest_of_another_generator_is_refused(folder, tmp_path):
    out = tmp_path / 'copy'
    shutil.copytree(folder, out)
    other = small_triplanes.loaded(1)
    weights.save(out / 'frozen', jax.device_get(other.weights), other.config)
    with pytest.raises(UsageError, match='is not the one its pairs were made with .*the captions are of other objects'):
        sources.resolve(config(out))


BEGINS = [1.622642, 2.025265, -0.433594, -0.078617, 0.176091, -0.972089, -0.495299, 0.494379]  # of seed 0


def test_a_z_is_the_same_for_good():
    """Captions were written for these numbers."""
    begun = triplanes.beginning(0)
    assert begun['seed'] == 0
    np.testing.assert_allclose(begun['begins'], BEGINS, atol=2e-6)
    whole = np.asarray(prng.normals(np.array([3, 0], np.uint32), 64))
    np.testing.assert_allclose(whole[1, :8], BEGINS, atol=2e-6)
    expected = jax.random.normal(jax.random.key(3, impl='threefry2x32'), (64,), jnp.float32)
    np.testing.assert_array_equal(whole[0], expected)


def test_pairs_of_other_draws_are_refused(folder, tmp_path, capsys):
    out = tmp_path / 'copy'
    shutil.copytree(folder, out)
    write_manifest(out, z=triplanes.beginning(17))
    assert len(triplanes.Pairs(out)) == len(PAIRS) and not capsys.readouterr().err
    kept = {'seed': 17, 'begins': [round(value + 2e-5, 6) for value in triplanes.beginning(17)['begins']]}
    write_manifest(out, z=kept)
    assert triplanes.check(out)['z'] == kept  # another device's rounding
    for seed, begins in (
        (17, triplanes.beginning(18)['begins']),
        (17, [0.0] * 8),
        (18, kept['begins']),
        (17, [float('nan')] * 8),
    ):
        write_manifest(out, z={'seed': seed, 'begins': begins})
        message = (
            rf'the z of seed {seed} began with .* and begins with .* here: the captions are of other objects\. Make it with'
        )
        with pytest.raises(UsageError, match=message):
            triplanes.Pairs(out)
    for damaged in (3, {}, {'seed': 'x', 'begins': []}, {'seed': -1, 'begins': [0.0] * 8}, {'seed': 2**32, 'begins': None}):
        write_manifest(out, z=damaged)
        with pytest.raises(UsageError, match='manifest.json is damaged|seed .*: wanted 0 to|began with'):
            triplanes.Pairs(out)


def test_sets_from_before_the_fingerprint_are_read_and_a_line_says_so(folder, tmp_path, capsys):
    out = tmp_path / 'old'
    shutil.copytree(folder, out)
    write_manifest(out)
    for _ in range(2):
        assert len(triplanes.Pairs(out)) == len(PAIRS)
    said = capsys.readouterr().err
    assert said.count('was made before sets kept how a z begins') == 1 and said.startswith('note: ')


@pytest.mark.parametrize('seed', [-1, 2**32, 1e300, None, 'x'])
def test_seeds_that_are_none(folder, tmp_path, seed):
    out = tmp_path / 'copy'
    shutil.copytree(folder, out)
    (out / 'manifest.jsonl').write_text(json.dumps({'seed': seed, 'caption': 'a red cube'}) + '\n')
    write_manifest(out, pairs=1)
    with pytest.raises(UsageError, match='line 1 is no pair'):
        triplanes.Pairs(out)


def test_a_fingerprint_sees_every_bit_and_no_other_part():
    leaves = {name: np.asarray(leaf) for name, leaf in tree.flatten(small_triplanes.loaded().weights).items()}
    first = triplanes.fingerprint(leaves)
    assert first == triplanes.fingerprint({**dict(reversed(leaves.items())), 'stats/mean': np.ones(3)})
    for name in ('generator/decoder/out/bias', 'buffers/w_avg'):
        name = name if name in leaves else next(key for key in leaves if key.startswith(name.split('/')[0]))
        changed = leaves[name].copy()
        changed.reshape(-1)[-1] = np.nextafter(changed.reshape(-1)[-1], np.float32(9.0))
        assert triplanes.fingerprint({**leaves, name: changed}) != first
        assert triplanes.fingerprint({**leaves, name: leaves[name].reshape(1, *leaves[name].shape)}) != first


def test_what_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match='no triplanes in .*nowhere.*python -m launch.make_triplanes --run RUN --out'):
        sources.resolve(config(tmp_path / 'nowhere'))
    with pytest.raises(UsageError, match='data.path is empty: give the folder of triplanes. Make it with'):
        sources.resolve(config(''))
    out = tmp_path / 'copy'
    shutil.copytree(folder, out)
    (out / 'manifest.jsonl').write_text('{"seed": 3, "caption": "a red cube"}\n')
    with pytest.raises(UsageError, match='manifest.jsonl has 1 lines of 4: it is truncated'):
        sources.resolve(config(out))
    write_manifest(out, pairs=1)
    assert len(sources.make(sources.resolve(config(out)))[0]) == 1
    (out / 'manifest.jsonl').write_text('{"seed": "many", "caption": "a red cube"}\n')
    with pytest.raises(UsageError, match='line 1 is no pair'):
        sources.resolve(config(out))
    write_manifest(out, format_version=2)
    with pytest.raises(UsageError, match='has format 2, this t3d reads up to 1'):
        sources.resolve(config(out))
    write_manifest(out)
    shutil.rmtree(out / 'frozen')
    with pytest.raises(UsageError, match='lacks frozen/model.safetensors, frozen/config.json'):
        sources.resolve(config(out))
    (out / 'manifest.json').write_text('{"pai')
    with pytest.raises(UsageError, match='manifest.json is damaged'):
        sources.resolve(config(out))
