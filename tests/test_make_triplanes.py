"""Captioned triplanes: what is written is what the generator makes, however often it was interrupted."""

import functools
import json
import shutil
import types

import jax
import numpy as np
import pytest
import small_triplanes

from t3d.build import captioners, make_triplanes
from t3d.checkpoint import weights
from t3d.core import config as configs
from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.data.adapters import triplanes
from t3d.data.sets import shapes
from t3d.fields import triplane_generator
from t3d.inference import loading
from t3d.metrics import fid

PAIRS, BATCH = 10, 4


@pytest.fixture(autouse=True)
def generators(monkeypatch):
    """Folders 'g0' and 'g1' of two generators."""
    monkeypatch.setattr(loading, 'load', lambda folder: small_triplanes.loaded(int(folder[1]), folder))


def run(out, source='g0', pairs=PAIRS, **options):
    return make_triplanes.run(source, out, pairs=pairs, log=lambda line: None, **{'batch': BATCH, **options})


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, 'load', lambda folder: small_triplanes.loaded(int(folder[1]), folder))
        return run(tmp_path_factory.mktemp('pairs') / 'pairs')


def lines(folder):
    return [json.loads(line) for line in (folder / triplanes.LINES).read_text().splitlines()]


@pytest.fixture(scope='module')
def planes():
    """The planes of every pair, by the generator alone."""
    loaded = small_triplanes.loaded()
    generator = triplane_generator.Generator(loaded.config)
    draw = jax.jit(lambda p, seeds: generator.planes_of_seeds(p['generator'], p['buffers'], seeds))
    return np.asarray(draw(loaded.weights, np.arange(PAIRS, dtype=np.uint32)))


def test_the_folder(made):
    assert {path.name for path in made.iterdir()} == {'manifest.json', 'manifest.jsonl', 'frozen', make_triplanes.SHEET}
    manifest, pairs = json.loads((made / 'manifest.json').read_text()), lines(made)
    assert [line['seed'] for line in pairs] == list(range(PAIRS))
    words = {text for scene in shapes.singles('all') for text in scene.captions}
    for line in pairs:
        assert line['caption'] in words and line['slots']['shape'] in line['caption'] and line['slots']['distance'] > 0
    assert (manifest['pairs'], manifest['psi'], manifest['captioner'], manifest['format_version']) == (PAIRS, 1.0, 'toy', 1)
    assert manifest['triplanes'] == {
        'plane_axes': 'orthogonal',
        'resolution': 8,
        'channels': 4,
        'bound': 2.0,
        'background': 0.5,
        'sr_style': 'unit',
    }


def test_statistics_equal_two_passes_over_the_same_planes(made, planes):
    mean, std = triplanes.statistics(triplanes.read_manifest(made))
    rows = planes.astype(np.float64).transpose(1, 4, 0, 2, 3).reshape(12, -1)  # plane-major channels
    np.testing.assert_allclose(mean, rows.mean(1), rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(std, rows.std(1), rtol=2e-6)
    sums = json.loads((made / 'manifest.json').read_text())['stats']
    assert sums['count'] == PAIRS * 64
    np.testing.assert_allclose(np.sqrt(np.array(sums['squares']) / sums['count']), rows.std(1), rtol=1e-6)


def test_the_frozen_generator_is_the_one_that_was_loaded(made):
    params, config = weights.load(made / triplanes.FROZEN)
    generator = tree.flatten(jax.device_get(small_triplanes.loaded().weights))
    frozen = tree.flatten(params)
    assert set(frozen) == set(generator)
    for name, leaf in generator.items():
        np.testing.assert_array_equal(frozen[name], leaf, err_msg=name)
    assert config.system == 'ganfusion_gan' and config.generator == small_triplanes.config().generator


def test_normalised_planes_come_back(made, planes):
    """Check 21 of the reference: the round trip renders the same picture."""
    stats = triplanes.statistics(triplanes.read_manifest(made))
    mean, std = (np.float32(value).reshape(3, 1, 1, 4) for value in stats)
    normal = (planes - mean) / std
    per_channel = normal.transpose(1, 4, 0, 2, 3).reshape(12, -1)
    np.testing.assert_allclose(per_channel.mean(1), 0.0, atol=1e-5)
    np.testing.assert_allclose(per_channel.std(1), 1.0, atol=1e-5)
    loaded = small_triplanes.loaded()
    generator = triplane_generator.Generator(loaded.config)
    label = np.asarray(generator.front())[None]
    draw = jax.jit(lambda planes: generator.render(loaded.weights['generator'], planes, label, size=8).features)
    np.testing.assert_allclose(draw(normal[:1] * std + mean), draw(planes[:1]), atol=1e-5)


def test_interrupted_equals_uninterrupted(made, tmp_path):
    out = tmp_path / 'pairs'
    run(out, pairs=4)
    with (out / triplanes.LINES).open('a') as file:  # killed while it wrote: a whole line that is not counted, and a part
        file.write('{"seed": 4, "caption": "a lie", "slots": {}}\n{"seed": 5, "capt')
    (out / 'manifest.json.part').write_text('{"pai')
    run(out)
    for name in ('manifest.json', 'manifest.jsonl', 'frozen/model.safetensors', 'frozen/config.json'):
        assert (out / name).read_bytes() == (made / name).read_bytes(), name
    before = (out / 'manifest.jsonl').read_bytes()
    run(out)  # nothing to do
    assert (out / 'manifest.jsonl').read_bytes() == before


def test_a_pair_depends_on_its_seed_alone(made, tmp_path):
    pairs_alone = lines(run(tmp_path / 'pairs', seed0=3, pairs=2, batch=2))
    for line, other in zip(pairs_alone, lines(made)[3:5], strict=True):
        assert (line['seed'], line['caption']) == (other['seed'], other['caption'])
        assert abs(line['slots']['distance'] - other['slots']['distance']) < 1e-3


def test_truncation_and_several_views(planes):
    """psi 0 is the average object from whichever side, psi 1 the planes of `planes_of_seeds`; pictures go to their labels."""
    loaded, seeds = small_triplanes.loaded(), np.arange(3, dtype=np.uint32)
    average = make_triplanes.SampleRenderer(loaded, 0.0, 2)(seeds, 4)
    assert average.images.shape == (3, 2, 32, 32, 3) and average.labels.shape == (3, 2, 25)
    one = average.channels.reshape(3, 64, 12)
    np.testing.assert_array_equal(one[0], one[2])
    assert np.ptp(average.images, axis=(0, 1)).max() > 0.01
    whole = make_triplanes.SampleRenderer(loaded, 1.0, 1)(seeds, 4)
    np.testing.assert_allclose(whole.channels, make_triplanes.channels_of(planes[:3]), atol=1e-5)
    generator = triplane_generator.Generator(loaded.config)
    params, buffers = loaded.weights['generator'], loaded.weights['buffers']
    ws = generator.ws(params, buffers, generator.z_of_seed(seeds))
    image, _ = jax.jit(lambda ws, label: generator.image(params, buffers, ws, label))(ws, whole.labels[:, 0])
    np.testing.assert_allclose(whole.images[:, 0], np.clip(0.5 + 0.5 * image, 0, 1), atol=1e-5)


def test_folders_of_others_are_refused(made, tmp_path):
    before = (made / 'manifest.json').read_bytes()
    with pytest.raises(UsageError, match=r'has 10 pairs of another generator: g0, step 5 \(SHA-256 .*\), not g1, step 5'):
        run(made, 'g1', pairs=12)
    with pytest.raises(UsageError, match='made otherwise: psi 1.0 there, 0.7 given'):
        run(made, psi=0.7, pairs=12)
    assert (made / 'manifest.json').read_bytes() == before
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'notes.txt').write_text('mine')
    with pytest.raises(UsageError, match='holds notes.txt but no manifest.json'):
        run(tmp_path / 'mine')
    with pytest.raises(UsageError, match='at least 1'):
        run(tmp_path / 'none', pairs=0)


def test_a_set_of_other_draws_is_not_gone_on_with(made, tmp_path):
    out = tmp_path / 'pairs'
    shutil.copytree(made, out)
    there = triplanes.read_manifest(out)
    assert there['z'] == triplanes.beginning(there['seed0'])
    kept = {**there, 'z': {'seed': there['seed0'], 'begins': [0.5] * 8}}
    (out / triplanes.MANIFEST).write_text(json.dumps(kept))
    with pytest.raises(UsageError, match=f'the z of seed {there["seed0"]} began with 0.5000, 0.5000, 0.5000 when its pairs'):
        run(out, pairs=12)
    assert json.loads((out / triplanes.MANIFEST).read_text()) == kept
    (out / triplanes.MANIFEST).write_text(json.dumps({name: value for name, value in there.items() if name != 'z'}))
    run(out, pairs=11)  # of a set from before there was one
    after = triplanes.read_manifest(out)
    assert after['pairs'] == 11 and after['z'] is None


def test_other_systems_make_no_triplanes(tmp_path, monkeypatch):
    other = configs.from_dict({**small_triplanes.config().to_dict(), 'system': 'instant3d'})
    whole = small_triplanes.loaded()
    monkeypatch.setattr(
        loading, 'load', lambda folder: whole._replace(config=other, system=whole.system._replace(functions=None))
    )
    with pytest.raises(UsageError, match='g0 is of system instant3d: triplanes come from a run of a triplane GAN'):
        run(tmp_path / 'pairs')


def test_changed_lines_are_noticed(tmp_path):
    out = run(tmp_path / 'pairs', pairs=2, batch=2)
    text = (out / triplanes.LINES).read_text()
    (out / triplanes.LINES).write_text(text.replace('"caption": "', '"caption": "not ', 1))
    with pytest.raises(UsageError, match='manifest.jsonl is not what was written'):
        run(out, pairs=4, batch=2)


def test_moments_merge_as_one_pass():
    random = np.random.default_rng(0)
    values = 1e4 + random.normal(size=(1000, 3)) * [1e-2, 1.0, 30.0]  # where sums of squares in float32 would fail
    parts = [make_triplanes.channel_moments(values[start : start + 130]) for start in range(0, 1000, 130)]
    whole = functools.reduce(fid.merge, parts)
    assert whole.n == 1000
    np.testing.assert_allclose(whole.mean, values.mean(0), rtol=1e-13)
    np.testing.assert_allclose(np.sqrt(whole.covariance), values.std(0), rtol=1e-9)


def test_the_command(tmp_path, monkeypatch, capsys):
    from launch import make_triplanes as command

    seen, records = {}, [{'slots': {'distance': value}} for value in (0.0, 0.5, 1.0)] + [{'slots': {}}]
    monkeypatch.setattr(command.triplanes, 'Pairs', lambda path: types.SimpleNamespace(records=records))
    monkeypatch.setattr(make_triplanes, 'run', lambda run, out, **options: seen.update(run=run, out=out, **options) or out)
    command.main(
        ['--run', 'g0', '--out', 'o', '--pairs', '7', '--captioner', 'blip', '--captioner-weights', 'w', '--psi', '0.7']
    )
    assert seen['run'] == 'g0' and (seen['pairs'], seen['psi'], seen['captioner'], seen['weights']) == (7, 0.7, 'blip', 'w')
    told = capsys.readouterr().out
    assert 'data.path=o' in told and 'distance 0.50, of a tenth of the pairs below 0.10, of a tenth above 0.90;' in told
    assert command.how_far(records[3:]) == ''
    monkeypatch.setattr(make_triplanes, 'run', lambda *args, **options: captioners.make('tyo', small_triplanes.config()))
    with pytest.raises(SystemExit):
        command.main(['--run', 'g0', '--out', 'o'])
    assert "error: unknown captioner 'tyo'" in capsys.readouterr().err
