"""CLIP similarity and R-precision of renders against their prompts, with the user's own CLIP weights.

    towers = convert.load_clip(folder)                  # t3d/checkpoint
    images = clip_score.image_vectors(towers.vision, towers.vision_params, renders)
    texts = clip_score.text_vectors(towers.text, towers.text_params, tokens, towers.text_projection, end=towers.end)
    print(*clip_score.evaluate(images, texts, own, extractor='ViT-B/32').lines(), sep='\\n')

Papers differ in scale and in model: `clip/score` is 100 max(cos, 0) (CLIPScore's convention, arXiv 2104.08718, without its
factor 2.5), `clip/similarity` is the mean cosine (the scale of GANFusion's 0.296, arXiv 2412.16717, Table 1, whose model is
unpublished). Values of different CLIP models do not compare.
"""

import jax
import numpy as np

from t3d.core.typing import PyTree
from t3d.metrics import retrieval, scores
from t3d.nets import clip
from t3d.nets.judges import clip_vision

SCALE = 100.0  # of cosines before a softmax, the one that released CLIP models learned


def evaluate(images: np.ndarray, texts: np.ndarray, own: np.ndarray, *, extractor: str, seed: int = 0) -> scores.Report:
    """`clip/score`, `clip/similarity`, `clip/probability` and `clip/r_precision` with their shuffled control.

    Args:
      images: vectors [N, V, D] (V views of each of N assets) or [N, D].
      texts: vectors [M, D] of M different prompts.
      own: [N], the index of each asset's prompt.
      extractor: name of the CLIP model, printed beside the scores.
    Returns:
      A Report; n counts views. R-precision (arXiv 2112.01455, Sec. 4.2) is the share of views whose nearest prompt among the M
      is their own.
    """
    own = scores.check(images, texts, own)
    images = images if images.ndim == 3 else images[:, None]
    values, other = among(images, texts, own), among(images, texts, scores.derangement(len(texts), seed)[own])
    return scores.Report(values, other, images.shape[0] * images.shape[1], len(texts), extractor)


def among(images: np.ndarray, texts: np.ndarray, own: np.ndarray) -> dict[str, float]:
    """The scores of images [N, V, D] whose prompts are texts[own], each view on its own.

    'clip/probability' is that of the own prompt in the softmax of SCALE times the cosines (arXiv 2311.08403, Sec. 4.2, which
    does not say the scale); chance is 1 / M.
    """
    cosine = np.einsum('nvd,md->nvm', scores.unit(images), scores.unit(texts)).reshape(-1, len(texts))  # [N V, M]
    return _scores(cosine, np.repeat(own, images.shape[1]))


def image_vectors(tower: clip_vision.VisionTower, params: PyTree, images: np.ndarray, *, batch: int = 32) -> np.ndarray:
    """Vectors of unit length [..., D] of images [..., H, W, 3] in [0, 1], resized and normalised as CLIP does."""

    @jax.jit
    def run(params, some):
        return tower.apply({'params': params}, clip_vision.prepare(some, tower.image)).pooled

    flat = np.asarray(images, np.float32).reshape(-1, *images.shape[-3:])
    vectors = _batched(lambda some: run(params, some), flat, batch)
    return scores.unit(vectors).reshape(*images.shape[:-3], -1)


def text_vectors(
    tower: clip.TextTower,
    params: PyTree,
    tokens: np.ndarray,
    projection: np.ndarray,
    *,
    end: int | None = None,
    batch: int = 32,
) -> np.ndarray:
    """Vectors of unit length [M, D] of token ids [M, N] (core/tokens.load_clip); `projection` and `end` as in clip.embed."""

    @jax.jit
    def run(params, some):
        return clip.embed(tower.apply({'params': params}, some), some, projection, end)

    return scores.unit(_batched(lambda some: run(params, some), np.asarray(tokens, np.int32), batch))


def _scores(cosine: np.ndarray, own: np.ndarray) -> dict[str, float]:
    odds = np.exp(SCALE * (cosine - cosine.max(-1, keepdims=True)).astype(np.float64))
    mine = cosine[np.arange(len(own)), own]
    return {
        'clip/score': float(np.mean(100.0 * np.maximum(mine, 0.0))),
        'clip/similarity': float(np.mean(mine)),
        'clip/probability': float(np.mean(odds[np.arange(len(own)), own] / odds.sum(-1))),
        'clip/r_precision': retrieval.recall(retrieval.ranks(-cosine, own), 1),
    }


def _batched(run, rows: np.ndarray, batch: int) -> np.ndarray:
    """Applies `run` to rows in batches of one shape, so that it compiles once."""
    outputs = []
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        padded = np.concatenate([some, np.repeat(some[-1:], batch - len(some), axis=0)])
        outputs.append(np.asarray(run(padded), np.float32)[: len(some)])
    return np.concatenate(outputs)
