"""Sets of prompts that systems without pictures learn from: grammars, and which of their prompts are held out.

| name | prompts | what |
|---|---|---|
| `animals` | 3,150 | ten animals, where they sit, what they wear, their hats (Instant3D, arXiv 2311.08403, Sec. 4.1) |
| `portraits` | 400 | ten figures, four hats, ten expressions (the same) |
| `daily_life` | 20,112 | people, pets, meals, things, vehicles: a grammar of our own for the paper's unreleased list |
| `toy` | 64 | the single objects of the procedural scenes |

A prompt is held out by a hash of its own text, so that a split does not depend on the order, the size or the version of a set:
the first 64 bits of SHA-256 of 'SALT/name/prompt', as a share of 2^64, are at least the set's share for training (0.6 as in the
paper; 0.9 for `daily_life`). `toy` holds out the combinations of shape and colour that its pictures hold out.
"""

import functools
import hashlib
import itertools

from t3d.core.config import unknown
from t3d.core.errors import UsageError
from t3d.data.sets import shapes

SALT = 't3d prompts 1'
SPLITS = ('train', 'test', 'all')
TRAINED = {'animals': 0.6, 'portraits': 0.6, 'daily_life': 0.9, 'file': 0.9}  # shares; file: prompts of the user's own
CONSONANT_VOWELS = ('uni', 'uku', 'one')  # begin with a vowel and sound as a consonant


def _words(text: str) -> list[str]:
    """The entries of a list that is written with commas."""
    return [entry.strip() for entry in text.split(',')]


# Animals and Portraits, as published.

SPECIES = _words('wolf, dog, panda, fox, civet, cat, red panda, teddy bear, rabbit, koala')
SEATS = _words('in a bathtub, on a stone, on books, on a table, on the lawn, in a basket')
WEAR = _words('a tie, a cape, sunglasses, a scarf')
HATS = _words('a beret, a beanie, a cowboy hat, a straw hat, a baseball cap, a tophat, a party hat, a sombrero')

FIGURES = _words(
    'a white man, a white woman, a boy, a girl, an elderly man, an elderly woman, a black woman, a black man, Obama, Kobe'
)
CROWNS = _words('a Santa hat, a peaked cap, a steampunk hat, a crown')
EXPRESSIONS = _words(
    'laughing, crying, grinning, singing, shouting, looking ahead with a very serious expression, opening mouth wide in shock, '
    'angry, talking, feeling sad'
)

# Daily life: words of our own.

PEOPLE = _words(
    'man, woman, boy, girl, elderly man, elderly woman, chef, farmer, nurse, teacher, firefighter, painter, mechanic, student, '
    'gardener, baker, fisherman, postman, violinist, carpenter, dancer, librarian, plumber, astronaut'
)
DEEDS = _words(
    'reading a newspaper, riding a bicycle, watering a plant, carrying a basket of apples, pushing a shopping cart, '
    'holding an umbrella, playing the guitar, walking a dog, painting a fence, sweeping the floor, folding laundry, '
    'drinking a cup of tea, eating an ice cream, baking a cake, typing on a laptop, talking on the phone, taking a photograph, '
    'feeding pigeons, flying a kite, climbing a ladder, sitting on a bench, sleeping in a hammock, kneading dough, '
    'washing dishes, chopping wood, knitting a sweater, juggling oranges, playing chess, writing a letter, lifting a box, '
    'building a snowman, planting a tree, pouring milk into a glass, brushing a horse, blowing out candles, waving a flag'
)
CLOTHES = _words(
    'an apron, a raincoat, a woollen sweater, blue overalls, a striped shirt, rubber boots, a denim jacket, pyjamas'
)
PETS = _words(
    'corgi, kitten, puppy, hamster, parrot, pony, goat, duckling, tortoise, squirrel, hedgehog, piglet, lamb, owl, otter, '
    'poodle, goose, donkey, penguin, raccoon, mouse, frog, calf, beagle'
)
PLAYS = _words(
    'chasing a ball, sleeping on a cushion, eating a carrot, riding a skateboard, sitting in a flower pot, playing the drums, '
    'jumping over a puddle, hiding in a cardboard box, reading a book, drinking from a bowl, standing on a scale, '
    'digging in the sand, pulling a small cart, peeking out of a bag, swinging on a swing, holding a balloon, '
    'rolling in the grass, looking into a mirror, balancing on a log, stealing a sock, driving a toy car, baking cookies, '
    'playing the piano, wrapped in a towel'
)
COLLARS = _words('a bow tie, a bell, a knitted hat, round glasses, a red bandana, a flower crown')
DISHES = _words(
    'loaf of bread, apple pie, bowl of noodles, stack of pancakes, roast chicken, pizza, hamburger, fruit salad, omelette, '
    'birthday cake, plate of sushi, cheese wheel, bowl of soup, doughnut, pot of stew, baked potato, lasagna, croissant, taco, '
    'pineapple, watermelon, jar of honey, pitcher of lemonade, cupcake, pretzel, waffle, bunch of grapes, dumpling, meatball, '
    'sandwich'
)
TASTES = _words('freshly made, half-eaten, steaming, golden, giant, tiny, homemade, neatly decorated')
TABLES = _words(
    'on a wooden board, on a white plate, in a picnic basket, on a checkered cloth, on a silver tray, on a stone counter, '
    'on a banana leaf, beside a candle, under a glass dome, on a kitchen scale'
)
THINGS = _words(
    'chair, table, lamp, bookshelf, teapot, kettle, vase, clock, radio, suitcase, umbrella stand, rocking horse, '
    'piano, guitar, sewing machine, typewriter, mirror, candlestick, birdcage, watering can, mailbox, toolbox, '
    'bathtub, stove, cradle, desk, stool, bench, wardrobe, globe, chess set, music box, telephone, lantern, bucket, '
    'wheelbarrow, treasure chest, doll house, fruit bowl, picture frame'
)
MAKES = _words('wooden, copper, porcelain, old, rusty, modern, hand-painted, wicker, marble, toy')
SPOTS = _words(
    'on a rug, by a window, covered with ivy, on a small stage, wrapped in a ribbon, under a tree, on a pile of books, '
    'on a tiled floor'
)
VEHICLES = _words(
    'pickup truck, bicycle, sailing boat, tractor, bus, motorcycle, hot air balloon, train engine, fire engine, canoe, '
    'helicopter, delivery van, ambulance, tricycle, scooter, rowing boat, ice cream truck, sports car, excavator, tram, '
    'submarine, seaplane, horse cart, camper van'
)
PAINTS = _words('red, orange, yellow, green, blue, purple, white, black, pink, silver, turquoise, brown')
LOADS = _words(
    'loaded with pumpkins, full of flowers, carrying a sofa, covered with snow, with a dog on board, full of balloons, '
    'with a wooden ladder on top'
)


def article(phrase: str) -> str:
    """'an elderly man', 'a unicycle': a phrase with its indefinite article."""
    vowel = phrase[0].lower() in 'aeiou' and not phrase.lower().startswith(CONSONANT_VOWELS)
    return f'{"an" if vowel else "a"} {phrase}'


def _join(subject: str, *parts: str) -> str:
    """Subject and the parts that are not empty, with 'and' between these."""
    return f'{subject} {" and ".join(filter(None, parts))}'.strip()


def _after(word: str, choices: list[str]) -> list[str]:
    """The choices after a word, and none."""
    return [f'{word} {choice}' for choice in choices] + ['']


def _animals() -> list[str]:
    parts = _after('sitting', SEATS), _after('wearing', WEAR), _after('wearing', HATS)
    return [_join(article(species), *rest) for species, *rest in itertools.product(SPECIES, *parts)]


def _portraits() -> list[str]:
    return [f'{who} wearing {hat} is {how}' for who, hat, how in itertools.product(FIGURES, CROWNS, EXPRESSIONS)]


def _daily_life() -> list[str]:
    people = itertools.product(map(article, PEOPLE), DEEDS, _after('wearing', CLOTHES))
    pets = itertools.product(map(article, PETS), PLAYS, _after('wearing', COLLARS))
    meals = (f'{article(taste)} {dish} {table}' for taste, dish, table in itertools.product(TASTES, DISHES, TABLES))
    things = (f'{article(make)} {thing} {spot}' for make, thing, spot in itertools.product(MAKES, THINGS, [*SPOTS, '']))
    vehicles = (f'{article(paint)} {what} {load}' for paint, what, load in itertools.product(PAINTS, VEHICLES, [*LOADS, '']))
    told = [_join(*parts) for parts in (*people, *pets)]
    return told + [prompt.strip() for prompt in (*meals, *things, *vehicles)]


def _toy() -> list[str]:
    return [scene.captions[0] for scene in shapes.singles('all')]


GRAMMARS = {'animals': _animals, 'portraits': _portraits, 'daily_life': _daily_life, 'toy': _toy}
NAMES = tuple(GRAMMARS)


def is_held_out(name: str, prompt: str) -> bool:
    """Whether a prompt of a set is not for training: a function of the set's name and the prompt's text alone."""
    if name == 'toy':
        return prompt in {scene.captions[0] for scene in shapes.singles('test')}
    digest = hashlib.sha256(f'{SALT}/{name}/{prompt}'.encode()).digest()
    return int.from_bytes(digest[:8], 'big') >= TRAINED[name] * 2.0**64


def belongs(name: str, prompt: str, split: str) -> bool:
    """Whether a prompt of a set is in a split; UsageError for another split."""
    if split not in SPLITS:
        raise UsageError(unknown(split, SPLITS, f'split of the prompts {name!r}'))
    return split == 'all' or (split == 'test') == is_held_out(name, prompt)


@functools.cache
def prompts(name: str, split: str = 'all') -> tuple[str, ...]:
    """The prompts of a set in the order of its grammar, no two alike.

    Args:
      name: one of NAMES.
      split: 'train', 'test' (held out) or 'all'.

    Raises: UsageError for another name or split.
    """
    if name not in GRAMMARS:
        raise UsageError(unknown(name, NAMES, 'set of prompts'))
    return tuple(prompt for prompt in GRAMMARS[name]() if belongs(name, prompt, split))
