import io
import sys

import numpy as np
import pytest

from t3d.data.sets import objmesh, raycast
from t3d.geom import cameras

SIZE, RADIUS, FOV = 33, 3.5, 0.7027699


def rig(azimuth=0.0, elevation=0.0):
    camera = cameras.orbit(azimuth, elevation, RADIUS, FOV)
    return np.asarray(camera.world_from_cam), np.asarray(camera.intrinsics)


def square(z, half=0.5, flip=False):
    """Two triangles in the plane at height z of the front axis, with uvs that span it."""
    corners = np.array([[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]])
    uvs = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    order = np.array([[0, 2, 1], [0, 3, 2]] if flip else [[0, 1, 2], [0, 2, 3]])
    return corners[order], uvs[order]


def mesh_of(*squares, parts):
    positions = np.concatenate([positions for positions, _ in squares]).astype(np.float32)
    uvs = np.concatenate([uvs for _, uvs in squares]).astype(np.float32)
    part = np.repeat(np.arange(len(squares)), 2).astype(np.int32)
    return objmesh.Mesh(positions, uvs, np.full_like(positions, np.nan), part, parts)


def cube(half=0.5):
    """A closed cube with mixed windings, so that only the turn towards the viewer makes its normals right."""
    faces = []
    for axis in range(3):
        for sign in (-half, half):
            positions, _ = square(sign, half, flip=sign < 0)
            faces.append(np.roll(positions, axis, axis=-1))
    positions = np.concatenate(faces).astype(np.float32)
    no_uvs, no_normals = np.full((12, 3, 2), np.nan, np.float32), np.full_like(positions, np.nan)
    return objmesh.Mesh(positions, no_uvs, no_normals, np.zeros(12, np.int32), (objmesh.Part('grey', (0.5, 0.6, 0.7)),))


def render(mesh, pose=(0.0, 0.0), size=SIZE, supersample=1, read=None):
    world_from_cam, intrinsics = rig(*pose)
    scene = raycast.Scene(mesh, read)
    hits = raycast.view_hits(scene, world_from_cam, intrinsics, size, supersample)
    return raycast.image(hits, hits.albedo, size, supersample), raycast.planar_depth(scene, world_from_cam, intrinsics, size)


def test_rays_are_those_of_the_library():
    world_from_cam, intrinsics = rig(0.4, 0.3)
    origins, directions = raycast.pixel_rays(world_from_cam, intrinsics, 7)
    rays = cameras.rays(cameras.Cameras(world_from_cam, intrinsics), 7, 7)
    np.testing.assert_allclose(origins.reshape(7, 7, 3), rays.origins, atol=1e-6)
    np.testing.assert_allclose(directions.reshape(7, 7, 3), rays.directions, atol=1e-6)


def test_a_cube_from_the_front():
    image, depth = render(cube())
    seen = depth > 0
    np.testing.assert_allclose(depth[seen], RADIUS - 0.5, atol=1e-5)  # planar: the same everywhere on the face
    half_px = 0.5 / (RADIUS - 0.5) * 0.5 / np.tan(FOV / 2) * SIZE
    assert abs(seen.sum() ** 0.5 - 2 * half_px) < 1.0
    np.testing.assert_array_equal(image[..., 3] == 255, seen)
    shade = raycast.AMBIENT + raycast.SUN * raycast.LIGHT[2]
    np.testing.assert_allclose(image[16, 16, :3], np.round(255 * shade * np.array([0.5, 0.6, 0.7])), atol=1)
    assert (image[~seen] == 0).all()


def test_depth_unprojects_onto_the_surface():
    world_from_cam, intrinsics = rig(0.7, 0.4)
    _, depth = render(cube(), (0.7, 0.4))
    rays = cameras.rays(cameras.Cameras(world_from_cam, intrinsics), SIZE, SIZE)
    cosine = np.asarray(rays.directions) @ world_from_cam[:3, 2]
    points = np.asarray(rays.origins) + np.asarray(rays.directions) * (depth / cosine)[..., None]
    np.testing.assert_allclose(np.abs(points[depth > 0]).max(-1), 0.5, atol=1e-5)


def test_shading_does_not_depend_on_the_view():
    world = np.array([0.1, 0.5, 0.1])  # a point on the top face
    colours = []
    for azimuth in (0.0, 1.0, 2.5, 4.0):
        image, _ = render(cube(), (azimuth, 0.6), size=65)
        world_from_cam, intrinsics = rig(azimuth, 0.6)
        uv, _ = cameras.project(cameras.Cameras(world_from_cam, intrinsics), world[None])
        column, row = (np.asarray(uv)[0] * 65).astype(int)
        colours.append(image[row, column, :3])
    assert (np.ptp(colours, axis=0) == 0).all()
    expected = (raycast.AMBIENT + raycast.SKY + raycast.SUN * raycast.LIGHT[1]) * np.array([0.5, 0.6, 0.7])
    np.testing.assert_allclose(colours[0], np.round(255 * expected), atol=1)


def test_supersampling_gives_coverage_and_straight_colour():
    image, _ = render(cube(), size=20, supersample=4)
    edge = (image[..., 3] > 0) & (image[..., 3] < 255)
    assert edge.any()
    assert (np.ptp(image[image[..., 3] > 0][:, :3], axis=0) <= 1).all()  # the colour does not fade with the coverage
    side = np.sqrt(image[..., 3].sum() / 255)
    assert abs(side - 1.0 / 3.0 * 0.5 / np.tan(FOV / 2) * 20) <= 0.25  # one sample


def test_transparent_parts_blend_by_distance():
    shade = raycast.AMBIENT + raycast.SUN * raycast.LIGHT[2]
    blue, red = objmesh.Part('blue', (0, 0, 1)), objmesh.Part('red', (1, 0, 0), opacity=0.4)
    for squares, parts in (((square(-0.4), square(0.3)), (blue, red)), ((square(0.3), square(-0.4)), (red, blue))):
        image, depth = render(mesh_of(*squares, parts=parts))
        np.testing.assert_allclose(image[16, 16], np.round([255 * shade * 0.4, 0, 255 * shade * 0.6, 255]), atol=1)
        np.testing.assert_allclose(depth[16, 16], RADIUS + 0.4, atol=1e-5)  # red lets more than half through
    image, depth = render(mesh_of(square(0.0), parts=(red,)))
    np.testing.assert_allclose(image[16, 16], [round(255 * shade), 0, 0, 102], atol=1)
    assert depth[16, 16] == 0.0


def png_reader(pixels):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.array(pixels, np.uint8)).save(buffer, 'PNG')
    return {'t.png': buffer.getvalue()}.__getitem__


def test_textures_are_upright_repeat_and_cut_out():
    pixels = [[[255, 0, 0, 255], [0, 255, 0, 255]], [[0, 0, 255, 255], [255, 255, 255, 0]]]
    mesh = mesh_of(square(0.0), parts=(objmesh.Part('t', texture='t.png'),))
    image, depth = render(mesh, read=png_reader(np.kron(np.array(pixels), np.ones((8, 8, 1)))))
    shade = raycast.AMBIENT + raycast.SUN * raycast.LIGHT[2]
    centre, offset = SIZE // 2, 3
    bright = round(255 * shade)
    np.testing.assert_allclose(image[centre - offset, centre - offset], [bright, 0, 0, 255], atol=1)  # the image's top left
    np.testing.assert_allclose(image[centre - offset, centre + offset], [0, bright, 0, 255], atol=1)
    np.testing.assert_allclose(image[centre + offset, centre - offset], [0, 0, bright, 255], atol=1)
    assert image[centre + offset, centre + offset, 3] == 0 and depth[centre + offset, centre + offset] == 0
    uv = np.array([[0.25, 0.75], [1.25, -0.25], [-0.75, 2.75]], np.float32)
    texture = np.kron(np.array(pixels, np.float32), np.ones((8, 8, 1), np.float32)) / 255
    np.testing.assert_allclose(raycast._bilinear(texture, uv), np.broadcast_to([1, 0, 0, 1], (3, 4)))


def test_fine_textures_are_averaged_not_aliased():
    checks = np.indices((256, 256)).sum(0) % 2 * 255
    pixels = np.stack([checks, checks, checks, np.full_like(checks, 255)], -1)
    mesh = mesh_of(square(0.0), parts=(objmesh.Part('t', texture='t.png'),))
    image, _ = render(mesh, read=png_reader(pixels))
    inside = image[image[..., 3] == 255][:, 0].astype(float)
    assert inside.std() < 2.0


def test_a_broken_texture_falls_back_to_the_material():
    mesh = mesh_of(square(0.0), parts=(objmesh.Part('t', (0, 1, 0), texture='t.png'),))
    for read in (None, {'t.png': b'not a picture'}.__getitem__, {}.__getitem__):
        image, _ = render(mesh, read=read)
        assert image[16, 16, 0] == 0 and image[16, 16, 1] > 0


def test_corner_normals_shade_smoothly_and_face_the_viewer():
    positions, uvs = square(0.0)
    for sign in (1, -1):
        normals = np.broadcast_to(sign * np.array([0.0, 0.6, 0.8], np.float32), positions.shape)
        mesh = objmesh.Mesh(
            positions.astype(np.float32),
            uvs.astype(np.float32),
            normals,
            np.zeros(2, np.int32),
            (objmesh.Part('w', (1, 1, 1)),),
        )
        image, _ = render(mesh)
        expected = raycast.shade(np.array([0.0, 0.6, 0.8]))
        np.testing.assert_allclose(image[16, 16, 0], 255 * expected, atol=1)


def test_fit_sphere():
    points = np.random.default_rng(0).normal(size=(50, 3, 3)) * [1, 2, 3] + 7
    fitted = raycast.fit_sphere(points, 0.9).reshape(-1, 3)
    np.testing.assert_allclose(np.linalg.norm(fitted, axis=-1).max(), 0.9, rtol=1e-5)
    np.testing.assert_allclose(fitted.min(0), -fitted.max(0), atol=1e-5)


def test_errors_name_the_next_step(monkeypatch):
    with pytest.raises(ValueError, match='no triangle'):
        raycast.Scene(objmesh.parse_obj('', {}))
    monkeypatch.setitem(sys.modules, 'embreex.mesh_construction', None)
    with pytest.raises(ImportError, match=r'pip install t3d\[data\]'):
        raycast.Scene(cube())
