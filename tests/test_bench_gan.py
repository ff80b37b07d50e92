"""`t3d bench gan`: the table, what a phase moves, and a peer of the same sizes, cameras and filters."""

import json

import cheap_keys
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.bench import gan as gan_bench
from t3d.bench import measure, table
from t3d.core import config as configs
from t3d.core import tree
from t3d.geom import cameras
from t3d.geom import rays as ray_tools
from t3d.nets import fir

SMALL = (
    'batch=4',
    'micro_batch=4',
    'data.size=16',
    'render.size=8',
    'render.samples=6',
    'render.importance=6',
    'generator.plane_resolution=16',
    'generator.sr.input_size=8',
    'generator.channel_base=128',
    'generator.channel_max=16',
    'discriminator.channel_base=128',
    'discriminator.channel_max=16',
)


@pytest.fixture(scope='module')
def config():
    return configs.load(gan_bench.CONFIG, SMALL)


@pytest.fixture(scope='module')
def model(config):
    from t3d.systems import ganfusion_gan

    return ganfusion_gan.Model(config)


@pytest.fixture
def uncompiled(monkeypatch):
    """Programs are traced for their results' shapes, not compiled."""

    def traced(function, *args):
        shapes = jax.eval_shape(function, *args)
        return measure.Compiled(lambda *args: jax.tree.map(lambda leaf: 0, shapes), 1.5, 3 * measure.MIB)

    monkeypatch.setattr(measure, 'compiled', traced)
    monkeypatch.setattr(measure, 'PAUSE', 0.0)
    monkeypatch.setattr(measure, 'WARM', 0.0)


def test_the_table_without_a_peer(uncompiled, tmp_path, capsys):
    file = tmp_path / 'bench.json'
    assert table.main(['gan', '--repeats', '2', '--no-peer', '--json', str(file), *SMALL]) == 0
    printed, report = capsys.readouterr().out, json.loads(file.read_text())['figures']
    for name in (*gan_bench.PHASES, 'iteration'):
        assert f'| {name} |' in printed
    assert 'batch 4 of 16 px, 8^2 rays of 6 + 6 samples' in printed and 'peer: not asked for' in printed
    rows = report['phases']
    every = {'generator': 1, 'density': 4, 'discriminator': 1, 'r1': 16}
    for field, of in (('gflop', lambda row: row['gflop']), ('t3d_ms', lambda row: row['t3d_ms'][0])):
        total = sum(of(rows[name]) / times for name, times in every.items())
        assert abs(of(rows['iteration']) - total) < 1e-6 * total, field
    assert abs(rows['iteration']['images_per_s'] * rows['iteration']['t3d_ms'][0] - 4000) < 1e-3
    assert 'the step as trained: ' in printed and len(report['step_ms']) == 3
    assert rows['iteration']['compile_s'] == 6.0 and report['step_temp_mib'] == 3.0


def test_a_step_as_trained_goes_through_every_phase_and_on_from_its_own_state():
    seen = []
    timing = gan_bench.as_trained(lambda state, *_: (seen.append(state) or state + 1, {}), 5, None, 4, 2)
    assert seen == [5, 6, 7, 8] * 3 and timing.min <= timing.median <= timing.max


def test_an_iteration_beside_a_peer_is_weighed_turn_by_turn():
    """Generator and discriminator every time, density every 4th, r1 every 16th."""
    others = dict.fromkeys(('compile_s', 'temp_mib', 'peak_mib', 'rss_mib', 'peer_rss_mib'), 3.0)

    def phase(ours, theirs):
        turns = measure.Turns(ours, theirs)
        times = {'t3d_ms': turns.ours, 'peer_ms': turns.theirs, 'turns_ms': turns.mine, 'peer_turns_ms': turns.others}
        return {**times, **others, 'images_per_s': 8.0, 'gflop': 2.0, 'gbyte': 1.0}

    rows = {'generator': phase((10.0, 20.0), (30.0, 40.0)), 'discriminator': phase((4.0, 4.0), (8.0, 12.0))}
    rows |= {'density': phase((8.0, 16.0), (4.0, 4.0)), 'r1': phase((16.0, 32.0), (16.0, 16.0))}
    one = gan_bench._iteration(rows, {'density': 4, 'r1': 16})  # ours 17 and 30 ms, theirs 40 and 54
    np.testing.assert_allclose(one['ratio'], ((40 / 17 + 54 / 30) / 2, 54 / 30, 40 / 17))
    assert one['t3d_ms'] == (23.5, 17.0, 30.0) and one['peer_ms'][0] == 47.0
    assert one['gbyte'] == 2.3125 and one['gflop'] == 4.625 and one['peak_mib'] == 3.0


def test_the_larger_size_is_a_system(model):
    from t3d.systems import ganfusion_gan

    config = configs.load(gan_bench.CONFIG, gan_bench.SIZES['128'])
    large = ganfusion_gan.Model(config)
    assert large.generator.image_size == 128 and large.ladder[0][1] == 64


def test_the_peer_has_the_same_parameters(config, model):
    torch_gan = pytest.importorskip('peers.torch_gan')
    ours = jax.eval_shape(model.init, jax.random.key(0))
    training = torch_gan.Training(json.loads(json.dumps(gan_bench.peer_shape(config))))
    for name, net in (('generator', training.g), ('discriminator', training.d)):
        assert tree.count(ours[name]) == torch_gan.count(net)


@pytest.mark.parametrize('phase', gan_bench.PHASES)
def test_a_phase_of_the_peer_moves_its_network_alone(config, phase):
    torch, torch_gan = pytest.importorskip('torch'), pytest.importorskip('peers.torch_gan')
    torch.manual_seed(0)
    training = torch_gan.Training(gan_bench.peer_shape(config))
    nets = {'g': training.g, 'd': training.d}
    before = {name: [value.detach().clone() for value in net.parameters()] for name, net in nets.items()}
    assert np.isfinite(training.run(phase))
    moved = {
        name: sum(not torch.equal(a, b) for a, b in zip(before[name], net.parameters())) / len(before[name])
        for name, net in nets.items()
    }
    own, other = ('g', 'd') if phase in ('generator', 'density') else ('d', 'g')
    assert moved[other] == 0 and moved[own] > (0.3 if phase == 'density' else 0.6), moved


@pytest.fixture(scope='module')
def stepped(model, config):
    """(parameters, new ones by phase), compiled without optimisation."""
    params = jax.jit(model.init)(cheap_keys.key(0))
    opt_state = {name: model.optimizers[name].init(params[name]) for name in model.optimizers}
    args = (params, opt_state, gan_bench.batch(config), jax.random.key(1))
    run = gan_bench.phases(model, config.render.size)
    return params, {name: jax.jit(run[name])(*args)[0] for name in ('density', 'r1')}


def test_a_phase_of_ours_is_an_adam_step_of_its_network(stepped, config):
    params, new = stepped
    for phase, name, every in (('density', 'generator', 4), ('r1', 'discriminator', 16)):
        rate = config.optimizer[name].learning_rate * every / (every + 1)
        moves = [
            np.abs(np.asarray(a - b)) for a, b in zip(jax.tree.leaves(params[name]), jax.tree.leaves(new[phase]), strict=True)
        ]
        most = max(move.max() for move in moves)  # the first Adam step has the length of the learning rate
        assert abs(most - rate) < 2e-2 * rate, phase


def test_cameras_boxes_and_blur_of_the_peer_are_ours(config):
    torch, torch_gan = pytest.importorskip('torch'), pytest.importorskip('peers.torch_gan')
    label = gan_bench.labels(config)
    label[:, 17] = 0.03  # skew
    label[:, 18] = 0.45
    origins, directions = torch_gan.rays(torch.from_numpy(label), 8)
    ours = jax.tree.map(lambda leaf: leaf.reshape(len(label), -1, 3), cameras.rays(cameras.from_eg3d(label), 8, 8))
    np.testing.assert_allclose(ours.directions, directions, atol=1e-6)
    np.testing.assert_allclose(ours.origins, origins, atol=1e-6)
    near, far = (np.asarray(limit)[..., 0] for limit in torch_gan.box_limits(origins, directions, 0.5))
    our_near, our_far = ray_tools.ray_box(ours, 1.0)
    hit = np.asarray(our_near <= our_far)
    assert 0.05 < hit.mean() < 0.95
    np.testing.assert_allclose(np.where(hit, our_near, 0), near, atol=1e-5)
    np.testing.assert_allclose(np.where(hit, our_far, 0), far, atol=1e-5)
    image = np.random.default_rng(0).standard_normal((2, 20, 20, 3)).astype(np.float32)
    blurred = torch_gan.blur(torch.from_numpy(image).permute(0, 3, 1, 2), 1.7).permute(0, 2, 3, 1)
    np.testing.assert_allclose(fir.blur(jnp.asarray(image), 1.7), blurred, atol=1e-6)


@pytest.mark.slow
def test_the_table_with_a_peer(capsys):
    pytest.importorskip('torch')
    assert table.main(['gan', '--repeats', '1', *SMALL]) == 0
    printed = capsys.readouterr().out
    assert 'peer: torch' in printed and 'the whole step compiles in' in printed
    line = next(line for line in printed.splitlines() if line.startswith('| iteration'))
    assert float(line.split('|')[-2].split()[0]) > 0


def test_flops_are_counted_for_every_rung_and_near_the_closed_form(capsys):
    assert table.main(['gan', '--count', *SMALL, 'ladder=((0, 4), (100, 8))']) == 0
    rows = [line.split('|')[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [row[0].strip() for row in rows[2:]] == ['4 x 4 rays', '8 x 8 rays']
    for row in rows[2:]:
        generator, density, discriminator, r1, iteration = map(float, row[1:])
        assert iteration == pytest.approx(generator + density / 4 + discriminator + r1 / 16, rel=1e-3)
    assert float(rows[3][1]) > float(rows[2][1])  # more rays
    # The generator's phase is 3 generators (forward, backward) and the discriminator's 2 of it; its own is 1 and 6.
    solve = np.linalg.solve([[3.0, 2.0], [1.0, 6.0]], [float(rows[3][1]), float(rows[3][3])])
    assert solve[1] == pytest.approx(float(rows[3][4]) / 6, rel=0.25)  # r1 is 6 discriminators
