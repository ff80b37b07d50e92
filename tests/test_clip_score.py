"""CLIP scores of vectors with known answers, and of towers whose files transformers wrote."""

import numpy as np
import pytest

from t3d.core.errors import UsageError
from t3d.metrics import clip_score, scores

random = np.random.default_rng(0)


def test_vectors_with_known_cosines():
    texts = np.eye(4, 6)
    images = np.stack([0.6 * texts + 0.8 * np.eye(6)[5], -2.0 * texts], 1)  # view 0 is right, view 1 is wrong
    report = clip_score.evaluate(images, texts, np.arange(4), extractor='none')
    assert report.values == {
        'clip/score': pytest.approx(30.0),
        'clip/similarity': pytest.approx(-0.2),
        'clip/probability': pytest.approx(0.5),
        'clip/r_precision': 0.5,
    }
    assert (report.n, report.candidates, report.extractor) == (8, 4, 'none')
    shuffled = dict(report.shuffled)
    assert shuffled.pop('clip/probability') == pytest.approx(1 / 6)  # view 1 is as near to each of the others
    assert set(shuffled.values()) == {0.0}
    assert report.lines()[3].startswith('clip/r_precision 0.5 (shuffled 0') and 'n=8, 4 prompts, none' in report.lines()[2]
    assert clip_score.evaluate(-images, texts, np.arange(4), extractor='none').values['clip/score'] == 50.0


def test_scores_against_a_loop():
    images, texts, own = random.normal(size=(5, 3, 8)), random.normal(size=(4, 8)), np.array([0, 3, 1, 1, 2])
    cosines, hits = [], []
    for image, k in zip(images, own):
        for view in image:
            every = [view @ text / np.linalg.norm(view) / np.linalg.norm(text) for text in texts]
            cosines.append(every[k])
            hits.append(int(np.argmax(every)) == k)
    values = clip_score.evaluate(images, texts, own, extractor='none').values
    assert values['clip/similarity'] == pytest.approx(np.mean(cosines), abs=1e-6)
    assert values['clip/score'] == pytest.approx(100 * np.mean(np.maximum(cosines, 0)), abs=1e-4)
    assert values['clip/r_precision'] == np.mean(hits)


def test_the_control_asks_for_another_prompt():
    for count in (2, 3, 17):
        order = scores.derangement(count, 3)
        assert sorted(order) == list(range(count)) and np.all(order != np.arange(count))
    texts = random.normal(size=(40, 16))
    report = clip_score.evaluate(texts, texts, np.arange(40), extractor='none')
    assert report.values['clip/r_precision'] == 1.0 and report.shuffled['clip/r_precision'] == 0.0
    assert abs(report.shuffled['clip/similarity']) < 0.2


@pytest.mark.parametrize(
    'images, texts, own, words',
    [
        (np.ones((2, 4)), np.ones((1, 4)), np.zeros(2, int), 'at least 2'),
        (np.ones((2, 4)), np.ones((3, 5)), np.zeros(2, int), 'take both of one model'),
        (np.ones((2, 4)), np.ones((3, 4)), np.array([0, 3]), r'0 \.\. 2'),
        (np.full((2, 4), np.nan), np.ones((3, 4)), np.zeros(2, int), 'NaN'),
    ],
)
def test_wrong_input_is_named(images, texts, own, words):
    with pytest.raises(UsageError, match=words):
        clip_score.evaluate(images, texts, own, extractor='none')


def test_towers_from_a_folder_give_the_vectors_of_transformers(tmp_path):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    from t3d.checkpoint import convert_clip
    from t3d.nets.judges import clip_vision

    text = dict(vocab_size=40, hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    vision = dict(
        image_size=28, patch_size=14, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    ends = dict(max_position_embeddings=9, eos_token_id=39, bos_token_id=38)
    torch.manual_seed(0)
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text | ends, vision_config=vision, projection_dim=12)
    ).eval()
    with torch.no_grad():
        for value in theirs.parameters():
            value.add_(0.1 * torch.randn_like(value))
    theirs.save_pretrained(tmp_path)
    towers = convert_clip.load_clip(tmp_path)
    tokens = random.integers(0, 38, (5, 9))
    tokens[:, -2:] = 39
    pictures = random.uniform(size=(3, 2, 28, 28, 3)).astype(np.float32)
    ours = clip_score.image_vectors(towers.vision, towers.vision_params, pictures, batch=4)
    texts = clip_score.text_vectors(towers.text, towers.text_params, tokens, towers.text_projection, end=towers.end, batch=4)
    pixels = np.asarray(clip_vision.prepare(pictures.reshape(-1, 28, 28, 3), 28)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        out = theirs(input_ids=torch.from_numpy(tokens), pixel_values=torch.from_numpy(pixels.copy()))
    np.testing.assert_allclose(ours.reshape(-1, 12), out.image_embeds.numpy(), atol=2e-6)
    np.testing.assert_allclose(texts, out.text_embeds.numpy(), atol=2e-6)
    report = clip_score.evaluate(ours, texts, np.arange(3), extractor='random')
    assert report.n == 6 and report.candidates == 5


@pytest.mark.slow
def test_the_true_shapes_of_vit_b_32(tmp_path):
    """151 million random parameters in the layout of the released folder: 77 tokens, 224 pixels, 7 x 7 patches."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    from t3d.checkpoint import convert_clip
    from t3d.core import tree as trees
    from t3d.nets.judges import clip_vision

    torch.manual_seed(0)
    theirs = transformers.CLIPModel(transformers.CLIPConfig()).eval()  # its defaults are ViT-B/32
    theirs.save_pretrained(tmp_path)
    towers = convert_clip.load_clip(tmp_path)
    count = trees.count((towers.text_params, towers.vision_params)) + towers.text_projection.size
    assert count + 1 == sum(value.numel() for value in theirs.parameters())  # and the temperature
    tokens = random.integers(0, 49000, (2, 77))
    tokens[:, 20:] = 49407
    pictures = random.uniform(size=(2, 224, 224, 3)).astype(np.float32)
    ours = clip_score.image_vectors(towers.vision, towers.vision_params, pictures, batch=2)
    texts = clip_score.text_vectors(towers.text, towers.text_params, tokens, towers.text_projection, end=towers.end, batch=2)
    pixels = np.asarray(clip_vision.prepare(pictures)).transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
        out = theirs(input_ids=torch.from_numpy(tokens), pixel_values=torch.from_numpy(pixels))
    np.testing.assert_allclose(ours, out.image_embeds.numpy(), atol=2e-6)
    np.testing.assert_allclose(texts, out.text_embeds.numpy(), atol=2e-6)


def test_attribute_shares_against_pairs_counted_by_hand():
    captions = [{'colour': c, 'shape': s} for c in 'rgb' for s in 'xy']
    own = np.array([0, 1, 2, 3, 4, 5, 5])
    samples = [dict(captions[k]) for k in (0, 1, 2, 3, 4, 5, 0)]  # the last one shows another caption
    samples[1] = {'colour': 'r', 'shape': 'x'}  # the right colour of the wrong shape
    values, control = scores.attribute_shares(samples, captions, own, ('colour', 'shape'))
    assert values == {'colour': 6 / 7, 'shape': 5 / 7, 'both': 5 / 7}
    for slot in ('colour', 'shape'):
        pairs = [f[slot] == c[slot] for f, k in zip(samples, own) for j, c in enumerate(captions) if j != k]
        assert control[slot] == pytest.approx(np.mean(pairs))
    assert control['both'] == pytest.approx(2 / 35)  # the two samples that show a caption of the list, not their own


def test_a_slot_counts_only_where_a_caption_has_it():
    """Readings written by hand: three captions of one thing, two of two; shape_b and size are each absent from some."""
    one = lambda shape, size: {'shape': shape, 'size': size}
    two = lambda shape, shape_b: {'shape': shape, 'size': None, 'shape_b': shape_b}
    captions = [one('x', 'small'), one('y', 'small'), one('x', 'large'), two('x', 'y'), two('y', 'y')]
    samples = [
        {'shape': 'x', 'size': 'small', 'shape_b': None},
        {'shape': 'y', 'size': None, 'shape_b': 'x'},  # two things where one was asked for: its size is wrong
        {'shape': 'y', 'size': 'large', 'shape_b': None},
        {'shape': 'x', 'size': 'large', 'shape_b': None},  # one where two were asked for
        {'shape': 'y', 'size': None, 'shape_b': 'y'},
    ]
    values, control = scores.attribute_shares(samples, captions, np.arange(5), ('shape', 'shape_b'))
    assert values == {'shape': 4 / 5, 'size': 2 / 3, 'shape_b': 1 / 2, 'both': 2 / 5}
    # Of six pairs of one thing and another caption of one: the small x is the small y's, no other size fits.
    assert control['size'] == pytest.approx(1 / 6)
    assert control['shape_b'] == pytest.approx(1 / 2)  # two pairs: none and y, y and y
    # Of twenty pairs: of each sample the other captions with its shape and its second shape, or with none.
    assert control['both'] == pytest.approx((1 + 0 + 1 + 2 + 0) / 20)
    alone, others = scores.attribute_shares(samples[:4], captions[:4], np.arange(4), ('shape',))
    assert alone['shape_b'] == 0.0 and 'shape_b' not in others and 'size' in others
    assert 'shape_b' not in scores.attribute_shares(samples[:3], captions[:3], np.arange(3), ('shape',))[0]
