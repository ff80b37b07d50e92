"""Joint sampling of a multi-view and a text-to-image model: two predictions of one x_t made into one.

eps_mix = lambda eps_mv + (1 - lambda) eps_2d, or eps_2d + g (eps_mv(all views) - eps_mv(each alone)); lambda rises as t falls.
Source: Guided multi-view diffusion, Sec. 3.3 and 3.4 (Eq. 2, 3); the report gives no schedule of lambda, ours are `weights`.

Both predictions are of one x_t at one noise level, where noise, v and x_0 are affine functions of each other, the same ones:
so they are mixed in the prediction type of the multi-view model, which is Eq. 2 without a division by a_t near t = T. What is
sampled is a composition of scores: the product of Eq. 3 where the two models agree in their covariances, and near it elsewhere.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from t3d.core.errors import UsageError
from t3d.diffusion import schedules
from t3d.diffusion.schedules import Schedule

KINDS = ('constant', 'linear', 'power', 'step')


def weights(kind: str, first: float, last: float, length: int, *, power: float = 1.0, at: float = 0.5) -> Callable:
    """lambda(t), the weight of the multi-view model, from `first` at t = T - 1 to `last` at t = 0.

    Args:
      kind: 'constant' (`last`), 'linear', 'power' (first + (last - first) (1 - t / (T - 1)) ** power), or 'step' (`first` while
        t / (T - 1) > `at`, then `last`).
      length: T.
    Raises:
      UsageError: unknown kind, or weights outside [0, 1].
    """
    if kind not in KINDS:
        raise UsageError(f'lambda schedule {kind!r}: wanted one of {", ".join(KINDS)}.')
    if not (0.0 <= first <= 1.0 and 0.0 <= last <= 1.0):
        raise UsageError(f'lambda from {first} to {last}: wanted weights in [0, 1], 1 for the multi-view model alone.')
    u = np.arange(length, dtype=np.float64) / max(length - 1, 1)
    curve = {
        'constant': np.full(length, last),
        'linear': first + (last - first) * (1.0 - u),
        'power': first + (last - first) * (1.0 - u) ** power,
        'step': np.where(u > at, first, last),
    }[kind]
    table = jnp.asarray(curve, jnp.float32)
    return lambda t: table[t]


def mix(views, pictures, weight):
    """weight views + (1 - weight) pictures (Eq. 2): one of them at 1 and 0, exactly where the other is finite."""
    return weight * views + (1.0 - weight) * pictures


def consistency(pictures, together, alone, gain):
    """pictures + gain (together - alone): the 2D model, moved as the other views move the multi-view model (Sec. 3.3)."""
    return pictures + gain * (together - alone)


def as_prediction(output, of: str, to: str, x, signal, noise):
    """An output in prediction type `of` as one of type `to`, for x_t = signal x_0 + noise eps."""
    if of == to:
        return output
    x0, eps = schedules.x0_of(of, output, x, signal, noise), schedules.eps_of(of, output, x, signal, noise)
    return {'x0': x0, 'eps': eps, 'v': signal * eps - noise * x0}[to]


def refuse_other_levels(first: Schedule, second: Schedule, names: tuple[str, str]) -> None:
    """Raises UsageError for two models trained at other noise levels: their predictions of one x_t cannot be mixed."""
    same = first.length == second.length and np.allclose(first.signal, second.signal, atol=1e-5)
    if not same:
        ends = [
            f'{name}: {one.length} times, last signal {float(one.signal[-1]):.3g}' for name, one in zip(names, (first, second))
        ]
        raise UsageError(
            f'the two models have other noise schedules ({"; ".join(ends)}): wanted two that share one, for example a '
            'multi-view model and the text-to-image model that it grew out of.'
        )
