"""Words of every script: what people write, what is one word, and that nothing is lost."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.core.unicode_words import split_words

SENTENCES = {  # words by hand, in the order of the text
    'Ein grüner Würfel, weiß': 'ein grüner würfel weiss',
    'Un café très chaud, s’il vous plaît': "un café très chaud s'il vous plaît",
    'El niño pequeño': 'el niño pequeño',
    'Złota łódź i żółta kula': 'złota łódź i żółta kula',
    'Červená krychle': 'červená krychle',
    'Kırmızı bir küp': 'kırmızı bir küp',
    'Một khối lập phương màu đỏ': 'một khối lập phương màu đỏ',
    'красный Куб; синий ШАР': 'красный куб синий шар',
    "п'ять червоних куль": "п'ять червоних куль",
    'Κόκκινος κύβος ΣΦΑΊΡΑΣ': 'κόκκινοσ κύβοσ σφαίρασ',
    'Կարմիր խորանարդ': 'կարմիր խորանարդ',
    'წითელი კუბი': 'წითელი კუბი',
    'مكعب أحمر، كبير': 'مكعب أحمر كبير',
    'یک مکعب قرمز': 'یک مکعب قرمز',
    'קובייה אדומה': 'קובייה אדומה',
    'एक लाल घन।': 'एक लाल घन',
    'একটি লাল ঘনক': 'একটি লাল ঘনক',
    'ஒரு சிவப்பு கனசதுரம்': 'ஒரு சிவப்பு கனசதுரம்',
    'ഒരു ചുവന്ന ക്യൂബ്': 'ഒരു ചുവന്ന ക്യൂബ്',
    '빨간 정육면체': '빨간 정육면체',
    'ቀይ ኩብ': 'ቀይ ኩብ',
    '红色立方体，蓝色': '红 色 立 方 体 蓝 色',
    '赤いキューブ': '赤 い キューブ',
    'ลูกบาศก์': 'ลู ก บ า ศ ก์',
    '3D-модель стула №5': '3d модель стула no 5',
    'a 🟥 cube and 🚀🚀': 'a 🟥 cube and 🚀 🚀',
    '👩🏽\u200d🚀 of 🇩🇪🇫🇷 ❤\ufe0f 1\ufe0f\u20e3': '👩🏽 🚀 of 🇩🇪 🇫🇷 ❤ 1',
}
SAME = [  # ways to write one text
    ('Würfel', 'Wu\u0308rfel', 'WÜRFEL', 'Wür\u00adfel', 'w\u200dürfel', 'ｗürfel', '\ufeffWürfel', 'Würfel!'),
    ('Straße', 'STRASSE', 'strasse', 'STRAẞE'),
    ("the dog's", 'the dog’s', 'THE DOG\u02bcS', 'ｔｈｅ　ｄｏｇ＇ｓ'),
    ('fireplace 3', 'ﬁreplace ３', '𝐟𝐢𝐫𝐞𝐩𝐥𝐚𝐜𝐞 ③', 'fireplace ٣', 'fireplace ३'),
    ('ガラス', 'カ\u3099ラス', 'ｶﾞﾗｽ'),
    ('مكعب', 'مكعـــب', 'ﻣﻜﻌﺐ'),
    ('한국', '\u1112\u1161\u11ab\u1100\u116e\u11a8'),
    ('一', '⼀'),
    ('ΣΊΣΥΦΟΣ', 'Σίσυφος', 'σίσυφοσ'),
    ('red cube', 'red\u200bcube', 'red\u3000cube', 'red\u00a0cube', 'red\u2028cube', 'red…cube', '\u202ered\u202c “cube”'),
]


@pytest.mark.parametrize('text', SENTENCES)
def test_sentences_are_cut_as_people_would(text):
    assert split_words(text) == SENTENCES[text].split(' ')


@pytest.mark.parametrize('ways', SAME, ids=lambda ways: ways[0])
def test_ways_to_write_the_same_are_the_same_words(ways):
    assert {way: split_words(way) for way in ways} == dict.fromkeys(ways, split_words(ways[0]))
    assert all(split_words(ways[0]))


def test_different_words_stay_different():
    for one, other in (
        ('Würfel', 'Wurfel'),
        ('куб', 'кут'),
        ('é', 'e'),
        ('घन', 'घना'),
        ('红', '紅'),
        ('🟥', '🟦'),
        ('🇩🇪', '🇫🇷'),
    ):
        assert split_words(one) != split_words(other)
    assert split_words('W\ufffdrfel') == ['w\ufffdrfel']  # damaged, and not two words


@given(st.text(st.characters(max_codepoint=127), max_size=40))
def test_ascii_is_read_as_it_always_was(text):
    assert split_words(text) == re.findall("[a-z0-9']+", text.lower())


@settings(max_examples=500)
@given(st.text(max_size=15))
def test_words_are_stable(text):
    """Cutting what was cut changes nothing, however the text was normalised; so a vocabulary finds its own words."""
    words = split_words(text)
    assert split_words(' '.join(words)) == words and all(split_words(word) == [word] for word in words)
    assert all(unicodedata.is_normalized('NFC', word) for word in words)
    for form in ('NFC', 'NFD'):
        assert split_words(unicodedata.normalize(form, text)) == words
    assert split_words(text.casefold()) == words


def test_no_letter_and_no_digit_of_unicode_is_lost():
    lost = [
        code
        for code in range(0x110000)
        if unicodedata.category(chr(code)) in ('Lu', 'Ll', 'Lt', 'Lo', 'Nd', 'Nl', 'No') and not split_words(chr(code))
    ]
    # Hangul fillers, which are blank; Arabic presentation forms of marks without a letter, which stand on a tatweel
    assert set(lost) <= {0x115F, 0x1160, 0x3164, 0xFFA0, 0xFCF2, 0xFCF3, 0xFCF4, *range(0xFE71, 0xFE80)}
