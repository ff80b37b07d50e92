"""Captions reach a model whole, in every script, or are refused or named before training."""

import json
import pathlib
import tempfile

import numpy as np
import PIL.Image
import pytest
from small_images import grey, label
from small_single_view import TEXT, make_config

from t3d.core import config as configs
from t3d.core import tokens
from t3d.core.errors import UsageError
from t3d.data import sources
from t3d.data.adapters import single_view, triplanes
from t3d.data.sets import camera_labels, caption_words, toy

CAPTIONS = {
    'Chinese': ['红色立方体', '蓝色球体'],
    'Japanese': ['赤いキューブ', '青いボール'],
    'Russian': ['красный куб', 'синий шар'],
    'German': ['ein grüner Würfel', 'ein weißer Würfel'],
    'Arabic': ['مكعب أحمر', 'كرة زرقاء'],
    'Hebrew': ['קובייה אדומה', 'כדור כחול'],
    'Hindi': ['लाल घन', 'नीली गेंद'],
    'Thai': ['ลูกบาศก์', 'ลูกบอล'],
    'Korean': ['빨간 정육면체', '파란 공'],
    'emoji': ['🟥🧊', '🟦⚽'],
}


def made(folder, captions: list[list[str]], **text):
    folder, names = tempfile.mkdtemp(dir=folder), [f'{k}.png' for k in range(len(captions))]
    folder = pathlib.Path(folder)
    for name in names:
        PIL.Image.fromarray(grey()).save(folder / name)
    index = {
        'labels': [[name, label(0.4 * k)] for k, name in enumerate(names)],
        'captions': dict(zip(names, captions, strict=True)),
    }
    (folder / 'dataset.json').write_text(json.dumps(index), encoding='utf-8')
    return sources.resolve(make_config({**TEXT, 'length': 14, **text}, name='eg3d', path=str(folder), size=4))


@pytest.mark.parametrize('language', CAPTIONS)
def test_captions_of_every_script_differ_to_the_model(tmp_path, language):
    config = made(tmp_path, [[caption] for caption in CAPTIONS[language]])
    source, transform = sources.make(config)
    rows = [transform(source[k], np.random.default_rng(0))['tokens'].tolist() for k in (0, 1)]
    assert rows[0] != rows[1]
    for row, caption in zip(rows, CAPTIONS[language]):
        assert sum(k >= tokens.FIRST for k in row) == len(tokens.split_words(caption)) > 1


def test_captions_that_would_lose_words_are_refused(tmp_path):
    for captions, text, message in (
        (['a cube', '...'], {}, "the caption '...' has no word: remove it"),
        (['a cube', ''], {}, "the caption '' has no word"),
        (
            ['a cube', 'a red cube on a table'],
            {'length': 6},
            'a caption cannot be read: the prompt has 6 words .* "a table" would',
        ),
        (['a cube', 'ein Würfel'], {'words': ('a', 'cube', 'w', 'rfel')}, 'a caption cannot be read: words .* "ein"; "würfel"'),
    ):
        with pytest.raises(UsageError, match=message):
            sources.make(made(tmp_path, [[caption] for caption in captions], **text))


def test_words_that_an_open_vocabulary_lacks_are_named(tmp_path, capsys):
    words = ('a', 'red', 'cube')
    sources.make(
        made(tmp_path, [['a red cube'], ['ein Würfel'], ['a red cube', 'ein Ball']], words=words, open_vocabulary=True)
    )
    assert '2 of 3 captions have words that text.words lacks, left out: ein, ball, würfel. An' in capsys.readouterr().err
    sources.make(made(tmp_path, [['a red cube'], ['a cube']], words=words, open_vocabulary=True))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    'caption',
    [
        'a lamp to the Left',
        'LINKS ein Stuhl',
        'à gauche',
        'a la izquierda',
        'слева шар',
        '左边的球',
        '右のボール',
        '오른쪽 공',
        'כדור משמאל',
    ],
)
def test_captions_of_left_and_right_are_told_in_other_languages(caption):
    assert caption_words.names_a_side(caption)
    for other in ('copyright', 'linkage', 'gauches', 'ein Lichtschalter', '红球', 'leftover'):
        assert not caption_words.names_a_side(other)


LINES = [
    '{"seed": -1, "caption": "x"}',
    '{"seed": 4294967296, "caption": "x"}',
    '{"seed": "3", "caption": "x"}',
    '{"seed": 1.5, "caption": "x"}',
    '{"seed": true, "caption": "x"}',
    '{"seed": 1}',
    '{"seed": 1, "caption": null}',
    '{"seed": 1, "caption": ["x"]}',
    '{"seed": 1, "caption": "x", "slots": []}',
    '{"seed": 1, "caption": "x", "slots": {"distance": "far"}}',
    '[1, "x"]',
    '{"seed": 1, "caption": "x"',
    r'{"seed": 1, "caption": "\ud800"}',
    '',
]


@pytest.mark.parametrize('line', LINES)
def test_a_line_that_is_no_pair_is_refused_by_number(tmp_path, monkeypatch, line):
    good = '{"seed": 1, "caption": "ein Würfel\u2028 红"}'
    monkeypatch.setattr(triplanes, 'check', lambda folder: {'pairs': 2})
    (tmp_path / 'manifest.jsonl').write_bytes(f'\ufeff{good}\r\n{line}\r\n'.encode())
    with pytest.raises(UsageError, match='manifest.jsonl, line 2 is no (pair|JSON)|manifest.jsonl, line 2 holds'):
        triplanes.Pairs(tmp_path)
    (tmp_path / 'manifest.jsonl').write_bytes(f'{good}\n{good}\n'.encode())
    assert triplanes.Pairs(tmp_path)[0]['caption'] == 'ein Würfel\u2028 红'


@pytest.mark.parametrize(
    'text', ['[]', 'null', '{}', '{"pairs": "3"}', '{"format_version": "1"}', '{"pairs": NaN}', '{', '[' * 9999]
)
def test_a_manifest_that_is_none_is_refused(tmp_path, text):
    (tmp_path / 'manifest.json').write_text(text)
    with pytest.raises(UsageError, match='manifest.json is (damaged|no manifest of pairs).*make_triplanes'):
        triplanes.read_manifest(tmp_path)


# ------------------------------------------------------------------------------------------------- cameras of other readers


def test_cameras_of_a_distribution_and_of_multi_view_records_are_checked():
    with pytest.raises(UsageError, match='data.yaw, data.pitch, data.radius and data.fov: the cameras are 2700 from .*, 0.001'):
        sources.make(make_config(mode='pose-distribution', radius=2700.0))
    pose, lens = toy.camera_arrays(np.arange(16) * 0.4, np.full(16, 0.3), 3.5, 0.7)
    record = {'world_from_cam': pose, 'intrinsics': lens, 'name': 'chair'}
    camera_labels.check_views(record, 'furniture')
    with pytest.raises(UsageError, match='furniture: the cameras do not look at the object .*from_opengl'):
        camera_labels.check_views({**record, 'world_from_cam': pose @ np.diag([1.0, -1.0, -1.0, 1.0])}, 'furniture')
    pose[3, :3, :3] *= 2.0
    with pytest.raises(UsageError, match='furniture, label of view 3 of chair: the rotation is not orthonormal'):
        camera_labels.check_views(record, 'furniture')


def test_the_origin_lies_between_near_and_far():
    config = make_config()
    for near, far, message in (
        (2.25, 3.3, ''),
        (3.25, 4.0, 'followed from render.near=3.25 to render.far=4.0 only'),
        (0.1, 2.0, 'to render.far=2.0'),
    ):
        render = {'background': 0.5, 'limits': 'fixed', 'near': near, 'far': far}
        changed = configs.from_dict({**config.to_dict(), 'render': render})
        if message:
            with pytest.raises(UsageError, match=message):
                single_view.open_set(changed)
        else:
            single_view.open_set(changed)
