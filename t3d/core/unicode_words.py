"""Words of a text in any script: what vocabularies list and what prompts are cut into.

A word is a run of letters, marks, digits and apostrophes (`rubik's`, `würfel`, `куб`, `घन`); all else separates. No letter,
digit or emoji is dropped. Two ways to write the same word are one word:

- Unicode NFC after case folding, so that a precomposed and a combined `ü` agree, and `STRASSE`, `straße`, `Straße`.
- Full-width, half-width, ligature, circled, squared, mathematical and Arabic presentation forms are the plain letters.
- Decimal digits of any script are 0 to 9. Curly and other apostrophes are `'`.
- Soft hyphens, joiners, direction marks, variation selectors and the Arabic tatweel are invisible and left out; a zero-width
  space separates, as its name says.

Scripts without spaces follow the default of Unicode's annex 29, which needs no dictionary: every ideograph and every hiragana
is a word, a run of katakana is one, and in Thai, Lao, Khmer, Burmese and their kin every letter with its marks is one. An emoji
is a word with its skin tone, a flag is one; joined emoji are one word each.

Text in ASCII gives what `[a-z0-9']+` finds in its lower case, so vocabularies from before read their prompts as they did.
"""

import bisect
import functools
import re
import unicodedata

_ASCII_WORD = re.compile(r"[a-z0-9']+")
_APOSTROPHES = '\u2018\u2019\u02bc\u05f3\uff07'
# Removed; general category Cf is too. Tatweel, grapheme joiner, keycap frame, and the variation selectors.
_INVISIBLE = {0x0640, 0x034F, 0x20E3, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), *range(0x180B, 0x180E), 0x180F}
_BLANK = {0x200B, 0x115F, 0x1160, 0x3164, 0xFFA0}  # the zero-width space and the fillers of Hangul look like spaces
_FORMS = ('<wide>', '<narrow>', '<compat>', '<font>', '<circle>', '<square>')  # of the plain letters
_FORMS += ('<initial>', '<medial>', '<final>', '<isolated>')

BREAK, LETTER, MARK, ALONE, KATAKANA, FLAG = range(6)
_RANGES = {  # first and last code points, by what they are where this is no matter of their general category
    KATAKANA: ((0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF), (0x1B000, 0x1B000), (0x1B164, 0x1B167)),
    FLAG: ((0x1F1E6, 0x1F1FF),),
    MARK: ((0x1F3FB, 0x1F3FF),),  # skin tones
    ALONE: (
        *((0x3005, 0x3007), (0x3021, 0x3029), (0x3038, 0x303B), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF)),  # Han
        *((0x17000, 0x18D7F), (0x1B170, 0x1B2FF), (0x20000, 0x3FFFD)),  # Tangut, Nushu; Han again
        *((0x3041, 0x3096), (0x309D, 0x309F), (0x1B001, 0x1B11F), (0x1B132, 0x1B132), (0x1B150, 0x1B152)),  # hiragana
        *((0x0E01, 0x0E2F), (0x0E30, 0x0E30), (0x0E32, 0x0E33), (0x0E40, 0x0E46)),  # Thai
        *((0x0E81, 0x0EB0), (0x0EB2, 0x0EB3), (0x0EBD, 0x0EC6), (0x0EDC, 0x0EDF)),  # Lao
        *((0x1000, 0x102A), (0x103F, 0x103F), (0x1050, 0x1055), (0x1780, 0x17B3)),  # Burmese, Khmer
        *((0x1950, 0x1974), (0x1980, 0x19AB), (0x1A20, 0x1A54), (0xAA80, 0xAAAF)),  # Tai scripts
        *((0x231A, 0x231B), (0x23E9, 0x23FA), (0x25FD, 0x25FE), (0x2600, 0x27BF), (0x2B05, 0x2B07), (0x2B1B, 0x2B1C)),  # emoji
        *((0x2B50, 0x2B50), (0x2B55, 0x2B55), (0x3030, 0x3030), (0x303D, 0x303D)),
        *((0x1F000, 0x1F1E5), (0x1F200, 0x1F3FA), (0x1F400, 0x1FBEF)),
    ),
}
_STARTS, _ENDS, _KINDS = zip(*sorted((first, last, kind) for kind, pairs in _RANGES.items() for first, last in pairs))


def split_words(text: str) -> list[str]:
    """The words of a text, in its order."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    words, kind = [], BREAK
    for character in _folded(text):
        now = _kind(character)
        if now == MARK:
            now = kind  # of what it stands on; one that stands on nothing is no word
            joins = kind != BREAK
        else:
            joins = now == kind and (now in (LETTER, KATAKANA) or now == FLAG and len(words[-1]) == 1)
        if joins:
            words[-1] += character
        elif now != BREAK:
            words.append(character)
        kind = now
    return words


def _folded(text: str) -> str:
    """The text in NFC without case, other forms of letters and what cannot be seen."""
    plain = ''.join(map(_plain, unicodedata.normalize('NFD', text)))
    folded = unicodedata.normalize('NFD', plain).casefold()
    return unicodedata.normalize('NFC', ''.join(map(_plain, folded)))  # folding brings some forms back: that of ŉ has U+02BC


@functools.lru_cache(1 << 16)
def _plain(character: str) -> str:
    """What a character is read as."""
    code, category = ord(character), unicodedata.category(character)
    if character in _APOSTROPHES:
        return "'"
    if code in _BLANK:
        return ' '
    if code in _INVISIBLE or category == 'Cf':
        return ''
    if category == 'Nd':
        return str(unicodedata.decimal(character))
    if unicodedata.decomposition(character).split(' ')[0] in _FORMS:
        plain = unicodedata.normalize('NFKC', character)
        if plain[0] != ' ' and any(
            unicodedata.category(part)[0] in 'LMN' for part in plain
        ):  # a spacing accent begins with one
            return f' {plain} ' if category == 'So' else plain  # the sign for 'number' or 'kilogram' is a word
    return character


@functools.lru_cache(1 << 16)
def _kind(character: str) -> int:
    code, category = ord(character), unicodedata.category(character)
    place = bisect.bisect_right(_STARTS, code) - 1
    if place >= 0 and code <= _ENDS[place] and (category[0] != 'M' or _KINDS[place] == MARK):
        return _KINDS[place]
    if category[0] == 'M':
        return MARK
    # Private and unassigned characters may be letters of a newer Unicode, and a replacement character was one.
    return LETTER if category[0] in 'LN' or category in ('Co', 'Cn') or character in "'\ufffd" else BREAK
