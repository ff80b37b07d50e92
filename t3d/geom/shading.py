"""Normals of a density, light on them, and what keeps both in order: how scenes without ground truth are shaded.

DreamFusion (arXiv 2209.14988, Sec. 3.1): n = -grad density / |grad density|, and a point light at l with

    colour = albedo * (ambient + diffuse * max(0, n . (l - p) / |l - p|))

A view is shown by its albedo, shaded, or shaded without colour; which of these is a number for each view (`Light`), so that all
share one program and one gradient of the density. Positions, cameras and lights are in one frame and unit, that of the points.
"""

import flax
import jax
import jax.numpy as jnp

from t3d.core.typing import Array, Float, Key, typechecked

GUARD = 1e-10  # added to a squared norm within its square root: the gradient of a norm at 0 is NaN
MODES = ('albedo', 'lambertian', 'textureless')
SAMPLERS = ('camera', 'cone')
LIGHT_DISTANCE = (0.8, 1.5)  # of lights from the origin, by threestudio
CONE = (jnp.pi / 6.0, jnp.pi / 2.0)  # Magic3D's elevation of lights above the plane that faces the camera


# ------------------------------------------------------------------------------------------------------------ normals


def unit(vectors: Float[Array, '*b 3']) -> Float[Array, '*b 3']:
    """Vectors over sqrt(|v|^2 + 1e-10): finite, with a finite gradient, also where they are 0."""
    return vectors * jax.lax.rsqrt(jnp.sum(jnp.square(vectors), -1, keepdims=True) + GUARD)


def with_normals(field, points: Float[Array, '*b 3']):
    """(density [...], features [..., F], normals [..., 3]) in one pass of the field and one of its transpose.

    The normals of raw densities are those of densities that grow with them. Differentiable again.

    Args:
      field: `points [..., 3] -> (density [...], features [..., F])`, each point by itself.
    """
    density, pull, features = jax.vjp(field, points, has_aux=True)
    (slope,) = pull(jnp.ones_like(density))
    return density, features, unit(-slope)


def with_difference_normals(field, points: Float[Array, '*b 3'], offset: float):
    """`with_normals` by central differences: six more queries of the density at `offset` along the axes.

    Smoother than derivatives where the field is piecewise linear, whose slopes jump at its texels (as threestudio does).
    """
    density, features = field(points)
    steps = offset * jnp.concatenate([jnp.eye(3), -jnp.eye(3)])  # [6, 3]
    around, _ = field(points[..., None, :] + steps)
    return density, features, unit(around[..., 3:] - around[..., :3])


# -------------------------------------------------------------------------------------------------------------- light


@flax.struct.dataclass
class Light:
    """A point light and how a view is shown; for views [V], broadcast against points by the caller."""

    position: jax.Array  # [..., 3]
    ambient: jax.Array  # [...]
    diffuse: jax.Array  # [...]
    textureless: jax.Array  # [...] bool: white in place of the albedo


@typechecked
def shade(
    light: Light, albedo: Float[Array, '*b c'], normals: Float[Array, '*b 3'], points: Float[Array, '*b 3']
) -> Float[Array, '*b c']:
    """Colours of points under a light whose leaves broadcast against theirs (`light_at`); albedo itself for ambient 1 alone."""
    towards = unit(light.position - points)
    lambert = jnp.maximum(jnp.sum(normals * towards, -1), 0.0)
    colour = jnp.where(light.textureless[..., None], 1.0, albedo)
    return colour * (light.ambient + light.diffuse * lambert)[..., None]


def light_at(light: Light, extra: int) -> Light:
    """The light of views [V] for points [V, ...] of `extra` further axes."""
    widen = lambda value, tail: value.reshape(
        *value.shape[: value.ndim - tail], *[1] * extra, *value.shape[value.ndim - tail :]
    )
    return Light(widen(light.position, 1), *(widen(value, 0) for value in (light.ambient, light.diffuse, light.textureless)))


def modes(
    key: Key, views: int, step, *, start: int, shaded: float = 0.75, textureless: float = 0.5, ambient: float = 0.1
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(ambient, diffuse, textureless), each [V]: DreamFusion's draw for each view (App. A).

    Before step `start` all views show albedo. Then a view is shaded with probability `shaded`, with `ambient` and
    1 - ambient of diffuse light, and of those the share `textureless` without colour.

    Args:
      step: of the optimisation; may be traced.
    """
    u, v = jax.random.uniform(key, (2, views), jnp.float32)
    lit = (u < shaded) & (jnp.asarray(step) >= start)
    return jnp.where(lit, ambient, 1.0), jnp.where(lit, 1.0 - ambient, 0.0), lit & (v < textureless)


def fixed_mode(mode: str, views: int, ambient: float = 0.1) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(ambient, diffuse, textureless), each [V], of one of MODES: how a scene is shown to people, or evaluated."""
    if mode not in MODES:
        raise ValueError(f'shading {mode!r}: choose one of {", ".join(MODES)}.')
    lit = mode != 'albedo'
    full = lambda value: jnp.full((views,), value)
    return full(ambient if lit else 1.0), full(1.0 - ambient if lit else 0.0), full(mode == 'textureless')


@typechecked
def camera_light(key: Key, cameras: Float[Array, 'v 3'], distance=LIGHT_DISTANCE) -> Float[Array, 'v 3']:
    """Light positions in the direction of camera + N(0, I), at distances U(distance) from the origin (App. A)."""
    key_way, key_distance = jax.random.split(key)
    way = unit(cameras + jax.random.normal(key_way, cameras.shape, jnp.float32))
    return way * _distances(key_distance, cameras.shape[0], distance)


@typechecked
def cone_light(key: Key, cameras: Float[Array, 'v 3'], distance=LIGHT_DISTANCE) -> Float[Array, 'v 3']:
    """Light positions within 60 degrees of the camera's direction, at distances U(distance) from the origin.

    Azimuth about that direction uniform, elevation uniform in [30, 90] degrees (Magic3D, arXiv 2211.10440; threestudio).
    """
    key_azimuth, key_elevation, key_distance = jax.random.split(key, 3)
    count = cameras.shape[0]
    azimuth = jax.random.uniform(key_azimuth, (count, 1), jnp.float32, -jnp.pi, jnp.pi)
    elevation = jax.random.uniform(key_elevation, (count, 1), jnp.float32, *CONE)
    ahead = unit(cameras)
    pole = jnp.abs(ahead[:, 1:2]) > 0.999  # straight above or below: any axis across will do
    side = unit(jnp.cross(jnp.where(pole, jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 0.0])), ahead))
    across = jnp.cos(azimuth) * side + jnp.sin(azimuth) * jnp.cross(ahead, side)
    way = jnp.cos(elevation) * across + jnp.sin(elevation) * ahead
    return way * _distances(key_distance, count, distance)


def light_positions(sampler: str, key: Key, cameras: jax.Array, distance=LIGHT_DISTANCE) -> jax.Array:
    """[V, 3] by one of SAMPLERS for cameras at [V, 3]."""
    if sampler not in SAMPLERS:
        raise ValueError(f'light sampler {sampler!r}: choose one of {", ".join(SAMPLERS)}.')
    return {'camera': camera_light, 'cone': cone_light}[sampler](key, cameras, distance)


def _distances(key, count, distance):
    return jax.random.uniform(key, (count, 1), jnp.float32, *distance)


# ------------------------------------------------------------------------------------------------------------- losses


@typechecked
def facing_away(normals: Float[Array, '*b 3'], directions: Float[Array, '*b 3']) -> Float[Array, '*b']:
    """max(0, n . v)^2 of normals that look away from their camera, v the direction of the ray (Ref-NeRF, arXiv 2112.03907)."""
    return jnp.square(jnp.maximum(jnp.sum(normals * directions, -1), 0.0))


@typechecked
def orientation_loss(weights: Float[Array, '*b s'], away: Float[Array, '*b s']) -> Float[Array, '*b']:
    """sum_i stop(weight_i) away_i of samples [..., S], `away` by `facing_away`: normals are turned, nothing fades."""
    return jnp.sum(jax.lax.stop_gradient(weights) * away, -1)


def orientation_channels(away: Float[Array, '*b']) -> Float[Array, '*b 2']:
    """Two channels of a field that a renderer composites with weights it does not give: [away - stop(away), stop(away)].

    The first is 0 and its gradient that of `away` under constant weights; `orientation_of` reads both.
    """
    value = jax.lax.stop_gradient(away)
    return jnp.stack([away - value, value], -1)


def oriented(field, offset: float):
    """A renderer's field with `orientation_channels` behind its features; normals by differences at `offset`."""

    def with_channels(points, directions):
        density, features, normals = with_difference_normals(field, points, offset)
        return density, jnp.concatenate([features, orientation_channels(facing_away(normals, directions))], -1)

    return with_channels


@typechecked
def orientation_of(composited: Float[Array, '*b 2']) -> Float[Array, '*b']:
    """The orientation loss [...] of composited `orientation_channels`: value and gradient of `orientation_loss`."""
    return composited[..., 0] + jax.lax.stop_gradient(composited[..., 1])


@typechecked
def opacity_loss(opacity: Float[Array, '*b'], step, *, start: int = 0, least: float = 0.02) -> Float[Array, '']:
    """mean sqrt(opacity^2 + 0.01) (DreamFusion, App. A), 0 before step `start` and where mean opacity is below `least`.

    Without the gates the loss empties a scene in which no object exists yet, which never returns.
    """
    gate = (jnp.asarray(step) >= start) & (jax.lax.stop_gradient(jnp.mean(opacity)) > least)
    return jnp.where(gate, jnp.mean(jnp.sqrt(jnp.square(opacity) + 0.01)), 0.0)


def smoothness_loss(normals, key: Key, points: Float[Array, '*b 3'], deviation: float = 1e-2) -> Float[Array, '*b']:
    """|n(p) - n(p + noise)|^2 [...], noise N(0, deviation^2): normals of neighbours agree (Instant3D, Sec. 3.5).

    Args:
      normals: `points [..., 3] -> [..., 3]`, for example the third of `with_normals`.
    """
    noise = deviation * jax.random.normal(key, points.shape, jnp.float32)
    return jnp.sum(jnp.square(normals(points) - normals(points + noise)), -1)
