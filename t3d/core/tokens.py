"""Tokenizers: words to integers, for models trained from scratch and for CLIP's own vocabulary in a local folder.

`WordTokenizer` is the vocabulary of a small data set: every word it knows is listed in the run's config, so a run folder is
enough to read a prompt. `load_clip` wraps a folder in transformers' layout. Both give `[N, length]` int32, start and end
marks included, padded with the end mark as CLIP does.
"""

import difflib
import re
from typing import NamedTuple

import numpy as np

from t3d.core.errors import UsageError

START, END, UNKNOWN = 0, 1, 2  # ids of the marks in a WordTokenizer; words follow


def split_words(text: str) -> list[str]:
    """Lower-case words and numbers; punctuation separates."""
    return re.findall(r"[a-z0-9']+", text.lower())


class WordTokenizer(NamedTuple):
    """One id for each known word.

    Attributes:
      words: the vocabulary, in order; word k has id k + 3.
      length: number of tokens of every encoded prompt, marks included.
      open_vocabulary: True encodes unknown words as one shared id; False refuses them.
    """

    words: tuple[str, ...]
    length: int
    open_vocabulary: bool = False

    @property
    def vocabulary_size(self) -> int:
        return len(self.words) + 3

    def __call__(self, prompts: list[str]) -> np.ndarray:
        """int32 [len(prompts), length].

        Raises:
          ValueError: a prompt is longer than `length - 2` words, or has words that a closed vocabulary lacks.
        """
        ids = {word: k + 3 for k, word in enumerate(self.words)}
        rows = np.full((len(prompts), self.length), END, np.int32)
        for row, prompt in zip(rows, prompts):
            words = split_words(prompt)
            refuse_long(prompt, words, self.length - 2)
            if not self.open_vocabulary:
                refuse_unknown(prompt, words, self.words)
            row[0] = START
            row[1 : len(words) + 1] = [ids.get(word, UNKNOWN) for word in words]
        return rows


def refuse_long(prompt: str, words: list[str], limit: int) -> None:
    """Raises ValueError naming the words that would be dropped."""
    if len(words) > limit:
        dropped = ' '.join(words[limit:])
        raise UsageError(
            f'the prompt has {len(words)} words or word pieces, the model reads {limit}: "{dropped}" would be dropped. '
            f'Shorten it. The prompt was: "{prompt}"'
        )


def refuse_unknown(prompt: str, words: list[str], known: tuple[str, ...]) -> None:
    """Raises ValueError naming unknown words and their nearest known ones."""
    unknown = [word for word in words if word not in known]
    if unknown:
        nearest = {word: difflib.get_close_matches(word, known, 3, 0.7) for word in unknown}
        hints = '; '.join(f'"{word}"' + (f' (nearest: {", ".join(near)})' if near else '') for word, near in nearest.items())
        shown = ', '.join(known[:40]) + (f', ... ({len(known)} words)' if len(known) > 40 else '')
        raise UsageError(
            f'words this model was not trained on: {hints}, in the prompt "{prompt}". It knows: {shown}. '
            'Use these words, or choose weights trained on more text with --weights or --run.'
        )


def load_clip(folder: str, length: int = 77):
    """A callable like WordTokenizer from a local folder with `vocab.json` and `merges.txt` or `tokenizer.json`."""
    import os

    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    names = ('tokenizer.json', 'vocab.json')
    if not any(os.path.exists(os.path.join(folder, name)) for name in names):
        raise FileNotFoundError(f'no tokenizer in {folder}: wanted tokenizer.json, or vocab.json with merges.txt')
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)

    def encode(prompts: list[str]) -> np.ndarray:
        for prompt in prompts:
            refuse_long(prompt, tokenizer.tokenize(prompt), length - 2)
        return np.asarray(tokenizer(prompts, padding='max_length', max_length=length)['input_ids'], np.int32)

    return encode


def make(text: dict):
    """The tokenizer that a config's `text` section describes: keys `words`, `length`, `open_vocabulary`, or `folder`."""
    if text.get('folder'):
        return load_clip(text['folder'], text['length'])
    return WordTokenizer(tuple(text['words']), int(text['length']), bool(text.get('open_vocabulary', False)))
