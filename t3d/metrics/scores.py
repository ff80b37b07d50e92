"""What every retrieval-like score carries (its n, its extractor, its shuffled control), and what they share."""

from typing import NamedTuple

import numpy as np

from t3d.core.errors import UsageError


class Report(NamedTuple):
    """Scores of a set of images against a list of prompts.

    Attributes:
      values: by name, for example 'align/r1'.
      shuffled: the same scores where every image is asked for the prompt of another one: what luck alone would give.
      n: images scored.
      candidates: prompts that each image chooses from.
      extractor: the network that compared them.
    """

    values: dict[str, float]
    shuffled: dict[str, float]
    n: int
    candidates: int
    extractor: str

    def lines(self) -> list[str]:
        """One line per score: value, control, n, candidates, extractor."""
        tail = f'n={self.n}, {self.candidates} prompts, {self.extractor}'
        return [f'{name} {value:.4g} (shuffled {self.shuffled[name]:.4g}; {tail})' for name, value in self.values.items()]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., D] scaled to unit length, float32; zero stays zero.

    Raises:
      UsageError: a number that is not finite.
    """
    vectors = np.asarray(vectors, np.float32)
    if not np.isfinite(vectors).all():
        raise UsageError('vectors hold NaN or infinity: look at the images and at the weights of the extractor.')
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def auc(ranks: np.ndarray, candidates: int) -> float:
    """Mean share of the other candidates behind one's own, from retrieval.ranks: the area under each row's ROC curve."""
    return float(np.mean(1.0 - ranks / max(candidates - 1, 1)))


def derangement(count: int, seed: int = 0) -> np.ndarray:
    """A permutation [count] that leaves nothing in place (one cycle, by Sattolo's algorithm), for shuffled controls."""
    order, rng = np.arange(count), np.random.default_rng(seed)
    for last in range(count - 1, 0, -1):
        other = rng.integers(last)
        order[[last, other]] = order[[other, last]]
    return order


def attribute_shares(
    samples: list[dict], captions: list[dict], own: np.ndarray, joint: tuple[str, ...]
) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of samples that show what their caption says, and, as control, what any other caption of the list says.

    A slot is scored over the samples whose caption has it: one without it is wrong, and none is right for lacking it too. The
    control is the mean over all pairs of such a sample and another caption that has the slot, so it has no chance of a lucky
    shuffle; there is none where only one caption has it.

    Args:
      samples: N dictionaries {slot: value}, what each sample shows; None for what it does not have.
      captions: C >= 2 dictionaries of the same slots (more keys do no harm), what each caption says; None or no key for a slot
        that it does not have.
      own: int [N], the caption of each sample.
      joint: the slots that `both` wants right at once, over all samples: what a caption does not have, a sample must not have.
    Returns:
      ({slot: share, 'both': share}, the same of the control), for the slots of `samples` that a sample's caption has.
    """
    own = np.asarray(own)
    hits = {
        slot: np.array([[sample[slot] == caption.get(slot) for caption in captions] for sample in samples], np.float64)
        for slot in samples[0]
    }
    having = {slot: np.array([caption.get(slot) is not None for caption in captions], bool) for slot in hits}
    hits['both'] = np.prod([hits[slot] for slot in joint], axis=0)
    having['both'] = np.ones(len(captions), bool)
    values, control = {}, {}
    for slot, hit in hits.items():
        asked = having[slot][own]
        if not asked.any():
            continue
        right = hit[np.arange(len(own)), own][asked]
        values[slot] = float(right.mean())
        if (others := having[slot].sum() - 1) > 0:
            control[slot] = float(((hit[asked][:, having[slot]].sum(1) - right) / others).mean())
    return values, control


def check(images: np.ndarray, texts: np.ndarray, own: np.ndarray) -> np.ndarray:
    """own as an array [N] if it fits images [N, ..., D] and texts [M, D].

    Raises:
      UsageError: other sizes, fewer than two prompts, or an index out of range.
    """
    own = np.asarray(own)
    if len(texts) < 2:
        raise UsageError(f'{len(texts)} prompts given: a choice among prompts needs at least 2.')
    if images.shape[-1] != texts.shape[-1]:
        raise UsageError(
            f'image vectors of {images.shape[-1]} numbers, text vectors of {texts.shape[-1]}: take both of one model.'
        )
    if own.shape != images.shape[:1] or not np.issubdtype(own.dtype, np.integer) or own.min() < 0 or own.max() >= len(texts):
        raise UsageError(f'own has shape {own.shape}: wanted {len(images)} indices of prompts, each in 0 .. {len(texts) - 1}.')
    return own
