"""The report that people send along."""

import importlib.util
import platform

import jax
import pytest

from t3d import __version__
from t3d.commands import doctor
from t3d.inference import loading


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.delenv('T3D_WEIGHTS', raising=False)
    monkeypatch.setenv('T3D_DATA', str(tmp_path / 'data'))
    monkeypatch.setattr(loading, 'SHIPPED', tmp_path / 'shipped')


def test_the_report_names_versions_devices_extras_weights_and_data(tmp_path):
    (tmp_path / 'data' / 'furniture').mkdir(parents=True)
    (tmp_path / 'shipped' / 'mine').mkdir(parents=True)
    (tmp_path / 'shipped' / 'mine' / 'model.safetensors').write_bytes(b'')
    text = doctor.report()
    assert text.startswith(f't3d {__version__}, Python {platform.python_version()}')
    assert f'  jax {jax.__version__}\n' in text and all(f'  {name} ' in text for name in doctor.PACKAGES)
    assert 'MISSING' not in text and 'FAILED' not in text and 'outside' not in text
    assert 'backend: cpu, 8 devices of kind cpu' in text and 'processor cores' in text and 'free disk here' in text
    assert f'compilation cache: {jax.config.jax_compilation_cache_dir}' in text
    for module, (extra, _) in doctor.EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        assert f'  {module}: found' in text if there else f'  {module}: missing; for ' in text and f't3d[{extra}]' in text
    assert '  ffmpeg: found' in text
    assert f'  mine: {tmp_path}/shipped/mine' in text and f'data sets in {tmp_path}/data: furniture' in text


def test_the_extras_are_those_of_the_package():
    import pathlib
    import tomllib

    root = pathlib.Path(doctor.__file__).parents[2]
    extras = tomllib.loads((root / 'pyproject.toml').read_text())['project']['optional-dependencies']
    assert {extra for extra, _ in doctor.EXTRAS.values()} <= set(extras)


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(doctor, '_version', lambda name: None if name == 'xatlas' else '0.9.1')
    monkeypatch.setattr(doctor.importlib.util, 'find_spec', lambda name: None)
    text = doctor.report()
    assert '  xatlas MISSING: pip install t3d' in text
    assert f'  jax 0.9.1  (outside the tested range: at least {doctor.SUPPORTED["jax"][0]}, below ' in text
    assert '  viser: missing; for t3d view: pip install "t3d[view]"' in text and 'ffmpeg: missing, no mp4' in text
    assert 'weights:\n  none' in text and ': none' in text.splitlines()[-1]


@pytest.mark.parametrize(
    'version, inside',
    [('0.10.1', False), ('0.10.2', True), ('0.11.2', True), ('0.12.1', False), ('0.11.0.dev2', True), ('1.0', False)],
)
def test_the_tested_range(monkeypatch, version, inside):
    monkeypatch.setattr(doctor, 'SUPPORTED', {'jax': ('0.10.2', '0.12.1')})
    monkeypatch.setattr(doctor, '_version', lambda name: version)
    assert (doctor._warning('jax') == '') == inside and doctor._warning('trimesh') == ''


def test_a_broken_backend_is_part_of_the_report(monkeypatch, tmp_path):
    def broken():
        raise RuntimeError('Unable to initialize backend')

    monkeypatch.setattr(jax, 'devices', broken)
    monkeypatch.setenv('T3D_WEIGHTS', str(tmp_path))
    text = doctor.report()
    assert 'devices: FAILED, RuntimeError: Unable to initialize backend' in text and 'optional parts:' in text
    assert f'  T3D_WEIGHTS={tmp_path}: no model.safetensors there' in text
