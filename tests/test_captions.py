import numpy as np
import pytest

from t3d.data.sets import captions


def test_lab_of_known_colours():
    # CIE 1976 values of the sRGB primaries under D65, as tabulated in colour references.
    known = {
        (1, 1, 1): (100, 0, 0),
        (0, 0, 0): (0, 0, 0),
        (1, 0, 0): (53.24, 80.09, 67.20),
        (0, 1, 0): (87.73, -86.18, 83.18),
        (0, 0, 1): (32.30, 79.19, -107.86),
    }
    np.testing.assert_allclose(captions.lab(list(known)), list(known.values()), atol=0.02)


def test_the_palette_is_named_as_it_is_called():
    words = captions.name_colours(list(captions.PALETTE.values()))
    assert [captions.COLOURS[index] for index in words] == list(captions.PALETTE)


def test_colour_words_need_their_share():
    red, white, blue, green = (0.8, 0.1, 0.1), (1, 1, 1), (0.1, 0.2, 0.8), (0.1, 0.6, 0.1)
    assert captions.colour_word([red], [5.0]) == 'red'
    assert captions.colour_word([white, blue], [0.55, 0.45]) == 'white and blue'
    assert captions.colour_word([white, blue], [0.75, 0.25]) == 'white'
    assert captions.colour_word([white, blue, green], [0.5, 0.29, 0.21]) == ''
    assert captions.colour_word(np.zeros((0, 3)), []) == ''


@pytest.mark.parametrize(
    'name, noun',
    [
        ('Chair', 'chair'),
        ('Sofa 3 seats', 'sofa'),
        ('TV 16:9', 'tv'),
        ('MP3 base', 'mp3 base'),
        ('Square RJ45 plug', 'square rj45 plug'),
        ('Parking slot 45°', 'parking slot'),
        ('Chair2', 'chair'),
        ("Rubik's cube", "rubik's cube"),
        ('Bill 10€', 'bill'),
        ('2004', '2004'),
    ],
)
def test_nouns(name, noun):
    assert captions.noun(name) == noun


@pytest.mark.parametrize(
    'noun, plural',
    [
        ('flowers', True),
        ('woman shoes', True),
        ('bus', False),
        ('beer glass', False),
        ('bowl with fruits', False),
        ('ficus', False),
        ('plate, glass and cutlery', True),
        ('chair', False),
    ],
)
def test_plurals(noun, plural):
    assert captions.is_plural(noun) is plural


def test_captions_speak_what_is_known():
    assert captions.captions('armchair') == ('armchair', 'an armchair', 'a 3D model of an armchair')
    assert captions.captions('chair', 'orange', ('seat',)) == (
        'chair',
        'a chair',
        'a 3D model of a chair',
        'a chair, seat',
        'an orange chair',
        'a 3D model of an orange chair',
        'an orange chair, seat',
    )
    assert captions.captions('tulips', 'red') == ('tulips', 'a 3D model of tulips', 'red tulips', 'a 3D model of red tulips')
