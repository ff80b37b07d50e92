"""`align/*`: do renders match their prompts? An offline judge from networks that ship inside packages; no CLIP, not its score.

An image's vector starts as ConSE (arXiv 1312.5650): the mean of the sentence vectors of its likeliest ImageNet classes,
weighted by their probability. A small head, trained on captioned furniture (`fit`), adds pooled features and a colour
histogram, since ImageNet classes do not know colours. Text vectors are sentence vectors. `t3d.checkpoint.judges` reads both
networks.

Measured on furniture at 224 pixels filling the frame, 4 views, text as 'a photo of ...', +-.03 is noise. ConSE: 820 objects
among 598 nouns R@1/5/10 .165/.293/.357, AUC .839 (at 128 pixels and 73 % of the frame .118/.234/.299, .798). 132 objects of 103
unseen nouns: ConSE .265/.500/.591, .835; a head trained on the other nouns .351/.600/.737, .902 (three seeds). Colour among 8,
unseen nouns, 1 view of 64 pixels, n = 419: ConSE .150, head .850 without and .883 with the histogram; unseen pairs of noun and
colour, n = 176: .841 and .898.

    encode_images, encode_texts = judges.image_encoder(), judges.text_encoder()
    classes = encode_texts([f'a photo of a {name}' for name in judges.imagenet_names()])
    pooled, logits = encode_images(renders)
    vectors = align.conse(logits, classes)
    texts = encode_texts([f'a photo of {prompt}' for prompt in prompts])
    report = align.evaluate(vectors, texts, own, extractor=align.UNTRAINED)
"""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from t3d.core import prng
from t3d.core.typing import Array, Float, Key, PyTree, typechecked
from t3d.metrics import retrieval, scores

UNTRAINED = 'EfficientNet-Lite0 + MiniLM (ConSE)'
TRAINED = 'EfficientNet-Lite0 + MiniLM + head trained on furniture'
SECOND = 'MobileNetV2 + MiniLM (ConSE)'  # judges what EfficientNet chose
TOP = 10  # classes that ConSE averages
TEMPERATURE = 0.05  # of the head's softmax at its start


def conse(logits: np.ndarray, classes: np.ndarray, *, top: int = TOP) -> np.ndarray:
    """Unit vectors [N, D]: the sum over the `top` likeliest classes of probability times class vector.

    Args:
      logits: [N, K], or [N, V, K] of V views, which are averaged before the softmax.
      classes: [K, D], sentence vectors of 'a photo of a ' + class name.
    """
    logits = np.asarray(logits, np.float64)
    logits = logits.mean(1) if logits.ndim == 3 else logits
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    least = np.partition(odds, -top, axis=-1)[:, -top:].min(-1, keepdims=True)
    odds = np.where(odds >= least, odds, 0.0)
    return scores.unit(odds / odds.sum(-1, keepdims=True) @ classes)


def colour_histogram(images: np.ndarray, masks: np.ndarray, name_colours, bins: int) -> np.ndarray:
    """Square roots of the shares of named colours in the foreground, float32 [N, bins]; zero where nothing is in front.

    Args:
      images: [N, ..., 3] in [0, 1]; masks: [N, ...] weights of the same pixels, 0 behind the object.
      name_colours: colours [P, 3] -> index of each one's name [P], for example t3d.data.sets.captions.name_colours.
    """
    rows = []
    for image, mask in zip(images, masks):
        weights = np.asarray(mask, np.float64).ravel()
        counts = np.bincount(name_colours(np.asarray(image).reshape(-1, 3)), weights, bins)
        rows.append(np.sqrt(counts / max(weights.sum(), 1e-9)))
    return np.asarray(rows, np.float32)


def evaluate(
    images: np.ndarray, texts: np.ndarray, own: np.ndarray, *, extractor: str = UNTRAINED, seed: int = 0
) -> scores.Report:
    """`align/r1`, `align/r5`, `align/r10` and `align/auc` with their shuffled control.

    Args:
      images: vectors [N, D] of conse or embed_images.
      texts: vectors [M, D] of the evaluation's M different prompts; scores depend on M, which the report carries.
      own: [N], the index of each image's prompt.
    """
    own = scores.check(images, texts, own)
    similarity = scores.unit(images) @ scores.unit(texts).T
    values = _retrieval(similarity, own)
    other = _retrieval(similarity, scores.derangement(len(texts), seed)[own])
    return scores.Report(values, other, len(images), len(texts), extractor)


def colour_accuracy(
    images: np.ndarray, texts: np.ndarray, own: np.ndarray, *, extractor: str = UNTRAINED, seed: int = 0
) -> scores.Report:
    """`align/colour_acc`: how often, the noun given, the right colour is nearest; chance is 1 / C.

    Args:
      images: vectors [N, D].
      texts: vectors [N, C, D] of each image's noun in C colours.
      own: [N], the index of the true colour.
    """
    own, count = np.asarray(own), texts.shape[1]
    similarity = np.einsum('nd,ncd->nc', scores.unit(images), scores.unit(texts))
    other = scores.derangement(count, seed)[own]
    values, shuffled = (retrieval.recall(retrieval.ranks(-similarity, which), 1) for which in (own, other))
    return scores.Report({'align/colour_acc': values}, {'align/colour_acc': shuffled}, len(images), count, extractor)


def _retrieval(similarity: np.ndarray, own: np.ndarray) -> dict[str, float]:
    rank = retrieval.ranks(-similarity, own)
    recalls = {f'align/r{k}': retrieval.recall(rank, k) for k in (1, 5, 10)}
    return recalls | {'align/auc': scores.auc(rank, similarity.shape[1])}


# --------------------------------------------------------------------------------------------------------------- head


class Dropout(nn.Module):
    """nn.Dropout's numbers, of float32 draws whatever JAX's settings are."""

    rate: float

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, '*b c']) -> Float[Array, '*b c']:
        keep = 1.0 - self.rate
        return jnp.where(prng.coin(self.make_rng('dropout'), keep, x.shape), x / keep, 0.0)


class ImageHead(nn.Module):
    """[pooled features, ConSE vector, colour histogram] to a correction of the ConSE vector: dropout, 512 GELU, dropout, D."""

    hidden: int = 512

    @nn.compact
    @typechecked
    def __call__(
        self, pooled: Float[Array, 'b p'], vectors: Float[Array, 'b d'], colours: Float[Array, 'b c'], train: bool
    ) -> Float[Array, 'b d']:
        x = jnp.concatenate([pooled, vectors, colours], -1)
        x = Dropout(0.2)(x) if train else x
        x = nn.gelu(nn.Dense(self.hidden, name='in')(x))
        x = Dropout(0.3)(x) if train else x
        return vectors + nn.Dense(vectors.shape[-1], name='out')(x)


@flax.struct.dataclass
class Head:
    """A trained judge: parameters, and the scale that brings pooled features to order one."""

    image: PyTree  # of ImageHead
    text: jax.Array  # [D, D], identity before training
    log_scale: jax.Array  # [], of the softmax over candidates
    pooled_scale: jax.Array  # [], constant


def embed_images(head: Head, pooled: np.ndarray, vectors: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Unit vectors [N, D] of pooled features [N, 1280], ConSE vectors [N, D] and colour_histogram [N, bins]."""
    return np.asarray(_embed_images(head, pooled, vectors, colours))


def embed_texts(head: Head, texts: np.ndarray) -> np.ndarray:
    """Unit vectors [..., D] of sentence vectors [..., D]."""
    return np.asarray(_unit(jnp.asarray(texts) @ head.text))


def fit(
    pooled: np.ndarray,
    vectors: np.ndarray,
    colours: np.ndarray,
    texts: np.ndarray,
    captions: np.ndarray,
    key: Key,
    *,
    steps: int = 1500,
    batch: int = 256,
    rate: float = 1e-3,
) -> Head:
    """Trains a head by a symmetric InfoNCE loss (arXiv 2103.00020, Fig. 3) in which equal captions share the target.

    Args:
      pooled, vectors, colours: [N, 1280], [N, D], [N, bins] of N images.
      texts: [M, D], sentence vectors of the different captions.
      captions: int [N, K]: K captions that are true of each image (indices into texts); a step draws one of them.
      steps, batch, rate: AdamW with weight decay 0.05 and a cosine schedule.
    """
    key_init, key_steps = jax.random.split(key)
    dim = texts.shape[1]
    arrays = tuple(jnp.asarray(value) for value in (pooled, vectors, colours, texts, captions))
    image = ImageHead().init(key_init, *(value[:1] for value in arrays[:3]), False)['params']
    image['out']['kernel'] = 0.1 * image['out']['kernel']  # starts near the plain ConSE vector
    scale = jnp.float32(1.0 / max(float(np.std(pooled)), 1e-6))
    head = Head(image, jnp.eye(dim, dtype=jnp.float32), jnp.log(jnp.float32(1.0 / TEMPERATURE)), scale)
    optimizer = optax.adamw(optax.cosine_decay_schedule(rate, max(steps, 1)), weight_decay=0.05)
    trained = (head.image, head.text, head.log_scale)
    return _train(head, trained, optimizer.init(trained), arrays, key_steps, optimizer, steps, batch)


@functools.partial(jax.jit, static_argnums=(5, 6, 7))
def _train(head, trained, state, arrays, key, optimizer, steps, batch):
    def step(carry, index):
        trained, state = carry
        gradient = jax.grad(_loss)(trained, head.pooled_scale, arrays, jax.random.fold_in(key, index), batch)
        updates, state = optimizer.update(gradient, state, trained)
        return (optax.apply_updates(trained, updates), state), None

    (trained, _), _ = jax.lax.scan(step, (trained, state), jnp.arange(steps))
    image, text, log_scale = trained
    return head.replace(image=image, text=text, log_scale=log_scale)


def _loss(trained, pooled_scale, arrays, key, batch):
    pooled, vectors, colours, texts, captions = arrays
    image, text, log_scale = trained
    key_rows, key_captions, key_dropout = jax.random.split(key, 3)
    rows = jax.random.randint(key_rows, (batch,), 0, len(pooled), jnp.int32)
    chosen = captions[rows, jax.random.randint(key_captions, (batch,), 0, captions.shape[1], jnp.int32)]
    inputs = (pooled_scale * pooled[rows], vectors[rows], colours[rows], True)
    a = _unit(ImageHead().apply({'params': image}, *inputs, rngs={'dropout': key_dropout}))
    b = _unit(texts[chosen] @ text)
    logits = jnp.exp(jnp.minimum(log_scale, jnp.log(100.0))) * a @ b.T  # [batch, batch]; CLIP clips the scale at 100 too
    same = (chosen[:, None] == chosen[None]).astype(jnp.float32)
    target = same / jnp.sum(same, -1, keepdims=True)
    both = optax.softmax_cross_entropy(logits, target) + optax.softmax_cross_entropy(logits.T, target)
    return 0.5 * jnp.mean(both)


@jax.jit
def _embed_images(head, pooled, vectors, colours):
    return _unit(ImageHead().apply({'params': head.image}, head.pooled_scale * pooled, vectors, colours, False))


def _unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
