"""CLIP folders of transformers: every key layout, both ways, and what is wrong with a wrong one."""

import json

import jax
import numpy as np
import pytest
from test_clip import TEXT, VISION, randomize, state

from t3d.checkpoint import convert_clip, torch_files
from t3d.core import tokens
from t3d.core.errors import UsageError

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

IDS = np.random.default_rng(0).integers(1, 60, (2, 77))


@pytest.fixture(scope='module')
def text():
    return randomize(transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT)))


@pytest.fixture(scope='module')
def whole():
    small = {'projection_dim': 24}
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, **small)
    return randomize(transformers.CLIPModel(config), seed=1)


@pytest.fixture
def folder(text, tmp_path):
    text.save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, change):
    """Stores change(arrays) in place of the arrays of a folder."""
    arrays = {name: np.array(value) for name, value in torch_files.read(folder).items()}
    torch_files.write(folder / 'model.safetensors', change(arrays))


def equal(ours, module, names):
    """Every leaf is bit for bit the torch array, in our layout."""
    theirs = {name.split('_model.')[-1]: value for name, value in state(module).items()}
    for name, value in convert_clip.to_theirs(ours, names).items():
        np.testing.assert_array_equal(value, theirs[name], name)


def test_text_keys_with_and_without_prefix(text, folder):
    stored = torch_files.read(folder)
    assert not any(name.startswith('text_model.') for name in stored)  # what transformers writes since 5.6
    module, params = convert_clip.load_clip_text(folder)
    assert (module.width, module.layers, module.heads, module.mlp_ratio, module.length) == (32, 3, 4, 4, 77)
    equal(params, text, convert_clip.text_names(3))
    rewrite(folder, lambda arrays: {f'text_model.{k}': v for k, v in arrays.items()})
    rewrite(folder, lambda arrays: arrays | {'text_model.embeddings.position_ids': np.arange(77)[None]})
    prefixed = convert_clip.load_clip_text(folder)[1]
    jax.tree.map(np.testing.assert_array_equal, params, prefixed)


@pytest.mark.parametrize('dtype, code', [('float16', 'F16'), ('bfloat16', 'BF16')])
def test_half_precision_files_become_float32(text, folder, dtype, code):
    half = torch_files.DTYPES[code]
    rewrite(folder, lambda arrays: {name: value.astype(half) for name, value in arrays.items()})
    params = convert_clip.load_clip_text(folder)[1]
    got = convert_clip.to_theirs(params, convert_clip.text_names(3))
    for name, value in state(text).items():
        rounded = torch.from_numpy(value).to(getattr(torch, dtype)).float().numpy()
        np.testing.assert_array_equal(got[name.removeprefix('text_model.')], rounded)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype('float32')}


def test_a_whole_model_gives_both_towers_and_projections(whole, tmp_path):
    whole.save_pretrained(tmp_path)
    towers = convert_clip.load_clip(tmp_path)
    equal(towers.text_params, whole.text_model, convert_clip.text_names(3))
    theirs = {k.removeprefix('vision_model.'): v for k, v in state(whole).items() if k.startswith('vi')}
    for name, value in convert_clip.to_theirs(towers.vision_params, convert_clip.vision_names(3, True)).items():
        np.testing.assert_array_equal(value, theirs[name], name)
    np.testing.assert_array_equal(towers.text_projection, whole.text_projection.weight.detach().numpy().T)
    assert towers.end == 63 and towers.vision.projection == 24 and towers.vision.mlp_width == 96


def loaded(kind, folder):
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not report['missing_keys'] and not report['unexpected_keys'] and not report['mismatched_keys']
    return model.eval()


def test_a_saved_text_tower_is_read_by_transformers(text, folder, tmp_path):
    module, params = convert_clip.load_clip_text(folder)
    convert_clip.save_clip_text(tmp_path / 'out', module, params, end=63)
    back = loaded(transformers.CLIPTextModel, tmp_path / 'out')
    with torch.no_grad():
        ids = torch.from_numpy(IDS)
        np.testing.assert_array_equal(back(ids).last_hidden_state, text(ids).last_hidden_state)
    again, same = convert_clip.load_clip_text(tmp_path / 'out')
    assert again == module
    jax.tree.map(np.testing.assert_array_equal, params, same)


@pytest.mark.parametrize('projection', [True, False])
def test_vision_towers_both_ways(tmp_path, projection):
    kind = transformers.CLIPVisionModelWithProjection if projection else transformers.CLIPVisionModel
    theirs = randomize(kind(transformers.CLIPVisionConfig(**VISION)))
    theirs.save_pretrained(tmp_path)
    module, params = convert_clip.load_clip_vision(tmp_path)
    assert module.projection == (24 if projection else 0)
    equal(params, theirs, convert_clip.vision_names(3, projection))
    convert_clip.save_clip_vision(tmp_path / 'out', module, params)
    back, images = loaded(kind, tmp_path / 'out'), torch.randn(1, 3, 42, 42)
    with torch.no_grad():
        np.testing.assert_array_equal(back(images).last_hidden_state, theirs(images).last_hidden_state)


def drop(name):
    return lambda arrays: {k: v for k, v in arrays.items() if not k.endswith(name)}


def put(name, value):
    return lambda arrays: arrays | {next((k for k in arrays if k.endswith(name)), name): value}


@pytest.mark.parametrize(
    'change, words',
    [
        (drop('layers.1.mlp.fc1.weight'), r'missing: encoder\.layers\.1\.mlp\.fc1\.weight'),
        (put('encoder.layers.3.mlp.fc1.bias', np.zeros(128, np.float32)), r'unknown: encoder\.layers\.3\.mlp'),
        (put('final_layer_norm.bias', np.zeros(31, np.float32)), r'final_layer_norm\.bias \(31,\) given, \(32,\) wanted'),
        (put('layers.0.mlp.fc2.bias', np.full(32, np.nan, np.float32)), r'model\.safetensors: .*fc2\.bias.*not finite'),
    ],
)
def test_wrong_arrays_are_named(folder, change, words):
    rewrite(folder, change)
    with pytest.raises(UsageError, match=words):
        convert_clip.load_clip_text(folder)


@pytest.mark.parametrize(
    'change, words',
    [
        ({'hidden_act': 'relu'}, "hidden_act 'relu'.*quick_gelu, gelu"),
        ({'layer_norm_eps': 1e-6}, 'every CLIP has 1e-5'),
        ({'intermediate_size': 100}, 'no multiple'),
        ({'num_attention_heads': 5}, '32 in 5 heads'),
        ({'model_type': 'bert'}, 'holds a bert'),
    ],
)
def test_wrong_configs_are_named(folder, change, words):
    path = folder / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match=words):
        convert_clip.load_clip_text(folder)


def test_wrong_folders_are_named(folder, tmp_path):
    with pytest.raises(UsageError, match='clip_text_model, wanted a clip_vision_model'):
        convert_clip.load_clip_vision(folder)
    with pytest.raises(UsageError, match='has no text_projection.weight: it is a text tower alone'):
        convert_clip.load_text_projection(folder)
    (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
    with pytest.raises(UsageError, match='is a pickle'):
        convert_clip.load_clip_text(folder)
    with pytest.raises(UsageError, match='no config.json'):
        convert_clip.load_clip_text(tmp_path / 'nothing')


@pytest.mark.parametrize('padding', ['<|endoftext|>', '!'])  # Stable Diffusion 1.x, 2.x
def test_the_tokenizer_pads_as_its_config_says(tmp_path, padding):
    marks = ['<|startoftext|>', '<|endoftext|>']
    vocabulary = ['!', 'c', 'a', 't</w>', 'ca', 'cat</w>', *marks]
    (tmp_path / 'vocab.json').write_text(json.dumps({piece: k for k, piece in enumerate(vocabulary)}))
    (tmp_path / 'merges.txt').write_text('#version: 0.2\nc a\nca t</w>\n')
    settings = dict(zip(('bos_token', 'eos_token', 'unk_token', 'pad_token'), (*marks, marks[1], padding)))
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings | {'tokenizer_class': 'CLIPTokenizer'}))
    row = tokens.load_clip(str(tmp_path), 6)(['cat'])[0].tolist()
    assert row == [6, 5, 7] + 3 * [vocabulary.index(padding)]
