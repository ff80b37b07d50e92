"""Captioners against objects whose words are known."""

import shutil

import numpy as np
import pytest

from t3d.build import captioners
from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data.adapters import single_view
from t3d.data.sets import oracle, shapes, toy
from t3d.metrics import fid

SIZE, GREY = 64, 0.5


def pictures(scenes, views=1, seed=3, size=SIZE):
    """(images [N, V, S, S, 3] on grey, labels [N, V, 25]) from random cameras."""
    random = np.random.default_rng(seed)
    images, labels = [], []
    for scene in scenes:
        record = toy.record(scene, random.uniform(0, 2 * np.pi, views), random.uniform(-0.2, 0.9, views), size, 3)
        images.append(oracle.composite(record['image'], GREY))
        labels.append(single_view.to_labels(record['world_from_cam'], record['intrinsics']))
    return np.stack(images), np.stack(labels)


def toy_config(**data):
    return configs.from_dict({'data': {'name': 'toy', **data}, 'render': {'background': GREY}})


@pytest.fixture(scope='module')
def reader():
    return captioners.make('toy', toy_config())


def test_toy_reads_every_object_of_the_grammar(reader):
    scenes = shapes.singles('all')
    images, labels = pictures(scenes)
    readings = reader.caption(images, labels)
    for slots, scene in zip(readings, scenes, strict=True):
        assert {name: slots[name] for name in scene.attributes} == scene.attributes
        assert slots['distance'] < 0.3  # edges: compared at 32 px
    assert reader.render(readings[0]) == scenes[0].captions[0]
    large = shapes.single('cube', 'orange')
    slots = {**large.attributes, 'distance': 0.0}
    assert {reader.render(slots, choice) for choice in range(8)} == set(large.captions)


def test_toy_distance_has_its_scale(reader):
    """0 for the truth, 1 for nothing, and by |a x + (1 - a) background - x| = (1 - a) |x - background| in between."""
    scenes = [shapes.single('cone', 'purple', 'small'), shapes.single('sphere', 'yellow')]
    images, labels = pictures(scenes, views=2)
    truth = reader.caption(images, labels)
    half = reader.caption(GREY + 0.7 * (images - GREY), labels)
    for exact, faded, scene in zip(truth, half, scenes):
        assert exact['distance'] < 0.05
        if faded['colour'] == scene.attributes['colour']:
            np.testing.assert_allclose(faded['distance'], 0.3, atol=0.06)
    empty = reader.caption(np.full_like(images, GREY), labels)
    noise = reader.caption(np.random.default_rng(1).uniform(size=images.shape), labels)
    assert all(slots['distance'] > captioners.THRESHOLD for slots in [*empty, *noise])
    np.testing.assert_allclose([slots['distance'] for slots in empty], 1.0, atol=1e-3)


def test_toy_looks_from_the_camera_of_the_label(reader):
    """A cone seen from above is a disc: with the labels of another camera the same pictures are read worse."""
    scenes = [shapes.single(shape, 'blue') for shape in ('cube', 'cone', 'cylinder')]
    images, labels = pictures(scenes, views=2, seed=8)
    _, others = pictures(scenes, views=2, seed=9)
    right, wrong = (np.mean([slots['distance'] for slots in reader.caption(images, some)]) for some in (labels, others))
    assert wrong > 3.0 * right


def test_two_views_tell_more_than_one(reader):
    """Under noise, the same error over more pixels."""
    scenes = shapes.singles('all')[::5]
    images, labels = pictures(scenes, views=6)
    noisy = images + np.random.default_rng(2).normal(size=images.shape) * 0.8
    right = lambda readings: np.mean([slots['shape'] == scene.attributes['shape'] for slots, scene in zip(readings, scenes)])
    assert right(reader.caption(noisy, labels)) >= right(reader.caption(noisy[:, :1], labels[:, :1]))


def test_unknown_names_and_other_data():
    with pytest.raises(UsageError, match="unknown captioner 'tyo'. Did you mean 'toy'"):
        captioners.make('tyo', toy_config())
    with pytest.raises(UsageError, match="captioner toy knows the objects of toy, and this generator's data are 'eg3d'"):
        captioners.make('toy', configs.from_dict({'data': {'name': 'eg3d'}, 'render': {'background': GREY}}))


# ---------------------------------------------------------------------------------------------------------- catalogue


def records(scenes, **extra):
    images, _ = pictures(scenes)
    pixels = np.round(255.0 * images[:, 0]).astype(np.uint8)
    return [{'image': image, 'captions': scene.captions, 'attributes': {}, **extra} for image, scene in zip(pixels, scenes)]


def test_catalogue_gives_the_words_of_the_nearest_picture():
    scenes = shapes.singles('all')
    captioner = captioners.catalogue(toy_config(), extractor=fid.tiny(), records=records(scenes))
    assert captioner.name == f'catalogue of 64 pictures, {fid.tiny().name}'
    images, labels = pictures(scenes)  # the same pictures
    readings = captioner.caption(images, labels)
    assert [slots['caption'] for slots in readings] == [max(scene.captions, key=len) for scene in scenes]
    assert max(slots['distance'] for slots in readings) < 1e-3
    assert captioner.render(readings[0]) == readings[0]['caption']
    images, labels = pictures(scenes, seed=4)  # from other sides
    colours = [
        scene.attributes['colour'] in slots['caption'] for slots, scene in zip(captioner.caption(images, labels), scenes)
    ]
    assert np.mean(colours) > 0.5  # chance is 1/8


def test_catalogue_speaks_of_nouns_and_colours():
    words = {'noun': 'sofa', 'colour': 'red', 'category': 'seats'}
    captioner = captioners.catalogue(
        toy_config(), extractor=fid.tiny(), records=records(shapes.singles('all')[:4], attributes=words)
    )
    readings = captioner.caption(*pictures(shapes.singles('all')[:2]))
    assert {(slots['noun'], slots['colour']) for slots in readings} == {('sofa', 'red')}
    said = {captioner.render(readings[0], choice) for choice in range(9)}
    assert 'a red sofa' in said and all('red' in text for text in said)
    assert 'a sofa' in {captioner.render({'noun': 'sofa', 'colour': ''}, choice) for choice in range(9)}
    with pytest.raises(UsageError, match="'toy' has no captions"):
        captioners.catalogue(toy_config(), extractor=fid.tiny(), records=records(shapes.singles('all')[:2], captions=()))


# ---------------------------------------------------------------------------------------------------------------- BLIP

WORDS = (
    '[PAD]',
    '[UNK]',
    '[CLS]',
    '[SEP]',
    '[MASK]',
    '[DEC]',
    '[ENC]',
    *'what color is the this object ? a red blue chair'.split(),
)


@pytest.fixture(scope='module')
def blip(tmp_path_factory):
    """kind -> (folder, model) of tiny BLIPs with random weights."""
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    ids = {'bos_token_id': 5, 'pad_token_id': 0, 'eos_token_id': 3, 'sep_token_id': 3}
    text = {
        'vocab_size': len(WORDS),
        'hidden_size': 16,
        'encoder_hidden_size': 16,
        'intermediate_size': 32,
        'projection_dim': 8,
    }
    text |= {'num_hidden_layers': 2, 'num_attention_heads': 2, 'max_position_embeddings': 40, **ids}
    vision = {'hidden_size': 16, 'intermediate_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2}
    vision |= {'image_size': 24, 'patch_size': 8, 'projection_dim': 8}
    config = transformers.BlipConfig(text_config=text, vision_config=vision, projection_dim=8)
    made = {}
    for kind in ('BlipForConditionalGeneration', 'BlipForQuestionAnswering'):
        folder = tmp_path_factory.mktemp('blip') / kind
        model = getattr(transformers, kind)(config).eval()
        for value in model.parameters():  # larger than at the start, so that words depend on the picture
            if value.ndim > 1:
                torch.nn.init.normal_(value, std=0.7)
        for name, value in model.named_parameters():  # words alone, none of the marks
            if 'cls.predictions' in name and name.endswith('bias') and value.shape == (len(WORDS),):
                value.data[:7] = -1e3
        model.save_pretrained(folder)
        (folder / 'vocab.txt').write_text('\n'.join(WORDS) + '\n')
        (folder / 'preprocessor_config.json').write_text('{"size": {"height": 24, "width": 24}}')
        made[kind] = (folder, model)
    return made


def peer_pixels(images):
    """transformers' own preprocessing of images in [0, 1]."""
    processing = pytest.importorskip('transformers.models.blip.image_processing_pil_blip')
    eight = [np.round(255.0 * image).astype(np.uint8) for image in images]
    return processing.BlipImageProcessorPil(size={'height': 24, 'width': 24})(eight, return_tensors='pt')['pixel_values']


def coloured(count):
    """[count, 40, 40, 3]: a colour each, with some noise."""
    random = np.random.default_rng(0)
    return np.clip(random.uniform(size=(count, 1, 1, 3)) + 0.1 * random.normal(size=(count, 40, 40, 3)), 0.0, 1.0)


def test_blip_describes_as_transformers_does(blip):
    folder, model = blip['BlipForConditionalGeneration']
    captioner = captioners.make('blip', toy_config(), weights=folder)
    images = coloured(8).reshape(4, 2, 40, 40, 3)
    readings = captioner.caption(images, None)
    ids = model.generate(pixel_values=peer_pixels(images[:, 0]), max_new_tokens=24, do_sample=False, num_beams=1)
    want = [' '.join(WORDS[k] for k in row if k not in (0, 2, 3, 4, 5, 6)) for row in ids.tolist()]
    joined = lambda text: ''.join(text.split())  # a decoder writes no space before a question mark
    assert [joined(slots['caption']) for slots in readings] == [joined(text) for text in want]
    assert len(set(want)) > 1 and captioner.render(readings[0]) == readings[0]['caption'] and captioner.name.startswith('blip ')


def test_blip_answers_as_transformers_does(blip):
    torch = pytest.importorskip('torch')
    from t3d.build import captioners_blip

    folder, model = blip['BlipForQuestionAnswering']
    images = coloured(3)
    answers = captioners_blip.Blip(folder, 'BlipForQuestionAnswering').say(images, 'what color is the chair?')
    asked = torch.tensor([[2, *(WORDS.index(word) for word in 'what color is the chair ?'.split()), 3]] * 3)
    ids = model.generate(
        input_ids=asked,
        attention_mask=torch.ones_like(asked),
        pixel_values=peer_pixels(images),
        max_new_tokens=24,
        do_sample=False,
        num_beams=1,
    )
    want = [''.join(WORDS[k] for k in row if k not in (0, 2, 3, 4, 5, 6)) for row in ids.tolist()]
    assert [''.join(text.split()) for text in answers] == want and len(set(want)) > 1


def test_attribute_questions_fill_the_templates(blip, monkeypatch):
    """Answers by the question, three views: the majority speaks."""
    from t3d.build import captioners_blip

    said = {
        'is this a man or a woman?': ['woman', 'man', 'woman'],
        'what is the person wearing on the upper body?': ['a red sweater', 'sweater', 'coat'],
        'what color is the top?': ['red', 'red', 'Red'],
        'what is the person wearing on the legs?': ['jeans', 'jean', 'jean'],
        'what color are the pants?': ['blue'] * 3,
        'what is the person wearing on the feet?': ['nothing', 'barefoot', 'barefoot'],
        'what color are the shoes?': ['grey'] * 3,
        "what color is the person's hair?": ['brown'] * 3,
        "is the person's hair short or long?": ['it is long', 'long', 'short'],
        "what shape is the person's face?": ['round'] * 3,
        "what color are the person's eyes?": ['green'] * 3,
        'is the person wearing glasses?': ['yes', 'yes', 'no'],
        'is the person smiling?': ['no'] * 3,
        'what is this object?': ['Office Chair'] * 3,
        'what color is the object?': ['orange', 'orange', 'red'],
    }
    monkeypatch.setattr(captioners_blip.Blip, 'say', lambda self, images, question: said[question] * (len(images) // 3))
    images, captions = np.zeros((2, 3, 8, 8, 3)), {}
    for template in captioners_blip.TEMPLATES:
        folder = blip['BlipForQuestionAnswering'][0]
        captioner = captioners.make('blip-vqa', toy_config(), weights=folder, template=template)
        slots = captioner.caption(images, None)
        assert slots[0] == slots[1] and template in captioner.name
        captions[template] = [captioner.render(slots[0], choice) for choice in range(2)]
    assert captions['people'] == [
        'a photo of a woman wearing a red sweater, blue jean, barefoot',
        'a full-body photo of a woman wearing a red sweater, blue jean, barefoot',
    ]
    assert captions['faces'][1] == (
        'a portrait photo of a woman, with brown long hair, round face, green eyes, wearing glasses'
    )
    assert captions['objects'][0] == 'an orange office chair'
    with pytest.raises(UsageError, match="unknown template 'cars': choose one of people, faces, objects"):
        captioners.make('blip-vqa', toy_config(), weights=folder, template='cars')


def test_answers_are_brought_to_the_words_of_a_slot():
    from t3d.build import captioners_blip

    tops = captioners_blip.TEMPLATES['people'].choices['top']
    for answer, word in (
        ('a white dress shirt', 'dress shirt'),
        ('Sweaters', 'sweater'),
        ('jackt', 'jacket'),
        ('toga', 'toga'),
    ):
        assert captioners_blip.nearest(answer, tops) == word
    assert captioners_blip.nearest('  Dark  Blue ', ()) == 'dark blue'
    assert captioners_blip.vote(['coat', 'vest', 'vest', 'coat'], tops) == 'coat'


def test_folders_that_hold_no_blip_are_named(blip, tmp_path):
    with pytest.raises(UsageError, match='which t3d cannot ship: give --captioner-weights DIR, .*Salesforce/blip-vqa-base'):
        captioners.make('blip-vqa', toy_config())
    with pytest.raises(UsageError, match='lacks config.json, model.safetensors, tokenizer.json or vocab.txt'):
        captioners.make('blip', toy_config(), weights=tmp_path)
    damaged = shutil.copytree(blip['BlipForQuestionAnswering'][0], tmp_path / 'damaged')
    (damaged / 'config.json').write_text('{"model_type": ')
    with pytest.raises(UsageError, match='damaged/config.json is damaged'):
        captioners.make('blip-vqa', toy_config(), weights=damaged)
    with pytest.raises(UsageError, match='is of BlipForQuestionAnswering: give .*BlipForConditionalGeneration'):
        captioners.make('blip', toy_config(), weights=blip['BlipForQuestionAnswering'][0])
