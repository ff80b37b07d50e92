"""`t3d weights check DIR`: what is there, and status 2 when it would not load."""

import hashlib
import json
import pickle
import shutil

import numpy as np
import pytest
import small_pipeline

from t3d import cli
from t3d.checkpoint import convert, torch_files, weights
from t3d.inference import weights_check

pytest.importorskip('torch')
pytest.importorskip('diffusers')
FILE = 'diffusion_pytorch_model.safetensors'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    return small_pipeline.saved(tmp_path_factory.mktemp('check'))


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / 'copy')


def said(folder, capsys, status):
    assert cli.main(['weights', 'check', str(folder)]) == status
    return capsys.readouterr().out


def spoil(path, function):
    tensors = {key: np.array(value) for key, value in torch_files.map_file(path).items()}
    function(tensors)
    torch_files.write(path, tensors)


def test_a_good_folder(whole, capsys):
    folder, pipe = whole
    text = said(folder, capsys, 0)
    for part in ('unet', 'vae', 'text_encoder', 'scheduler', 'tokenizer', 'together'):
        assert f'{part}: loads' in text
    for net, path in ((pipe.unet, folder / 'unet' / FILE), (pipe.text_encoder, folder / 'text_encoder' / 'model.safetensors')):
        assert f'{sum(p.numel() for p in net.parameters()):,} numbers' in text
        assert f'sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}' in text
    assert 'predicts eps, as the file says' in text and 'scaled_linear table of 1000 times, abar 0.99915 to 4.660e-03' in text
    assert 'float32' in text and 'padded with 0' in text and 'all 6 parts load' in text


def test_single_parts_and_files(whole, tmp_path, capsys):
    folder, _ = whole
    assert 'unet: loads' in said(folder / 'unet', capsys, 0)
    assert 'clip_text_model' in said(folder / 'text_encoder', capsys, 0)
    assert 'no whole model' in said(folder / 'unet' / FILE, capsys, 2)
    convert.save_ldm(tmp_path / 'sd.safetensors', unet=convert.load_unet(folder / 'unet')[1])
    text = said(tmp_path / 'sd.safetensors', capsys, 0)
    assert 'unet: ' in text and 'has no vae' in text and 'moving average of the UNet: none' in text


def test_a_single_file_against_settings(whole, copy, tmp_path, capsys):
    small_pipeline.save_single_file(whole[0], tmp_path / 'plain.safetensors', tmp_path / 'sd.safetensors')
    text = said(tmp_path / 'sd.safetensors', capsys, 0)
    assert 'all 1 parts load' in text and 'give --config DIR' in text

    def against(folder, name, status):
        assert cli.main(['weights', 'check', str(tmp_path / name), '--config', str(folder)]) == status
        return capsys.readouterr().out

    text = against(copy, 'sd.safetensors', 0)
    for part in ('unet', 'vae', 'text', 'scheduler', 'tokenizer', 'together'):
        assert f'{part}: loads' in text
    assert said(shutil.copy(tmp_path / 'sd.safetensors', copy), capsys, 0) == text  # settings lie beside it
    text = against(copy, 'plain.safetensors', 2)
    assert 'plain.safetensors has no text' in text and 'would not load: plain.safetensors\n' in text
    config = json.loads((copy / 'unet' / 'config.json').read_text())
    (copy / 'unet' / 'config.json').write_text(json.dumps(config | {'cross_attention_dim': 20}))
    shutil.rmtree(copy / 'tokenizer')
    shutil.rmtree(copy / 'text_encoder')
    text = against(copy, 'sd.safetensors', 2)
    assert 'would not load: unet, text, tokenizer' in text
    assert 'attn2.to_k.weight is (16, 24)' in text and 'no config.json' in text
    assert cli.main(['weights', 'check', str(whole[0]), '--config', str(copy)]) == 2
    assert 'takes its settings from elsewhere' in capsys.readouterr().err


def test_half_precision_and_old_scheduler_files(copy, capsys):
    path = copy / 'unet' / FILE
    spoil(path, lambda tensors: tensors.update({key: value.astype(np.float16) for key, value in tensors.items()}))
    scheduler = copy / 'scheduler' / 'scheduler_config.json'
    config = json.loads(scheduler.read_text())
    del config['prediction_type']
    scheduler.write_text(json.dumps(config))
    text = said(copy, capsys, 0)
    assert 'arrays, float16' in text and 'predicts eps, as DDIMScheduler files without the field mean' in text


@pytest.mark.parametrize('said', (None, 'epsilon', 'v_prediction'))
@pytest.mark.parametrize(('width', 'size'), ((1024, 96), (1024, 64), (768, 96)))
def test_noise_of_a_unet_with_the_sizes_of_a_model_of_velocity_is_doubted(tmp_path, said, width, size):
    """Stable Diffusion 2 at 768 px, its 512 px base, and 1.5, whose scheduler file has no prediction_type."""
    scheduler, unet = tmp_path / 'scheduler' / 'scheduler_config.json', tmp_path / 'unet' / 'config.json'
    for path, config in (
        (scheduler, {'_class_name': 'PNDMScheduler'} | ({'prediction_type': said} if said else {})),
        (unet, {'_class_name': 'UNet2DConditionModel', 'cross_attention_dim': width, 'sample_size': size}),
    ):
        path.parent.mkdir()
        path.write_text(json.dumps(config))
    doubt = convert.doubt(tmp_path)
    if said == 'v_prediction' or (width, size) != (1024, 96):
        assert doubt == ''
        return
    assert str(scheduler) in doubt and str(unet) in doubt and '"prediction_type": "v_prediction"' in doubt
    assert ('says epsilon' if said else 'has no prediction_type, which means epsilon') in doubt
    assert any(line == f'note: {doubt}' for line in weights_check._schedule(tmp_path).lines)
    unet.unlink()
    assert convert.doubt(tmp_path) == ''


def test_the_doubt_is_said_when_a_pipeline_is_loaded(whole, monkeypatch, capsys):
    convert.load_pipeline(whole[0])
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(convert, 'VELOCITY', {'cross_attention_dim': 24, 'sample_size': 8})  # of the small UNet
    convert.load_pipeline(whole[0])
    assert capsys.readouterr().err.startswith(f'note: {whole[0] / "scheduler"}')


def test_what_does_not_fit_is_listed(copy, capsys):
    def change(tensors):
        del tensors['conv_in.bias']
        tensors['strange.weight'] = np.zeros(3, np.float32)
        tensors['conv_out.bias'] = np.zeros(5, np.float32)

    spoil(copy / 'unet' / FILE, change)
    text = said(copy, capsys, 2)
    for line in ('unet: WOULD NOT LOAD', 'missing (1): conv_in.bias', 'unused (1): strange.weight', 'vae: loads'):
        assert line in text
    assert 'conv_out.bias is (5,), our conv_out/bias wants (4,)' in text and 'would not load: unet' in text
    assert 'together' not in text


def test_values_that_are_not_finite_are_named(copy, capsys):
    spoil(copy / 'unet' / FILE, lambda tensors: tensors['conv_in.weight'].reshape(-1)[:2].fill(np.nan))
    spoil(copy / 'text_encoder' / 'model.safetensors', lambda tensors: next(iter(tensors.values())).fill(np.inf))
    text = said(copy, capsys, 2)
    assert f'conv_in.weight in {FILE}: 2 of 576 values are not finite' in text
    assert 'would not load: unet, text_encoder' in text


def test_missing_parts_pickles_and_other_classes(copy, capsys):
    shutil.rmtree(copy / 'tokenizer')
    (copy / 'scheduler' / 'scheduler_config.json').unlink()
    (copy / 'vae' / FILE).unlink()
    (copy / 'vae' / 'diffusion_pytorch_model.bin').write_bytes(pickle.dumps(1))
    config = json.loads((copy / 'unet' / 'config.json').read_text())
    (copy / 'unet' / 'config.json').write_text(json.dumps({**config, '_class_name': 'Transformer2DModel'}))
    (copy / 'safety_checker').mkdir()
    text = said(copy, capsys, 2)
    assert 'would not load: unet, vae, scheduler, tokenizer' in text
    assert 'is a pickle' in text and 'no tokenizer in' in text and 'no scheduler/' in text
    assert 'Transformer2DModel' in text and 'no net of this class' in text and 'not read: loads\n  safety_checker' in text


def test_a_tokenizer_of_another_model(copy, capsys):
    small_pipeline.text(vocab_size=20).save_pretrained(copy / 'text_encoder')
    assert 'ids, the text encoder 20 rows' in said(copy, capsys, 2)


def test_nothing_to_check(tmp_path, capsys):
    assert cli.main(['weights', 'check', str(tmp_path)]) == 2
    assert 'error: no config.json in' in capsys.readouterr().err
    assert cli.main(['weights', 'check', str(tmp_path / 'nowhere')]) == 2
    error = capsys.readouterr().err
    assert f'error: nothing at {tmp_path / "nowhere"}. Wanted a pipeline folder' in error and 'download one first' in error
    (tmp_path / 'stable-diffusion').mkdir()
    assert cli.main(['weights', 'check', str(tmp_path / 'stable-difusion')]) == 2
    assert f'Did you mean {tmp_path / "stable-diffusion"}?' in capsys.readouterr().err


def test_weights_of_t3d_are_checked_too(tmp_path, capsys):
    from t3d.inference import loading

    folder = loading.shipped()['instant3d-scenes']
    assert 'instant3d of t3d, step' in said(folder, capsys, 0)
    params, config = weights.load(folder)
    params = {name: value for name, value in params.items() if name != 'field'}
    weights.save(tmp_path, params, config)
    assert 'missing: ' in said(tmp_path, capsys, 2)


def test_parts_are_data(whole):
    parts = weights_check.check(whole[0])
    assert [part.name for part in parts] == ['unet', 'vae', 'text_encoder', 'scheduler', 'tokenizer', 'together']
    assert all(part.good and part.lines for part in parts)
