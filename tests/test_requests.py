"""Image files that people hand to a system: what is read, and what is refused in one sentence."""

import numpy as np
import pytest
from PIL import Image

from t3d.core.errors import UsageError
from t3d.inference import requests


def test_an_image_is_read_as_it_is_meant_to_be_seen(tmp_path):
    Image.new('RGBA', (4, 2), (200, 30, 30, 128)).save(tmp_path / 'red.png')
    (one,) = requests.make([], str(tmp_path / 'red.png'))
    assert one.prompt == 'red' and one.image.shape == (2, 4, 4) and one.image.dtype == np.float32
    np.testing.assert_allclose(one.image[0, 0], np.array([200, 30, 30, 128]) / 255.0, atol=1e-6)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new('RGB', (4, 2)).save(tmp_path / 'turned.jpg', exif=turned)
    assert requests.read_image(str(tmp_path / 'turned.jpg')).shape == (4, 2, 4)
    (tmp_path / 'bad_exif.jpg').write_bytes((tmp_path / 'turned.jpg').read_bytes().replace(b'Exif\0\0MM', b'Exif\0\0XX'))
    assert requests.read_image(str(tmp_path / 'bad_exif.jpg')).shape == (2, 4, 4)  # EXIF that is no EXIF


def test_what_is_no_picture_is_refused(tmp_path):
    Image.new('RGB', (64, 64), (10, 20, 30)).save(tmp_path / 'whole.png')
    whole = (tmp_path / 'whole.png').read_bytes()
    (tmp_path / 'cut.png').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'text.png').write_text('a red cube')
    (tmp_path / 'empty.png').write_bytes(b'')
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / 'deep.png')
    (tmp_path / 'none').mkdir()
    for name, message in (
        ('', f'is a folder: give one picture file. Nearest: --image {tmp_path / "cut.png"}'),
        ('none', 'is a folder: give one picture file.$'),
        ('nowhere.png', 'no such file'),
        ('cut.png', 'not a picture that can be read'),
        ('text.png', 'not a picture that can be read'),
        ('empty.png', 'not a picture that can be read'),
        ('deep.png', 'has pixels of kind I;16: wanted 8 bits a channel'),  # 16 bits would be clipped to white
    ):
        with pytest.raises(UsageError, match=message):
            requests.read_image(str(tmp_path / name))
    for place in range(8, len(whole), 3):  # a flipped bit is read or refused, never a fault of the program
        (tmp_path / 'flipped.png').write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert requests.read_image(str(tmp_path / 'flipped.png')).shape[-1] == 4
        except UsageError:
            pass
