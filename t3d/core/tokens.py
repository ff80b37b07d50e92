"""Tokenizers: words to integers, for models trained from scratch and for CLIP's own vocabulary in a local folder.

`WordTokenizer` is the vocabulary of a small data set: every word it knows is listed in the run's config, so a run folder is
enough to read a prompt. `load_clip` wraps a folder in transformers' layout. Both give `[N, length]` int32, start and end
marks included, padded with the end mark as CLIP does.
"""

import contextlib
import difflib
import functools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from t3d.core.errors import UsageError
from t3d.core.unicode_words import split_words

START, END = 0, 1  # ids of the marks in a WordTokenizer
FIRST = 3  # id of the first word; 2 is free
NAMED = 8  # at most so many unknown words are named with their nearest
SHOWN = 200  # characters of a prompt or of a list of words that a message quotes


class WordTokenizer(NamedTuple):
    """One id for each known word.

    Attributes:
      words: the vocabulary, in order, as `split_words` gives them; word k has id k + FIRST.
      length: number of tokens of every encoded prompt, marks included.
      open_vocabulary: True leaves unknown words out, as a mark that was never trained would say anything; False refuses them.
    """

    words: tuple[str, ...]
    length: int
    open_vocabulary: bool = False

    @property
    def vocabulary_size(self) -> int:
        return len(self.words) + FIRST

    def __call__(self, prompts: list[str]) -> np.ndarray:
        """int32 [len(prompts), length].

        Raises:
          ValueError: a prompt is longer than `length - 2` words, or has words that a closed vocabulary lacks.
        """
        ids = {word: k + FIRST for k, word in enumerate(self.words)}
        rows = np.full((len(prompts), self.length), END, np.int32)
        for row, prompt in zip(rows, prompts):
            words = split_words(prompt)
            limit = self.length - 2
            refuse_long(prompt, len(words), limit, ' '.join(words[limit:]))
            read = [word for word in words if word in ids] if self.open_vocabulary else words
            refuse_unknown(prompt, read, self.words)
            row[0] = START
            row[1 : len(read) + 1] = [ids[word] for word in read]
        return rows


def refuse_long(prompt: str, count: int, limit: int, beyond: str) -> None:
    """Raises ValueError for a prompt of `count` words or pieces, naming the text `beyond` the limit."""
    if count > limit:
        raise UsageError(
            f'the prompt has {count} words or word pieces, the model reads {limit}: "{quoted(beyond)}" would be dropped. '
            f'Shorten it. The prompt was: "{quoted(prompt)}"'
        )


def refuse_unknown(prompt: str, words: list[str], known: tuple[str, ...]) -> None:
    """Raises ValueError naming unknown words and their nearest known ones."""
    unknown = list(dict.fromkeys(word for word in words if word not in known))
    if unknown:
        nearest = {word: difflib.get_close_matches(word, known, 3, 0.7) for word in unknown[:NAMED]}
        hints = '; '.join(
            f'"{quoted(word)}"' + (f' (nearest: {", ".join(near)})' if near else '') for word, near in nearest.items()
        )
        hints += f'; and {len(unknown) - NAMED} more' if len(unknown) > NAMED else ''
        vocabulary = ', '.join(known[:40]) + (f', ... ({len(known)} words)' if len(known) > 40 else '')
        raise UsageError(
            f'words this model was not trained on: {hints}, in the prompt "{quoted(prompt)}". It knows: {vocabulary}. '
            'Use these words, or choose weights trained on more text with --weights or --run.'
        )


def quoted(text: str) -> str:
    """The text as a message shows it: its beginning, if it is long."""
    return text if len(text) <= SHOWN else f'{text[:SHOWN]}... ({len(text)} characters)'


class ClipTokenizer(NamedTuple):
    """CLIP's own vocabulary, called as WordTokenizer is.

    Attributes:
      read: transformers' tokenizer.
      folder: where it came from.
      length: number of tokens of every encoded prompt, marks included.
    """

    read: Callable
    folder: str
    length: int

    @property
    def end(self) -> int:
        """The id of its end mark; not always the last one: added words come behind it."""
        return self.read.eos_token_id

    @property
    def vocabulary_size(self) -> int:
        """The largest id and one, added words included."""
        return 1 + max(self.read.get_vocab().values())

    def __call__(self, prompts: list[str]) -> np.ndarray:
        """int32 [len(prompts), length]. Raises UsageError for a prompt that is too long or has characters it lacks."""
        for prompt in prompts:
            pieces = self.read.tokenize(prompt)
            marks = [piece for piece in pieces if piece in self.read.all_special_tokens]
            if marks:  # the end mark also stands for what the vocabulary lacks: the text would end there
                raise UsageError(
                    f'the tokenizer in {self.folder} reads {len(marks)} pieces of "{quoted(prompt)}" as the mark {marks[0]}: '
                    'its vocabulary lacks the characters, or the prompt holds the mark itself. Write it otherwise.'
                )
            limit = self.length - 2
            refuse_long(prompt, len(pieces), limit, self._from_piece(prompt, limit) if len(pieces) > limit else '')
        return np.asarray(self.read(prompts, padding='max_length', max_length=self.length)['input_ids'], np.int32)

    def _from_piece(self, prompt: str, piece: int) -> str:
        """The rest of a prompt, as it was written, from one of its pieces on."""
        places = self.read(prompt, add_special_tokens=False, return_offsets_mapping=True)['offset_mapping']
        return prompt[places[piece][0] :]


def load_clip(folder: str, length: int = 77, rows: int | None = None) -> ClipTokenizer:
    """The tokenizer of a local folder with `vocab.json` and `merges.txt` or `tokenizer.json`.

    Args:
      rows: of the text encoder's embedding; None: not compared.
    Raises:
      FileNotFoundError: there is none.
      UsageError: it cannot be read, is no CLIP's, or has ids beyond `rows`.
    """
    import os

    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    names = ('tokenizer.json', 'vocab.json')
    if not any(os.path.exists(os.path.join(folder, name)) for name in names):
        raise FileNotFoundError(f'no tokenizer in {folder}: wanted tokenizer.json, or vocab.json with merges.txt')
    from transformers import CLIPTokenizer

    try:
        kind = json.loads(pathlib.Path(folder, 'tokenizer_config.json').read_text(encoding='utf-8')).get('tokenizer_class')
    except FileNotFoundError:
        kind = None
    except (ValueError, AttributeError) as error:
        raise UsageError(f'{folder}/tokenizer_config.json is damaged ({error}): copy it again.') from error
    if kind not in (None, 'CLIPTokenizer', 'CLIPTokenizerFast'):
        raise UsageError(
            f'{folder} holds a {kind}: t3d reads CLIPTokenizer. Take the tokenizer/ that came with the text encoder.'
        )
    try:
        tokenizer = ClipTokenizer(CLIPTokenizer.from_pretrained(folder, local_files_only=True), str(folder), length)
    except Exception as error:  # of many kinds: JSON, missing keys, merges that do not fit
        raise UsageError(f'the tokenizer in {folder} cannot be read ({quoted(str(error))}): copy it again.') from error
    if rows is not None and tokenizer.vocabulary_size > rows:
        beyond = [word for word, k in sorted(tokenizer.read.get_vocab().items(), key=lambda pair: pair[1]) if k >= rows]
        raise UsageError(
            f'the tokenizer in {folder} has {tokenizer.vocabulary_size} ids, the text encoder {rows} rows: '
            f'{", ".join(map(repr, beyond[:3]))}{", ..." if len(beyond) > 3 else ""} would be read as nothing it learned. '
            'Take the text encoder that was saved with this tokenizer, or the tokenizer without added words.'
        )
    return tokenizer


def make(text: dict):
    """The tokenizer that a config's `text` section describes: keys `words`, `length`, `open_vocabulary`, or `folder`.

    Raises:
      UsageError: a word of the vocabulary that no prompt can hold, because texts are read in another form or cut there.
    """
    if text.get('folder'):
        return load_clip(text['folder'], text['length'], text.get('vocabulary_size') or None)
    for word in text['words']:
        if split_words(word) != [word]:
            raise UsageError(
                f'text.words holds {word!r}, which prompts read as {split_words(word)}: give single words in this form, or '
                'none for the words of the data.'
            )
    return WordTokenizer(tuple(text['words']), int(text['length']), bool(text.get('open_vocabulary', False)))


def refuse_empty(prompts: list[str]) -> None:
    """Raises UsageError for a prompt that has no word or is not a text."""
    for prompt in prompts:
        if any('\ud800' <= character <= '\udfff' for character in prompt):  # bytes of the command line in another encoding
            raise UsageError(f'the prompt {ascii(prompt)} is no text in UTF-8: set the encoding of the terminal to UTF-8.')
        if not split_words(prompt):
            raise UsageError(f'empty prompt {quoted(prompt)!r}: give words, in quotes.')


def check_prompts(text: dict, prompts: list[str]) -> None:
    """Raises UsageError for a prompt that is empty, too long, or has words the model of a `text` section cannot read.

    A model with an open vocabulary reads the words it knows, one at least; those it never met are named on stderr.
    """
    refuse_empty(prompts)
    make(text)(list(prompts))
    if text.get('open_vocabulary', False):
        for prompt in prompts:
            if known_none(text, prompt):
                refuse_unknown(prompt, split_words(prompt), tuple(text['words']))
        new = {word for prompt in prompts for word in split_words(prompt)} - set(text['words'])
        if new:
            _say_once(f'note: words that this model never read are left out: {", ".join(sorted(new))}')


def known_none(text: dict, prompt: str) -> bool:
    """Whether the words of a `text` section with an open vocabulary lack every word of a prompt: it would be read as empty."""
    return bool(text.get('open_vocabulary')) and not text.get('folder') and set(split_words(prompt)).isdisjoint(text['words'])


@functools.cache  # what asks and what draws both check
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


PROBES = ('a red cube', 'Ein Würfel, 3D', '红色')  # no two vocabularies read all alike; one of letters reads the first alone


def readable(tokenize: Callable, texts: list[str]) -> list[str]:
    """Those of the texts that a tokenizer does not refuse."""
    read = []
    for text in texts:
        with contextlib.suppress(UsageError):
            tokenize([text])
            read.append(text)
    return read


def probe(text: dict) -> list[str]:
    """Texts that tell the tokenizer of a `text` section from others: its words, and for a folder what it reads of PROBES."""
    words = [' '.join(text.words[k : k + 5]) for k in range(0, len(text.words), 5)]
    return ['', *(readable(make(text), [*words, *PROBES]) if text.get('folder') else words)]


def refuse_other(text: dict, tokenize: Callable, texts: list[str]) -> None:
    """Raises UsageError for a prior that does not read texts as the `text` section does, with which batches are made.

    Args:
      texts: that the section can read: `probe`, or for a prior that knows whole texts only some of these.
    """
    ours = np.asarray(make(text)(texts))
    try:
        theirs = np.asarray(tokenize(texts))
    except UsageError:
        theirs = np.zeros(0)
    if theirs.shape != ours.shape or (theirs != ours).any():
        raise UsageError(
            'given.prior was trained with other words, or another length of text, than the section `text` has: set text.words '
            'and text.length to those of its config, or text.folder to its tokenizer.'
        )
