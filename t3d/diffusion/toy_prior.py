"""A text-to-image model in closed form, for what would need a trained one: pictures of known things from known sides, blurred
by white noise, as a `prior.Prior` like any other.

x_0 ~ sum_k p_k N(m_k, s^2 I), k over prompts, the four sectors of `view_prompts` and K poses of each; p_k is what the text
leaves open: one prompt and one sector with a view suffix, one prompt without, everything for ''. Then x_t at levels (a, sigma)
is a mixture of N(a m_k, (a^2 s^2 + sigma^2) I), and the network is its exact score: with responsibilities
r_k = softmax(log p_k - |x - a m_k|^2 / 2 (a^2 s^2 + sigma^2)),

    eps_hat = -sigma grad log p(x_t) = sigma (x - a sum_k r_k m_k) / (a^2 s^2 + sigma^2).

Text features are the words themselves, one-hot: features that are mixed between two suffixes are the mixture of both sides.
"""

import difflib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import tokens
from t3d.core.errors import UsageError
from t3d.core.unicode_words import split_words
from t3d.diffusion import schedules, view_prompts
from t3d.diffusion.prior import Prior

SPREAD = 0.05  # s, of pixels in [-1, 1]
HIGHEST = jax.lax.Precision.HIGHEST


def make(captions: Sequence[Sequence[str]], size: int, spread: float = SPREAD, bias: float = 0.0) -> Prior:
    """The prior of P things with known pictures; its parameters are {'means': [P, 4, K, S, S, 3] in [-1, 1]}.

    Args:
      captions: of each thing, all that name it; no two things share one.
      size: S.
      spread: s, the deviation of pixels around a mean.
      bias: share of the pictures under 'side view' and 'back view' that show the front, as pictures of people's do.
    """
    schedule = schedules.cosine(spacing='trailing', clip=1.0)
    texts, shares = _table(captions, bias)
    words = tuple(sorted({word for text in texts for word in split_words(text)}))
    read = tokens.WordTokenizer(words, 2 + max(len(split_words(text)) for text in texts))
    known = {' '.join(split_words(text)) for text in texts}
    ids = read(texts)  # [C, N]

    def tokenize(prompts: list[str]) -> np.ndarray:
        for prompt in prompts:
            if ' '.join(split_words(prompt)) not in known:
                raise UsageError(_unknown(prompt, texts))
        return read(list(prompts))

    def encode(params, prompt_ids):
        return jax.nn.one_hot(prompt_ids, read.vocabulary_size, dtype=jnp.float32)

    def predict(params, x, t, features):
        x, means = x.astype(jnp.float32), params['means'].astype(jnp.float32)
        chosen = _shares(features.astype(jnp.float32), ids, shares)  # [B, P 4]
        poses = means.shape[2]
        log_shares = jnp.log(jnp.repeat(chosen, poses, -1) / poses)  # [B, P 4 K]
        signal, sigma = schedules.levels_like(schedule, t, x)
        return mixture_eps(x, means.reshape(-1, *x.shape[1:]), log_shares, signal, sigma, spread)

    def shape(pixels: int):
        if pixels != size:
            raise UsageError(f'--size {pixels}: these pictures have {size} px; for others give the prior toy:{pixels}.')
        return (size, size, 3)

    identity = lambda params, x: x
    return Prior(schedule, tokenize, encode, predict, identity, shape, identity, size, guidance=1.0)


def mixture_eps(x, means, log_shares, signal, sigma, spread: float):
    """The exact eps_hat of a mixture of N(m_k, spread^2 I), float32.

    Distances are taken from the mean of the means, where they cancel least.

    Args:
      x: [B, ...]. means: [M, ...]. log_shares: [B, M], -inf for what the text rules out.
      signal, sigma: levels that multiply x.
    """
    variance = signal**2 * spread**2 + sigma**2  # [B, 1, ..] or []
    centre = jnp.mean(means, 0)
    offsets = (means - centre).reshape(len(means), -1)  # [M, D]
    flat = (x - signal * centre).reshape(len(x), -1)  # [B, D]
    signal_row, variance_row = (jnp.reshape(level, (-1, 1)) for level in (signal, variance))
    along = jnp.matmul(flat, offsets.T, precision=HIGHEST) - 0.5 * signal_row * jnp.sum(offsets**2, -1)
    responsibilities = jax.nn.softmax(log_shares + signal_row * along / variance_row, -1)
    x0 = jnp.matmul(responsibilities, offsets, precision=HIGHEST).reshape(x.shape) + centre
    return sigma * (x - signal * x0) / variance


def _table(captions, bias: float) -> tuple[list[str], np.ndarray]:
    """(texts [C], their shares of things and sectors [C, P 4]): every caption with and without a suffix, and ''."""
    things, sectors = len(captions), len(view_prompts.SUFFIXES)
    texts, shares = [''], [np.full((things, sectors), 1.0 / (things * sectors))]
    for thing, names in enumerate(captions):
        for name in names:
            for sector, text in enumerate([*view_prompts.texts(name), name]):
                share = np.zeros((things, sectors))
                share[thing, sector if sector < sectors else slice(None)] = 1.0 if sector < sectors else 1.0 / sectors
                if sector in (view_prompts.SIDE, view_prompts.BACK):
                    share[thing] *= 1.0 - bias
                    share[thing, view_prompts.FRONT] += bias
                texts.append(text)
                shares.append(share)
    return texts, np.stack(shares).reshape(len(texts), -1).astype(np.float32)


def _shares(features, ids: np.ndarray, shares: np.ndarray):
    """[B, P 4] of features [B, N, W]: each known text [C, N] by the product of its words' shares; of none, what '' has."""
    each = jnp.prod(features[:, np.arange(ids.shape[1]), ids], -1)  # [B, C]
    total = jnp.sum(each, -1, keepdims=True)
    each = jnp.where(total > 0.0, each / jnp.where(total > 0.0, total, 1.0), jnp.eye(len(ids))[0])
    return jnp.matmul(each, shares, precision=HIGHEST)


def _unknown(prompt: str, texts: list[str]) -> str:
    near = difflib.get_close_matches(prompt.lower(), texts, 2, 0.5)
    hint = f' Nearest: {" or ".join(map(repr, near))}.' if near else ''
    return (
        f'the toy prior has no pictures of "{tokens.quoted(prompt)}".{hint} Wanted one of {len(texts)} texts: single objects '
        f'such as {texts[1].partition(",")[0]!r}, with or without ", {view_prompts.SUFFIXES[0]}".'
    )
