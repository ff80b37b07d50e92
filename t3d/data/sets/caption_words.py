"""Whether the captions of a set reach a model whole: known before training rather than lost in it."""

import sys
from collections.abc import Iterable
from typing import NamedTuple

from t3d.core import tokens
from t3d.core.errors import UsageError

NAMED = 8  # words that a note names
FIRST = 16  # captions that a count keeps
SIDES = frozenset(  # words of left and right, false of a mirrored picture; as tokens.split_words gives them
    'left right leftmost rightmost lefthand righthand leftward rightward leftwards rightwards '
    'links rechts linke linker linkes linken linkem rechte rechter rechtes rechten rechtem '
    'gauche droite izquierda izquierdo derecha derecho sinistra sinistro destra destro esquerda esquerdo direita direito '
    'lewo lewy lewa lewej prawo prawy prawa prawej '
    'слева справа левый левая левое левой левого правый правая правое правой правого влево вправо налево направо '
    '左 右 왼쪽 오른쪽 왼쪽에 오른쪽에 يسار يمين اليسار اليمين שמאל ימין משמאל מימין बाएँ दाएँ बाएं दाएं बायाँ दायाँ'.split()
)


def names_a_side(caption: str) -> bool:
    """Whether a caption speaks of left or right, in the languages of `SIDES`."""
    return not SIDES.isdisjoint(tokens.split_words(caption))


def check(captions: Iterable[str], text, where: str) -> None:
    """Raises UsageError for captions that the tokenizer of a config's `text` section cannot read whole.

    Words that an open vocabulary lacks are counted and named on stderr: they are left out.

    Args:
      where: the set, in messages.
    """
    tokenize, unknown, concerned = tokens.make(text), {}, 0
    different = list(dict.fromkeys(captions))
    for caption in different:
        words = tokens.split_words(caption)
        if not words:
            raise UsageError(f'{where}: the caption {tokens.quoted(caption)!r} has no word: remove it, or write what is seen.')
        try:
            tokenize([caption])
        except UsageError as error:
            raise UsageError(f'{where}: a caption cannot be read: {error}') from error
        if not text.get('folder'):
            new = set(words).difference(text.words)
            concerned += bool(new)
            unknown.update((word, unknown.get(word, 0) + 1) for word in new)
    if unknown:
        _note(where, f'{concerned} of {len(different)} captions have words', _by_frequency(unknown))


def _by_frequency(words: dict[str, int]) -> dict[str, int]:
    """The same, the most frequent first, ties by alphabet."""
    return {word: words[word] for word in sorted(words, key=lambda word: (-words[word], word))}


def _note(where: str, what: str, unknown: Iterable[str]) -> None:
    """Names on stderr the words, most frequent first, that an open vocabulary lacks."""
    often = list(unknown)
    listed = ', '.join(often[:NAMED]) + (f', ... ({len(often)} words)' if len(often) > NAMED else '')
    print(
        f'note: {where}: {what} that text.words lacks, left out: {listed}. An empty text.words takes every word of the data.',
        file=sys.stderr,
    )


class Spoken(NamedTuple):
    """What a set says, counted once when it was made, so that none of its captions has to be read again."""

    captions: int
    words: dict[str, int]  # how often each is said; the most frequent first, ties by alphabet, as captions.vocabulary
    longest: tuple[str, ...]  # the caption of most words, and that of most characters
    first: tuple[str, ...]  # the first `FIRST` different ones


def counted(captions: Iterable[str]) -> Spoken:
    """The count of some captions."""
    listed = list(captions)
    words = {}
    for caption in listed:
        for word in tokens.split_words(caption):
            words[word] = words.get(word, 0) + 1
    return _spoken(len(listed), words, listed, listed)


def together(counts: Iterable[Spoken]) -> Spoken:
    """The count of several sets after each other: that of all their captions."""
    counts, words = list(counts), {}
    for count in counts:
        for word, often in count.words.items():
            words[word] = words.get(word, 0) + often
    longest, first = ([caption for count in counts for caption in getattr(count, name)] for name in ('longest', 'first'))
    return _spoken(sum(count.captions for count in counts), words, longest, first)


def _spoken(count: int, words: dict[str, int], longest: list[str], first: list[str]) -> Spoken:
    by_words = max(longest, key=lambda caption: (len(tokens.split_words(caption)), len(caption), caption), default='')
    by_length = max(longest, key=lambda caption: (len(caption), caption), default='')
    return Spoken(count, _by_frequency(words), tuple(dict.fromkeys((by_words, by_length))), tuple(dict.fromkeys(first))[:FIRST])


def check_set(source, text) -> None:
    """`check` of the captions that people wrote of a set: those it counted (`spoken`), else those it has (`text`)."""
    where = str(getattr(source, 'folder', ''))
    if hasattr(source, 'spoken'):
        check_spoken(source.spoken, text, where)
    elif hasattr(source, 'text'):
        check((caption for k in range(len(source)) for caption in source.text(k)['captions']), text, where)


def check_spoken(spoken: Spoken, text, where: str) -> None:
    """`check` of captions that were counted: the longest ones are read whole, of the others the words."""
    tokenize = tokens.make(text)
    known = frozenset(text.get('words', ()))
    closed = not text.get('folder') and not text.open_vocabulary
    unknown = {} if text.get('folder') else {word: spoken.words[word] for word in spoken.words if word not in known}
    try:
        for caption in (*spoken.longest, *([next(iter(unknown))] if closed and unknown else ())):
            tokenize([caption])
    except UsageError as error:
        raise UsageError(f'{where}: a caption cannot be read: {error}') from error
    if unknown:
        _note(where, f'its {spoken.captions} captions say {sum(unknown.values())} times words', unknown)
