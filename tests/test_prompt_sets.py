"""Sets of prompts: their counts and grammar against the paper's table, their splits against the hash written out."""

import hashlib
import math
import re

import pytest

from t3d.core.errors import UsageError
from t3d.data import prompts
from t3d.data.sets import shapes

COUNTS = {'animals': 3150, 'portraits': 400, 'daily_life': 20_112, 'toy': 64}
PINNED = {
    'animals': 'c60b5454c9b370c0',
    'portraits': 'c570dfccd25c2970',
    'daily_life': '7a06fb237e380a01',
    'toy': 'cda9c0bcd7236eb9',
}
SHARES = {'animals': 0.6, 'portraits': 0.6, 'daily_life': 0.9}


@pytest.mark.parametrize('name', prompts.NAMES)
def test_counts_are_exact_and_no_two_prompts_are_alike(name):
    every, train, test = (prompts.prompts(name, split) for split in ('all', 'train', 'test'))
    assert len(every) == len(set(every)) == COUNTS[name] and prompts.prompts(name) == every
    assert sorted(train + test) == sorted(every) and not set(train) & set(test)
    kept = set(train)
    assert [prompt for prompt in every if prompt in kept] == list(train)  # the order of the grammar
    for prompt in every:
        assert re.fullmatch(r'[A-Za-z-]+( [A-Za-z-]+)*', prompt), prompt
        assert not re.search(r'\ban [^aeiou]|\ba [aeiou]', prompt), prompt  # no word here needs an exception
        assert len(prompt.split()) <= 24  # of 77 tokens
    if name == 'daily_life':
        assert len(train) > 17_000


@pytest.mark.parametrize('name', SHARES)
def test_the_split_is_the_hash_of_the_prompt(name):
    """60 to 40 within three deviations of a fair draw, and bit by bit what SHA-256 says."""
    every, train = prompts.prompts(name), set(prompts.prompts(name, 'train'))
    count, share = len(every), SHARES[name]
    assert abs(len(train) - share * count) < 3.0 * math.sqrt(count * share * (1 - share))
    for prompt in every[::37]:
        digest = hashlib.sha256(f't3d prompts 1/{name}/{prompt}'.encode()).hexdigest()
        assert (prompt in train) == (int(digest[:16], 16) / 2**64 < share)


def test_splits_stay_what_they_are():
    """Published numbers name these prompts: a change of a grammar, the salt or the rule is a new set."""
    digests = {
        name: hashlib.sha256('\n'.join(prompts.prompts(name, 'test')).encode()).hexdigest()[:16] for name in prompts.NAMES
    }
    assert digests == PINNED


def test_animals_are_the_published_grammar():
    """10 x 7 x 5 x 9, parts dropped where there is none."""
    animals = prompts.prompts('animals')
    assert 'a teddy bear sitting in a basket and wearing a scarf and wearing a cowboy hat' in animals
    assert {'a wolf', 'a fox wearing sunglasses', 'a koala sitting on books', 'a panda wearing a beret'} <= set(animals)
    places = {re.search(r'sitting (.*?)(?: and wearing|$)', text).group(1) for text in animals if 'sitting' in text}
    assert places == {'in a bathtub', 'on a stone', 'on books', 'on a table', 'on the lawn', 'in a basket'}
    for part, count in (('sitting', 6 * 450), ('hat', 4 * 350), ('tophat', 350), (' a tie', 630)):
        found = sum(part in text for text in animals)
        assert found == count, (part, found)
    assert len({re.match(r'a (red panda|teddy bear|\w+)', text).group(1) for text in animals}) == 10


def test_portraits_and_toys():
    portraits = prompts.prompts('portraits')
    assert portraits[0] == 'a white man wearing a Santa hat is laughing'
    assert 'an elderly man wearing a crown is feeling sad' in portraits
    assert sum(text.startswith('Kobe wearing ') for text in portraits) == 40
    assert prompts.prompts('toy', 'test') == tuple(scene.captions[0] for scene in shapes.singles('test'))
    assert len(prompts.prompts('toy', 'train')) == 48


def test_articles():
    assert [prompts.article(word) for word in ('elderly man', 'unicycle', 'owl', 'Obama', 'old hat', 'one-eyed cat')] == [
        'an elderly man',
        'a unicycle',
        'an owl',
        'an Obama',
        'an old hat',
        'a one-eyed cat',
    ]


def test_other_names_are_refused():
    with pytest.raises(UsageError, match="unknown set of prompts 'animal'. Did you mean 'animals'"):
        prompts.prompts('animal')
    with pytest.raises(UsageError, match="unknown split of the prompts 'toy' 'held_out'. Known: train, test, all"):
        prompts.prompts('toy', 'held_out')
