"""A slice of the fuzz pass (tests/fuzz.py) over all that users write, and what the whole pass found, as tables."""

import json

import fuzz
import fuzz_targets
import numpy as np
import pytest

from t3d import cli
from t3d.checkpoint import convert_clip, torch_files, weights
from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data.sets import images, sweethome
from t3d.diffusion import schedules
from t3d.nets import unet, vae


@pytest.mark.parametrize('target', fuzz_targets.TARGETS)
def test_no_input_of_a_slice_ends_in_a_traceback(target):
    faults = []
    counts = fuzz.run(7, {target: range(60)}, faults.append)[target]
    assert not faults, faults[0]
    assert counts.total() == 60 and (counts['refused'] or target == 'catalogue') and counts['read']


def test_a_fault_is_seen(monkeypatch):
    """The pass itself: an error of the program, a hang and an exit with another status are faults."""

    def loop(source, folder):
        while True:
            pass

    def leave(source, folder):
        raise SystemExit(1)

    monkeypatch.setattr(fuzz, 'SECONDS', 0.05)
    monkeypatch.setattr(fuzz_targets, 'TARGETS', {'wrong': lambda source, folder: 1 / 0, 'loop': loop, 'exit': leave})
    faults = []
    counts = fuzz.run(0, {'wrong': range(2), 'loop': range(1), 'exit': range(1)}, faults.append)
    assert {target: count['fault'] for target, count in counts.items()} == {'wrong': 2, 'loop': 1, 'exit': 1}
    assert len(faults) == 3 and 'ZeroDivisionError' in faults[0] and 'Hang' in faults[1]


def test_a_home_that_nobody_has_is_a_folder_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match='no image set ~nobody-of-this-name/x'):
        images.ImageSet('~nobody-of-this-name/x')
    with pytest.raises(FileNotFoundError, match='no furniture source at ~nobody-of-this-name/x'):
        sweethome.open_libraries('~nobody-of-this-name/x', tmp_path)


@pytest.mark.parametrize('name', ['\udcff', '\udcff.zip', 'a\udce4b/c'])
def test_a_name_that_is_not_utf_8_is_refused(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    assert cli.main(['data', 'single-view', 'toy', '--out', name]) == 2
    assert 'is not UTF-8: choose another name.' in capsys.readouterr().err and not list(tmp_path.iterdir())


CHANGES = [
    {'norm_num_groups': '4'},
    {'norm_num_groups': 0},
    {'attention_head_dim': [2, 0]},
    {'block_out_channels': 8},
    {'block_out_channels': [8, True]},
    {'block_out_channels': []},
    {'cross_attention_dim': None},
    {'in_channels': 10**400},
    {'norm_eps': float('nan')},
    {'use_linear_projection': 1},
    {'down_block_types': [1, 2]},
]


@pytest.mark.parametrize('change', CHANGES)
def test_values_of_a_wrong_kind_in_a_network_config_are_named(change):
    with pytest.raises(UsageError, match=f'UNet config has {next(iter(change))}=.*: wanted'):
        unet.UNet.from_config(fuzz_targets.UNET | change)


def test_values_of_a_wrong_kind_in_other_configs_are_named(tmp_path):
    with pytest.raises(UsageError, match="VAE config has latent_channels='x': wanted a whole number"):
        vae.VAE.from_config(fuzz_targets.VAE | {'latent_channels': 'x'})
    for key, value in (('hidden_size', '8'), ('num_attention_heads', 0), ('vocab_size', [1]), ('hidden_act', ['gelu'])):
        with pytest.raises(UsageError, match=key):
            convert_clip.text_module(fuzz_targets.CLIP['text'] | {key: value})
    (tmp_path / 'config.json').write_text(json.dumps({'text_config': 3}))
    with pytest.raises(UsageError, match='text_config'):
        convert_clip.load_clip_text(tmp_path)


@pytest.mark.parametrize('value', [10**400, -(10**400), float('inf'), float('nan'), '1', None, True])
def test_numbers_that_no_float_holds_are_refused(value):
    with pytest.raises(UsageError, match='beta_start'):
        schedules.from_config(fuzz_targets.SCHEDULER | {'beta_start': value})
    with pytest.raises(UsageError, match=r'optimizer\.learning_rate'):
        configs.load('instant3d:tiny', [f'optimizer.learning_rate={value!r}'])


@pytest.mark.parametrize(
    'content', [b'', b'{', b'[1]', b'\xff\xfe', b'"x"', b'[' * 100_000, b'{"a": ' * 100_000, b'3', b'{"a" 1}', b'null']
)
def test_a_config_json_that_is_none_is_named(tmp_path, content):
    weights.save(tmp_path, {'a': np.zeros(2, np.float32)}, {'system': 'x'})
    (tmp_path / 'config.json').write_bytes(content)
    with pytest.raises(UsageError, match=r'config\.json is damaged \(.*\): copy it again'):
        weights.load(tmp_path)
    with pytest.raises(UsageError, match=r'config\.json (is damaged|holds a)'):
        torch_files.read_config(tmp_path)


@pytest.mark.parametrize('entry', [{'dtype': ['F32']}, {'dtype': {}}, {'dtype': None}, {'shape': 'x'}, {'data_offsets': 3}])
def test_entries_of_a_header_of_a_wrong_kind_are_named(tmp_path, entry):
    header = json.dumps({'a': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]} | entry}).encode()
    (tmp_path / 'x.safetensors').write_bytes(len(header).to_bytes(8, 'little') + header + bytes(4))
    with pytest.raises(UsageError, match=r'x\.safetensors.*a'):
        torch_files.map_file(tmp_path / 'x.safetensors')
