"""What the tests of commands share: an empty folder around each, and what a command says or refuses.

`alone` surrounds the tests of every file that imports it.
"""

import pytest

from t3d import cli
from t3d.inference import loading

TINY = 'configs/instant3d.py:tiny'


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """In an empty folder, without the weights and data of this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('T3D_WEIGHTS', raising=False)
    monkeypatch.setenv('T3D_DATA', str(tmp_path / 'data'))
    monkeypatch.setattr(loading, 'SHIPPED', tmp_path / 'shipped')


def said(capsys, *words: str) -> str:
    """What a command that succeeds prints."""
    assert cli.main(list(words)) == 0
    return capsys.readouterr().out


def refusal(capsys, *words: str) -> str:
    """The error line of a command that fails, in its parser or later: alone, and with status 2."""
    try:
        status = cli.main(list(words))
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and len(error.splitlines()) == 1 and 'Traceback' not in error
    return error
