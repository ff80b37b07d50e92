"""A renderer sees what lies before its camera, of whichever system, from wherever: against a closed form in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.core import config as configs
from t3d.fields import triplane_field
from t3d.fields.text_field import TextField
from t3d.fields.triplane_generator import Generator
from t3d.geom import cameras, volume
from t3d.geom.rays import Rays, ray_box
from t3d.metrics import consistency
from t3d.systems import renderdiffusion

DENSITY, COUNT = 1.3, 600


def bundle():
    """Origins outside, inside and on faces of the cube [-1, 1]^3; directions of all sorts, many along an axis."""
    random = np.random.default_rng(4)
    origins = random.uniform(-2.5, 2.5, (COUNT, 3))
    origins[: COUNT // 3] *= 0.3  # inside
    origins[COUNT // 3 : COUNT // 2] = np.round(origins[COUNT // 3 : COUNT // 2])  # on faces, edges and corners, too
    directions = random.normal(size=(COUNT, 3))
    directions[::3] = np.eye(3)[random.integers(3, size=COUNT // 3)] * random.choice([-1.0, 1.0], (COUNT // 3, 1))
    directions[1::6, 1] = 0.0  # within a plane
    origins, directions = origins.astype(np.float32), directions.astype(np.float32)
    return origins, directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def visible_length(origin, direction) -> float:
    """Length of the half-line within the open cube: its crossings of the six planes in order, each piece by its middle."""
    ends = {0.0, 50.0}
    for axis in range(3):
        if direction[axis]:
            ends |= {t for t in ((side - origin[axis]) / direction[axis] for side in (-1.0, 1.0)) if 0.0 < t < 50.0}
    ends, total = sorted(ends), 0.0
    for low, high in zip(ends, ends[1:]):
        if np.all(np.abs(origin + 0.5 * (low + high) * direction) < 1.0):
            total += high - low
    return total


@pytest.mark.parametrize('chunk', [None, 128])
def test_a_cube_of_fog_from_outside_and_from_within(chunk):
    origins, directions = bundle()
    rays = Rays(jnp.asarray(origins), jnp.asarray(directions))
    fog = lambda points, _: (jnp.full(points.shape[:-1], DENSITY), jnp.ones((*points.shape[:-1], 1)))
    near, far = ray_box(rays, 2.0)
    options = dict(near=near, far=far, num_samples=6, num_importance=4)
    render = volume.render if chunk is None else volume.render_chunked
    out = render(fog, rays, None, **options, **({} if chunk is None else {'chunk': chunk}))
    length = np.array([visible_length(o, d) for o, d in zip(origins.astype(np.float64), directions.astype(np.float64))])
    grazing = np.any(
        (np.abs(origins) == 1.0) & (directions == 0.0), -1
    )  # within a face: of measure zero, either answer will do
    assert (length == 0.0).sum() > 100 and (length > 0.5).sum() > 200
    np.testing.assert_allclose(out.opacity[~grazing], (1.0 - np.exp(-DENSITY * length))[~grazing], atol=2e-5)
    behind = np.asarray((far < 0.0) & (near <= far))
    assert behind.sum() > 15
    np.testing.assert_array_equal(out.opacity[behind], 0.0)
    assert float(out.depth.min()) >= 0.0 and bool(jnp.isfinite(out.depth).all())


def renderers():
    """(name, rays -> RenderOutput) of solid objects of the three systems."""

    def scene(channels, hidden, outputs, equalised):
        key = jax.random.key(0)
        decoder = triplane_field.init(key, channels, hidden=hidden, outputs=outputs, equalised=equalised)
        decoder['out']['bias'] = decoder['out']['bias'].at[0].set(5.0)  # dense everywhere
        return jnp.zeros((3, 8, 8, channels)), decoder

    gan = configs.load('ganfusion_gan:tiny')
    for limits in ('box', 'fixed'):
        gan.render.update(limits=limits, near=-4.0 if limits == 'fixed' else 0.0, far=9.0 if limits == 'fixed' else 0.0)
        generator = Generator(gan)
        planes, decoder = scene(generator.channels, generator.hidden, generator.features, True)
        yield f'ganfusion {limits}', lambda rays, g=generator, d=decoder, p=planes: g.render_rays({'decoder': d}, p, rays)
    diffusion = configs.load('renderdiffusion:tiny')
    diffusion.text.words = ('red', 'cube')
    model = renderdiffusion.Model(diffusion)
    planes, decoder = scene(diffusion.planes.channels, diffusion.planes.hidden, 3, True)
    yield 'renderdiffusion', lambda rays: model.render_rays({'planes': planes, 'decoder': decoder}, rays)
    direct = configs.load('instant3d:tiny')
    direct.text.words = ('red', 'cube')
    modules = TextField(direct)
    pl, field = scene(modules.plane_channels, direct.field.hidden, 3, False)
    field['alpha'] = jnp.float32(1.0)
    yield 'instant3d', lambda rays: modules.render_one({'planes': pl, 'field': field}, rays)


def test_no_system_sees_its_object_through_the_back_of_the_camera():
    """Rays of four cameras in one bundle: towards the object, within it, and two that look away from it."""
    position = jnp.array([[0.0, 0.0, 3.2], [0.0, 0.0, 0.1], [0.0, 0.0, 3.2], [0.0, 0.0, 3.2]])
    target = jnp.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 6.4], [0.3, 0.2, 6.4]])
    views = cameras.Cameras(cameras.look_at(position, target), jnp.stack([cameras.intrinsics_from_fov(0.6)] * 4))
    for name, render in renderers():
        out = jax.jit(render)(cameras.rays(views, 3, 3))
        assert float(out.depth.min()) >= 0.0, name
        assert float(out.opacity[:2].min()) > 0.5, name
        if 'fixed' not in name:  # that one samples wherever it is told to, in front
            np.testing.assert_array_equal(out.opacity[2:], 0.0, err_msg=name)
            assert float(jnp.max(jnp.std(out.features[2:], (1, 2)))) == 0.0, name  # the background alone


def test_views_that_look_apart_share_no_points():
    """Points behind the other camera project into its picture upside down: they are not seen there."""
    lens = jnp.stack([cameras.intrinsics_from_fov(0.8)] * 2)
    pose = cameras.look_at(jnp.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]), jnp.array([[0.0, 0.0, 9.0], [0.0, 0.0, -9.0]]))
    rgb, depth, opacity = np.full((2, 5, 5, 3), 0.5, np.float32), np.full((2, 5, 5), 2.0), np.ones((2, 5, 5))
    shared = consistency.agreement(rgb, depth.astype(np.float32), opacity.astype(np.float32), cameras.Cameras(pose, lens), 3.0)
    assert shared.overlap == 0.0 and shared.seen == 0.0
