"""Contact sheets."""

import numpy as np
import pytest

from t3d.export import sheets


def test_small_images_are_enlarged_without_blur():
    rows = np.zeros((2, 8, 8, 3), np.float32)
    rows[1, :, :4] = (1.0, 0.0, 0.0)
    sheet = sheets.sheet(rows, ['one', 'two'])
    assert sheet.dtype == np.uint8 and sheet.shape == (2 * (96 + 14 + 8) + 4, 96 + 8, 3)
    image = sheet[-100 - 4 : -8, 4:100]
    assert np.all(image[:, :48] == (255, 0, 0)) and np.all(image[:, 48:] == 0)


def test_views_lie_side_by_side_and_labels_wrap():
    rows = np.random.default_rng(0).integers(0, 255, (1, 3, 128, 128, 3), np.uint8)
    sheet = sheets.sheet(rows, ['a red cone on top of a very blue cube ' * 4])
    lines = (sheet.shape[0] - 128 - 12) // 14
    assert lines == 3 and sheet.shape[1] == 3 * 128 + 8
    np.testing.assert_array_equal(sheet[-136:-8, 4:132], rows[0, 0])
    assert (sheet[4:18, 4:] < 128).any()  # ink


def test_no_labels_and_bad_values():
    sheet = sheets.sheet(np.full((1, 100, 100, 3), np.nan))
    assert sheet.shape == (112, 108, 3) and (sheet[4:104, 4:104] == 0).all()
    assert sheets.to_uint8(np.array([-1.0, 0.5, 2.0])).tolist() == [0, 128, 255]
    with pytest.raises(ValueError, match='1 images and 2 labels'):
        sheets.sheet(np.zeros((1, 8, 8, 3)), ['a', 'b'])


def test_write(tmp_path):
    from PIL import Image

    image = sheets.sheet(np.zeros((1, 8, 8, 3)), ['x'])
    sheets.write(tmp_path / 'previews' / '00000002.png', image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'previews' / '00000002.png')), image)
