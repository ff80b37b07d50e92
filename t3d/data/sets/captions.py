"""Captions of catalogue objects: nouns, colour words measured in CIELAB, phrases.

A colour word is spoken only when it covers most of what is seen, so that a caption is true of the picture. Colours are named
by the nearest of several prototypes per word: one prototype per word calls every dark wood black and every pale one gray.
"""

import re

import numpy as np

from t3d.core import tokens

# Display sRGB, 0 to 255. Several shades share a word; the twelve words are the basic colour terms plus beige.
PROTOTYPES = (
    ('red', (200, 30, 30)),
    ('red', (120, 15, 20)),
    ('red', (225, 70, 65)),
    ('orange', (235, 125, 25)),
    ('orange', (250, 165, 85)),
    ('yellow', (240, 215, 40)),
    ('yellow', (250, 240, 140)),
    ('yellow', (190, 170, 40)),
    ('green', (40, 150, 50)),
    ('green', (20, 75, 30)),
    ('green', (150, 200, 110)),
    ('green', (95, 115, 50)),
    ('green', (55, 70, 30)),
    ('green', (40, 140, 120)),
    ('blue', (40, 80, 200)),
    ('blue', (20, 30, 110)),
    ('blue', (120, 170, 225)),
    ('blue', (80, 110, 150)),
    ('blue', (40, 50, 80)),
    ('blue', (60, 180, 210)),
    ('purple', (120, 40, 150)),
    ('purple', (170, 130, 205)),
    ('purple', (75, 30, 85)),
    ('pink', (240, 150, 180)),
    ('pink', (225, 80, 140)),
    ('pink', (250, 205, 210)),
    ('brown', (110, 65, 30)),
    ('brown', (70, 40, 22)),
    ('brown', (150, 100, 60)),
    ('brown', (125, 85, 60)),
    ('brown', (165, 115, 80)),
    ('brown', (90, 70, 50)),
    ('beige', (225, 205, 165)),
    ('beige', (205, 180, 140)),
    ('beige', (235, 225, 200)),
    ('beige', (190, 165, 130)),
    ('gray', (75, 75, 75)),
    ('gray', (105, 105, 105)),
    ('gray', (135, 135, 135)),
    ('gray', (165, 165, 165)),
    ('gray', (115, 112, 105)),
    ('black', (0, 0, 0)),
    ('black', (28, 28, 28)),
    ('black', (45, 45, 45)),
    ('white', (255, 255, 255)),
    ('white', (236, 236, 236)),
    ('white', (222, 222, 222)),
    ('white', (205, 205, 205)),  # Blender's default material, which reads as white once lit
)
COLOURS = tuple(dict.fromkeys(word for word, _ in PROTOTYPES))
FIRST_SHARE = 0.6  # of the visible pixels, for a colour to be spoken
SECOND_SHARE = 0.3  # for a second one beside it
PALETTE = {  # the colours that recoloured variants take, display values in [0, 1]
    'red': (0.80, 0.12, 0.12),
    'orange': (0.95, 0.50, 0.10),
    'yellow': (0.95, 0.85, 0.15),
    'green': (0.15, 0.60, 0.20),
    'blue': (0.15, 0.30, 0.80),
    'purple': (0.50, 0.18, 0.62),
    'white': (0.93, 0.93, 0.93),
    'black': (0.08, 0.08, 0.08),
}

_RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)  # IEC 61966-2-1
_WHITE = _RGB_TO_XYZ.sum(1)  # D65, the white of sRGB


def lab(rgb) -> np.ndarray:
    """CIELAB [..., 3] (L in [0, 100]) of display sRGB [..., 3] in [0, 1]; white is D65."""
    rgb = np.clip(np.asarray(rgb, np.float64), 0.0, 1.0)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    ratio = linear @ _RGB_TO_XYZ.T / _WHITE
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)  # CIE 15:2004, Sec. 8.2.1
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


_PROTOTYPE_LAB = lab(np.array([rgb for _, rgb in PROTOTYPES]) / 255.0)
_PROTOTYPE_WORD = np.array([COLOURS.index(word) for word, _ in PROTOTYPES])


def name_colours(rgb) -> np.ndarray:
    """Index into COLOURS [N] of the nearest prototype for display colours [N, 3] in [0, 1]."""
    distance = ((lab(rgb)[:, None] - _PROTOTYPE_LAB) ** 2).sum(-1)
    return _PROTOTYPE_WORD[distance.argmin(-1)]


def colour_word(rgb, weights) -> str:
    """'red', 'white and blue', or '' if no colour covers enough, for unlit colours [N, 3] with weights [N]."""
    weights = np.asarray(weights, np.float64)
    if weights.sum() <= 0.0:
        return ''
    share = np.bincount(name_colours(rgb), weights, len(COLOURS)) / weights.sum()
    first, second = np.argsort(-share, kind='stable')[:2]
    if share[first] > FIRST_SHARE and share[second] <= SECOND_SHARE:
        return COLOURS[first]
    if share[second] > SECOND_SHARE and share[first] + share[second] > FIRST_SHARE:
        return f'{COLOURS[first]} and {COLOURS[second]}'
    return ''


def noun(name: str) -> str:
    """A catalogue name in lower case without counts: 'Sofa 3 seats' -> 'sofa', 'TV 16:9' -> 'tv', 'Chair2' -> 'chair'."""
    text = re.sub(r'(?<!\S)\d+ [^\W\d_]+s(?!\S)', '', name.lower())  # '3 seats', '2 panes'
    words = [word for word in text.split() if re.search(r'[^\W\d_]', word)]
    words = [re.sub(r'(?<=[^\W\d_]{3})\d+$', '', word) for word in words]  # but 'mp3' and 'rj45' stay
    return ' '.join(words).strip(' ,-') or name.lower().strip()


def is_plural(noun: str) -> bool:
    """Whether a noun phrase is plural, by the ending of its head: 'flowers', 'woman shoes', not 'bus' or 'bowl with fruits'."""
    head = re.split(r'\s+(?:with|on|under|of|in|for)\s+', noun)[0].split(' - ')[0].split()[-1]
    return head.endswith('s') and not head.endswith(('ss', 'us', 'is')) or bool(re.search(r'^\S+ and |, ', noun))


def _a(text: str, plural: bool) -> str:
    """The phrase with its article, if it takes one."""
    if plural:
        return text
    return ('an ' if text[:1] in 'aeiou' else 'a ') + text


def captions(noun: str, colour: str = '', tags: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Every valid caption in a fixed order: with and without colour and tag, the bare noun first."""
    plural = is_plural(noun)
    coloured = f'{colour} {noun}' if colour else ''
    result = []
    for phrase in (noun, coloured) if colour else (noun,):
        named = _a(phrase, plural)
        result += [named, f'a 3D model of {named}', *(f'{named}, {tag}' for tag in tags)]
    return (noun, *dict.fromkeys(text for text in result if text != noun))


def vocabulary(captions) -> list[str]:
    """Every word of the captions, most frequent first, ties by alphabet."""
    counts = {}
    for caption in captions:
        for word in tokens.split_words(caption):
            counts[word] = counts.get(word, 0) + 1
    return sorted(counts, key=lambda word: (-counts[word], word))
