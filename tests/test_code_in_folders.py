"""What a config says of a folder of weights runs nothing that lies in it, and a folder may be called what it likes."""

import py_compile
import shutil

import pytest
import small_run

from t3d.core import tables
from t3d.core.errors import UsageError
from t3d.inference import loading

RAN = "open('ran', 'w').write('x')\n"


@pytest.mark.parametrize(
    ('file', 'name'),
    [
        ('evil.py', 'weights.evil'),
        ('evil.pyc', 'weights.evil'),
        ('evil/__init__.py', 'weights.evil'),
        ('evil/__init__.pyc', 'weights.evil.more'),
        ('__init__.py', 'weights'),
        ('__init__.py', 'weights.elsewhere'),  # imported before what is not there is looked for
        ('evil.so', 'weights.evil'),
    ],
)
def test_every_form_of_a_module_is_refused(tmp_path, monkeypatch, file, name):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / 'weights' / file
    place.parent.mkdir(parents=True)
    if place.suffix == '.pyc':
        (tmp_path / 'source.py').write_text(RAN)
        py_compile.compile(str(tmp_path / 'source.py'), str(place))
    else:
        place.write_text(RAN)
    with pytest.raises(UsageError, match=f'names a module of its own, {name}, in its config: code beside weights is never run'):
        tables.refuse_inside(['instant3d', name], tmp_path / 'weights')
    tables.refuse_inside([name], tmp_path / 'other')
    (tmp_path / 'here').mkdir()
    (tmp_path / 'here' / 'linked').symlink_to(tmp_path / 'weights')
    monkeypatch.chdir(tmp_path / 'here')  # beside the folder, not above it
    with pytest.raises(UsageError, match='names a module of its own, linked'):
        tables.refuse_inside([f'linked.{name}'.replace('.weights', '')], tmp_path / 'weights')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('word', ['tiny', 'photometric', 'toy', 'instant3d'])  # variant, supervision, data.name, system
def test_a_run_folder_is_called_as_a_word_of_its_config(tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_run.folder(), tmp_path / word)
    assert word in str(small_run.config())
    assert loading.load(word).config.system == 'instant3d'
    monkeypatch.chdir(tmp_path / word)
    assert loading.load('.').step == 2
