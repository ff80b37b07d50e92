import json
import pathlib
import re

import numpy as np
import pytest

from t3d.core import tokens
from t3d.core.errors import UsageError
from t3d.data.sets import shapes


def test_words_round_trip_through_ids():
    encode = tokens.WordTokenizer(shapes.WORDS, 12)
    row = encode(['A red cone, on top of a blue cube!'])[0]
    words = [encode.words[k - 3] for k in row if k >= tokens.FIRST]
    assert words == 'a red cone on top of a blue cube'.split()
    assert row[0] == tokens.START and np.all(row[10:] == tokens.END) and row.dtype == np.int32
    assert encode.vocabulary_size == len(shapes.WORDS) + 3


def test_a_long_prompt_names_the_words_it_would_drop():
    with pytest.raises(ValueError, match='9 words or word pieces, the model reads 6: "a blue cube" would be dropped'):
        tokens.WordTokenizer(shapes.WORDS, 8)(['a red cone on top of a blue cube'])


def test_unknown_words_name_their_nearest():
    with pytest.raises(ValueError, match=r'"corgi"; "sphera" \(nearest: sphere\)'):
        tokens.WordTokenizer(shapes.WORDS, 12)(['a red corgi sphera'])


def test_an_open_vocabulary_leaves_unknown_words_out():
    encode = tokens.WordTokenizer(shapes.WORDS, 6, open_vocabulary=True)
    with_corgi, without, none = encode(['a red corgi cube', 'a red cube', 'corgi'])
    np.testing.assert_array_equal(with_corgi, without)
    assert none.tolist() == [tokens.START] + [tokens.END] * 5
    text = {'words': shapes.WORDS, 'length': 6, 'open_vocabulary': True}
    with pytest.raises(UsageError, match=r'not trained on: "corgi"; "sphera" \(nearest: sphere\)'):
        tokens.check_prompts(text, ['a red cube', 'corgi sphera'])


def test_a_closed_vocabulary_never_reads_part_of_a_word():
    encode = tokens.WordTokenizer(('a', 'w', 'rfel', 'blue', '红'), 8)
    for prompt, word in (
        ('a Würfel', 'würfel'),
        ('a Wu\u0308rfel', 'würfel'),
        ('a W\ufffdrfel', 'w\ufffdrfel'),
        ('红色', '色'),
    ):
        with pytest.raises(UsageError, match=f'not trained on: "{word}"'):
            encode([prompt])
    assert encode(['A ＢＬＵＥ 红'])[0].tolist() == [0, 3, 6, 7, 1, 1, 1, 1]


def test_messages_of_long_prompts_are_short():
    encode = tokens.WordTokenizer(shapes.WORDS, 60_000)
    many = ' '.join(f'w{k}' for k in range(50_000))
    for prompt, message in (('a ' * 100_000, '100000 words'), (many, 'and 49992 more'), ('x' * 100_000, '100000 characters')):
        with pytest.raises(UsageError, match=message) as error:
            encode([prompt])
        assert len(str(error.value)) < 1500


@pytest.mark.parametrize('word', ['Red', 'on top of', 'Wu\u0308rfel', '红色', '-', 'ｒｅｄ'])
def test_a_vocabulary_of_words_that_no_prompt_holds_is_refused(word):
    with pytest.raises(UsageError, match='text.words holds .*, which prompts read as'):
        tokens.make({'words': ('a', word), 'length': 8})


SHIPPED = sorted((pathlib.Path(tokens.__file__).parents[1] / 'assets').glob('*/config.json'))
SHIPPED = [path for path in SHIPPED if 'text' in json.loads(path.read_text())]  # a GAN reads none


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.parent.name)
def test_shipped_weights_read_english_as_they_were_trained(path):
    """Ids by a rule of its own for words of English letters: `[a-z0-9']+` of the lower case."""
    text = json.loads(path.read_text())['text']
    encode, ids = tokens.make(text), {word: k + 3 for k, word in enumerate(text['words'])}
    prompts = [caption for scene in shapes.singles('all') for caption in scene.captions]
    words = [word for word in text['words'] if word.isascii()]
    prompts += [f'A {one.title()}, {other.upper()}-{one}!' for one, other in zip(words, words[1:])]
    for prompt, row in zip(prompts, encode(prompts), strict=True):
        known = [ids[word] for word in re.findall(r"[a-z0-9']+", prompt.lower()) if word in ids]
        assert row.tolist() == [tokens.START, *known] + [tokens.END] * (text['length'] - 1 - len(known))
    assert len(SHIPPED) >= 4


def test_clip_reads_every_script_as_transformers_does_and_loses_nothing(tmp_path):
    """A vocabulary of all bytes, as CLIP's has, and one of letters alone."""
    transformers = pytest.importorskip('transformers')
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    def folder(name: str, pieces: list[str]):
        vocabulary = [*pieces, *(f'{piece}</w>' for piece in pieces), '<|startoftext|>', '<|endoftext|>']
        (tmp_path / name).mkdir()
        (tmp_path / name / 'vocab.json').write_text(json.dumps({piece: k for k, piece in enumerate(vocabulary)}))
        (tmp_path / name / 'merges.txt').write_text('#version: 0.2\n')
        return str(tmp_path / name)

    whole, letters = folder('whole', list(bytes_to_unicode().values())), folder('letters', list('abcdefghijklmnopqrstuvwxyz'))
    theirs, encode = transformers.CLIPTokenizer.from_pretrained(whole), tokens.load_clip(whole)
    for prompt in (
        'Ein grüner Würfel',
        'красный куб',
        '红色立方体',
        '赤いキューブ',
        'مكعب',
        'लाल घन',
        '빨간',
        'a 🟥 cube',
        'the dog’s',
    ):
        row = theirs(prompt, padding='max_length', max_length=77)['input_ids']
        assert encode([prompt])[0].tolist() == row and len(set(row)) > 5
        with pytest.raises(UsageError, match=r'reads \d+ pieces of .* as the mark <\|endoftext\|>: its vocabulary lacks'):
            tokens.load_clip(letters)([prompt])
    with pytest.raises(UsageError, match='or the prompt holds the mark itself'):
        encode(['a cat <|endoftext|> a dog'])


def test_a_clip_folder_gives_clip_ids(tmp_path):
    letters = [chr(k) for k in range(ord('a'), ord('z') + 1)]
    vocabulary = [*letters, *(letter + '</w>' for letter in letters), 'ca', 'cat</w>', '<|startoftext|>', '<|endoftext|>']
    (tmp_path / 'vocab.json').write_text(json.dumps({piece: k for k, piece in enumerate(vocabulary)}))
    (tmp_path / 'merges.txt').write_text('#version: 0.2\nc a\nca t</w>\n')
    encode = tokens.make({'folder': str(tmp_path), 'length': 8})
    ids = {piece: k for k, piece in enumerate(vocabulary)}
    start, end = ids['<|startoftext|>'], ids['<|endoftext|>']
    assert encode(['a cat'])[0].tolist() == [start, ids['a</w>'], ids['cat</w>'], end, end, end, end, end]
    for prompt, rest in (('a cat A Cat a cat Cat A', 'Cat A'), ('a cat a cat a dog', 'og')):  # as it was written
        with pytest.raises(UsageError, match=rf'the model reads 6: "{rest}" would be dropped') as error:
            encode([prompt])
        assert '</w>' not in str(error.value)
    with pytest.raises(FileNotFoundError, match='no tokenizer in'):
        tokens.load_clip(str(tmp_path / 'nothing'))
