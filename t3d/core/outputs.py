"""What a system is asked for and what it makes: `Request`, and the six kinds of output.

Arrays are in the world of t3d.geom.cameras: y up, front +z, scene units; colours and pictures in [0, 1], sRGB. One writer for
each kind is in t3d.export.writers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from t3d.core.errors import UsageError
from t3d.core.typing import PyTree


class Picture(NamedTuple):
    """One picture of no camera.

    Attributes:
      image: [H, W, 3].
    """

    prompt: str
    image: jax.Array


class Views(NamedTuple):
    """Pictures of one object with their cameras.

    Attributes:
      images: [V, H, W, 3], or [V, H, W, 4] with straight alpha.
      world_from_cam: [V, 4, 4] OpenCV axes.
      intrinsics: [V, 3, 3] divided by the image size.
    """

    prompt: str
    images: jax.Array
    world_from_cam: jax.Array
    intrinsics: jax.Array


class Field(NamedTuple):
    """One object as a density and a colour in space.

    `field`, `render` and `picture` are jit-compatible functions of `scene`, so that all objects of a system share one program.

    Attributes:
      scene: pytree of arrays.
      field: `(scene, points [N, 3]) -> (density [N] >= 0 per scene unit, rgb [N, 3])`.
      render: `(scene, rays) -> geom.volume.RenderOutput`; rays is a geom.rays.Rays of any leading shape, the colour is
        composited over the background.
      bound: half the side of the world cube that holds the object.
      camera: `{'radius': float, 'fov': float}` the orbit the system was trained for, scene units and radians.
      picture: `(scene, cameras [V]) -> images [V, S, S, 3]` for systems whose pictures are more than the colours of the field
        (an upsampler behind the renderer); None for the others.
    """

    prompt: str
    scene: PyTree
    field: Callable
    render: Callable
    bound: float
    camera: dict[str, Any]
    picture: Callable | None = None


class Mesh(NamedTuple):
    """One object as triangles.

    Attributes:
      vertices: [N, 3].
      faces: [F, 3] integers, counter-clockwise from outside.
      colors: [N, 3], or None for grey.
    """

    prompt: str
    vertices: jax.Array
    faces: jax.Array
    colors: jax.Array | None = None


class Splats(NamedTuple):
    """One object as 3D Gaussians (arXiv 2308.04079).

    Attributes:
      means: [N, 3].
      scales: [N, 3] standard deviations along the own axes, above 0.
      rotations: [N, 4] quaternions (w, x, y, z), world from own axes; of any length above 0.
      opacities: [N] in [0, 1].
      sh: [N, K, 3] spherical harmonics of the colour, K = 1, 4, 9 or 16; colour = 0.5 + 0.28209479 sh[:, 0] for K = 1.
      alive: [N] bool, or None for all: of a fixed capacity, those that are there.
    """

    prompt: str
    means: jax.Array
    scales: jax.Array
    rotations: jax.Array
    opacities: jax.Array
    sh: jax.Array
    alive: jax.Array | None = None


class Points(NamedTuple):
    """One object as points.

    Attributes:
      positions: [N, 3].
      colors: [N, 3], or None for grey.
    """

    prompt: str
    positions: jax.Array
    colors: jax.Array | None = None


Output = Picture | Views | Field | Mesh | Splats | Points
KINDS = {'picture': Picture, 'views': Views, 'field': Field, 'mesh': Mesh, 'splats': Splats, 'points': Points}


class Request(NamedTuple):
    """What `generate` is asked for: any of the three.

    Attributes:
      prompt: text.
      image: [H, W, 4] straight alpha in [0, 1].
      views: pictures with cameras.
    """

    prompt: str = ''
    image: jax.Array | None = None
    views: Views | None = None


def kind_of(output: Output) -> str:
    """The name of an output's kind, a key of `KINDS`."""
    for name, kind in KINDS.items():
        if isinstance(output, kind):
            return name
    raise UsageError(f'generate returned {type(output).__name__}: wanted one of t3d.core.outputs: {", ".join(KINDS)}.')


def only_prompts(requests, system: str) -> list[str]:
    """The prompts of requests; UsageError for an image or views, which the named system does not read."""
    for request in requests:
        if request.image is not None:
            raise UsageError(
                f'an image was given, and {system} reads text alone: give a prompt in quotes, or a system that reads images.'
            )
        if request.views is not None:
            raise UsageError(f'posed views were given, and {system} reads text alone: give a prompt in quotes.')
    return [request.prompt for request in requests]


def only_images(requests, system: str) -> list[jax.Array]:
    """The images of requests; UsageError for a request without one, which the named system cannot take."""
    for request in requests:
        if request.image is None:
            what = f'the prompt {request.prompt!r}' if request.prompt else 'no image'
            raise UsageError(f'{what} was given, and {system} makes an object of an image: give --image FILE.')
    return [request.image for request in requests]


def only_views(requests, system: str) -> list[Views]:
    """The views of requests; UsageError for a request without them, or with an image, which the named system cannot take."""
    for request in requests:
        if request.image is not None:
            raise UsageError(
                f'an image was given, and {system} makes an object of several views with their cameras: give --views FOLDER.'
            )
        if request.views is None:
            what = f'the prompt {request.prompt!r}' if request.prompt else 'no view'
            raise UsageError(f'{what} was given, and {system} makes an object of posed views: give --views FOLDER.')
    return [request.views for request in requests]
