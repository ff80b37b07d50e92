"""Prompts that say from which side an object is seen: suffixes, the sector of a camera, and embeddings by sector or between.

A prompt becomes four texts, one for each of SUFFIXES; all are tokenized once on the host and encoded once, and a step gathers
or mixes their features [B, 4, N, D] by its cameras. Angles are radians, azimuth 0 is the front (t3d.geom.cameras).
Source: DreamFusion, arXiv 2209.14988, Sec. 3.2; thresholds and their order as in threestudio.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core.prompts import SUFFIXES
from t3d.core.prompts import with_sides as texts

FRONT, SIDE, BACK, OVERHEAD = range(4)  # sectors, places in SUFFIXES


class Thresholds(NamedTuple):
    """Where sectors end, in radians; the defaults are threestudio's, its VSD configs have 30 degrees in front and back.

    front: largest |azimuth| of the front. back: largest angle to the azimuth pi of the back. overhead: elevation above which
    a view is one from above, whatever its azimuth.
    """

    front: float = np.pi / 4
    back: float = np.pi / 4
    overhead: float = np.pi / 3


THREESTUDIO = Thresholds()


def tokens(tokenize: Callable, prompts: Sequence[str]) -> np.ndarray:
    """int32 [P, 4, N] of all prompts with all suffixes, on the host."""
    ids = np.asarray(tokenize([text for prompt in prompts for text in texts(prompt)]))
    return ids.reshape(len(prompts), len(SUFFIXES), -1)


def around(azimuth):
    """|azimuth|, in [0, pi], of any azimuth in radians."""
    return jnp.abs(jnp.mod(azimuth + jnp.pi, 2.0 * jnp.pi) - jnp.pi)


def sector(azimuth, elevation, thresholds: Thresholds = THREESTUDIO):
    """int32 sector of cameras: side, unless in front, unless at the back, unless from above; later rules override."""
    away = around(azimuth)
    found = jnp.where(away < thresholds.front, FRONT, SIDE)
    found = jnp.where(away > jnp.pi - thresholds.back, BACK, found)
    return jnp.where(elevation > thresholds.overhead, OVERHEAD, found).astype(jnp.int32)


def mixture(azimuth, elevation, thresholds: Thresholds = THREESTUDIO):
    """[B, 4] shares of the suffixes, linear in |azimuth|: front to side at 90 degrees to back; from above overhead alone.

    Source: the interpolated embeddings of threestudio's and stable-dreamfusion's Perp-Neg.
    """
    away = around(azimuth) / (0.5 * jnp.pi)  # 0 front, 1 side, 2 back
    shares = jnp.maximum(0.0, 1.0 - jnp.abs(away[..., None] - jnp.arange(3.0)))
    shares = jnp.concatenate([shares, jnp.zeros_like(shares[..., :1])], -1)
    return jnp.where((elevation > thresholds.overhead)[..., None], jnp.eye(4)[OVERHEAD], shares)


def nearest(features, azimuth, elevation, thresholds: Thresholds = THREESTUDIO):
    """[B, ...] features of the sector of each camera, of features [B, 4, ...]."""
    chosen = sector(azimuth, elevation, thresholds)
    return jax.vmap(lambda four, one: four[one])(features, chosen)


def mixed(features, shares):
    """[..., B, N, D] sums over the suffixes of features [B, 4, N, D], with shares [..., B, 4]."""
    return jnp.einsum('...bs,bsnd->...bnd', shares, features, precision=jax.lax.Precision.HIGHEST)
