import json

import numpy as np
import pytest

from t3d.core import tokens
from t3d.data import shapes


def test_words_round_trip_through_ids():
    encode = tokens.WordTokenizer(shapes.WORDS, 12)
    row = encode(['A red cone, on top of a blue cube!'])[0]
    words = [encode.words[k - 3] for k in row if k >= 3]
    assert words == 'a red cone on top of a blue cube'.split()
    assert row[0] == tokens.START and np.all(row[10:] == tokens.END) and row.dtype == np.int32
    assert encode.vocabulary_size == len(shapes.WORDS) + 3


def test_a_long_prompt_names_the_words_it_would_drop():
    with pytest.raises(ValueError, match='9 words or word pieces, the model reads 6: "a blue cube" would be dropped'):
        tokens.WordTokenizer(shapes.WORDS, 8)(['a red cone on top of a blue cube'])


def test_unknown_words_name_their_nearest():
    with pytest.raises(ValueError, match=r'"corgi"; "sphera" \(nearest: sphere\)'):
        tokens.WordTokenizer(shapes.WORDS, 12)(['a red corgi sphera'])
    assert tokens.WordTokenizer(shapes.WORDS, 12, open_vocabulary=True)(['a corgi'])[0, 2] == tokens.UNKNOWN


def test_a_clip_folder_gives_clip_ids(tmp_path):
    letters = [chr(k) for k in range(ord('a'), ord('z') + 1)]
    vocabulary = [*letters, *(letter + '</w>' for letter in letters), 'ca', 'cat</w>', '<|startoftext|>', '<|endoftext|>']
    (tmp_path / 'vocab.json').write_text(json.dumps({piece: k for k, piece in enumerate(vocabulary)}))
    (tmp_path / 'merges.txt').write_text('#version: 0.2\nc a\nca t</w>\n')
    encode = tokens.make({'folder': str(tmp_path), 'length': 8})
    ids = {piece: k for k, piece in enumerate(vocabulary)}
    start, end = ids['<|startoftext|>'], ids['<|endoftext|>']
    assert encode(['a cat'])[0].tolist() == [start, ids['a</w>'], ids['cat</w>'], end, end, end, end, end]
    with pytest.raises(ValueError, match='would be dropped'):
        encode(['a cat a cat a cat a cat'])
    with pytest.raises(FileNotFoundError, match='no tokenizer in'):
        tokens.load_clip(str(tmp_path / 'nothing'))
