"""Whether the captions of a set reach a model whole: known before training rather than lost in it."""

import sys
from collections.abc import Iterable

from t3d.core import tokens
from t3d.core.errors import UsageError

NAMED = 8  # words that a note names
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

    Words that an open vocabulary lacks are counted and named on stderr: all of them are one to the model.

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
        often = sorted(unknown, key=lambda word: (-unknown[word], word))
        listed = ', '.join(often[:NAMED]) + (f', ... ({len(often)} words)' if len(often) > NAMED else '')
        print(
            f'note: {where}: {concerned} of {len(different)} captions have words that text.words lacks, all alike to it: '
            f'{listed}. An empty text.words takes every word of the data.',
            file=sys.stderr,
        )
