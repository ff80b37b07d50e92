"""Settings files of every part: keys that change the computation, wrong kinds and unknown keys, by name; tokenizers."""

import json

import pytest
import small_pipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.checkpoint import clip_configs, convert_clip
from t3d.core import tokens
from t3d.core.errors import UsageError
from t3d.nets.unet import UNet
from t3d.nets.vae import VAE

READERS = {
    'text': lambda config: convert_clip.text_module(config, where='text_encoder/config.json'),
    'vision': lambda config: convert_clip.vision_module(config, 0, where='image_encoder/config.json'),
    'unet': UNet.from_config,
    'vae': VAE.from_config,
}


@pytest.mark.parametrize(
    ('part', 'key', 'value', 'says'),
    [
        ('text', 'use_attention_mask', True, 'text_encoder/config.json: use_attention_mask=True is another computation'),
        ('text', 'is_decoder', True, 'is_decoder=True is another computation'),
        ('text', 'quantization_config', {'load_in_8bit': True}, 'quantization_config={'),
        ('text', 'pruned_heads', {'0': [1]}, 'pruned_heads='),
        ('text', 'hidden_act', 'gelu_new', "hidden_act 'gelu_new' is unknown: choose one of quick_gelu, gelu"),
        ('text', 'hidden_act', ['gelu'], "hidden_act ['gelu'] is unknown"),
        ('text', 'rope_theta', 10000, "unknown key 'rope_theta' of a text encoder"),
        ('text', 'num_hidden_layer', 3, "unknown key 'num_hidden_layer' of a text encoder. Did you mean 'num_hidden_layers'?"),
        ('text', 'vocab_size', '49408', "vocab_size '49408': wanted a whole number"),
        ('text', 'num_attention_heads', 0, 'num_attention_heads 0: wanted a whole number from 1'),
        ('text', 'num_hidden_layers', 10**9, 'wanted a whole number from 1 to 1000'),
        ('vision', 'use_head', True, "unknown key 'use_head' of a vision encoder"),
        ('vision', 'patch_size', [14, 14], 'patch_size [14, 14]: wanted a whole number'),
        ('vision', 'num_channels', 4, 'num_channels 4, this tower reads 3'),
        ('unet', 'addition_embed_type', 'text_time', "addition_embed_type='text_time': t3d implements None"),
        ('unet', 'mid_block_typ', 'x', "unknown key 'mid_block_typ'. Did you mean 'mid_block_type'?"),
        ('unet', 'norm_num_groups', None, 'norm_num_groups=None: wanted a whole number from 0'),
        ('unet', 'norm_num_groups', 0, 'norm_num_groups=0: wanted at least 1'),
        ('unet', 'block_out_channels', '320', "block_out_channels='320': wanted a list of whole numbers"),
        ('unet', 'cross_attention_dim', [768, 768, 768, 768], 'cross_attention_dim=(768, 768, 768, 768): wanted one number'),
        ('unet', 'layers_per_block', 10**5, 'layers_per_block=100000: wanted 1 to 64'),
        ('unet', 'use_linear_projection', 'yes', "use_linear_projection='yes': wanted true or false"),
        ('vae', 'shift_factor', 0.0609, 'shift_factor=0.0609: t3d implements None'),
        ('vae', 'scaling_factor', 'x', "scaling_factor='x': wanted a number"),
        ('vae', 'latent_channels', 0, 'latent_channels=0: wanted at least 1'),
        ('vae', 'use_tiny', True, "unknown key 'use_tiny'"),
    ],
)
def test_what_changes_the_computation_is_refused_by_name(part, key, value, says):
    with pytest.raises(UsageError) as error:
        READERS[part]({key: value})
    assert says in str(error.value), error.value


def test_what_transformers_writes_is_read():
    """Its whole dictionaries, whose other keys change nothing; and the legacy ones of the hub's CLIP folders."""
    transformers = pytest.importorskip('transformers')
    for part, config in (('text', transformers.CLIPTextConfig()), ('vision', transformers.CLIPVisionConfig())):
        written = json.loads(json.dumps(config.to_dict(), default=str))
        legacy = dict.fromkeys(('tf_legacy_loss', 'num_beams', 'bad_words_ids', 'torchscript', 'use_bfloat16'))
        assert READERS[part](written | legacy) == READERS[part]({})
    assert UNet.from_config({'upcast_attention': None}) == UNet.from_config({})  # as SD-Turbo's file has it


KEYS = {
    'text': [*clip_configs.DEFAULTS['text'], *clip_configs.FIXED, 'other'],
    'vision': [*clip_configs.DEFAULTS['vision'], *clip_configs.FIXED, 'other'],
    'unet': [*UNet.__dataclass_fields__, 'act_fn', 'other'],
    'vae': [*VAE.__dataclass_fields__, 'act_fn', 'other'],
}
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.integers(0, 64),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.one_of(st.integers(-2, 700), st.sampled_from(['DownBlock2D', 'UpBlock2D'])), max_size=5),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(READERS)).flatmap(
        lambda part: st.tuples(st.just(part), st.dictionaries(st.sampled_from(KEYS[part]), VALUES, max_size=3))
    )
)
def test_any_settings_are_read_or_refused_in_one_sentence(case):
    part, config = case
    try:
        READERS[part](config)
    except UsageError as error:
        assert len(str(error)) < 900


def tokenizer(folder, *added):
    transformers = pytest.importorskip('transformers')
    small_pipeline.write_tokenizer(folder)
    if added:
        made = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        made.add_tokens(list(added))
        made.save_pretrained(folder)
    return folder


def test_ids_beyond_the_rows_of_the_encoder_are_refused_and_the_end_mark_is_the_tokenizers(tmp_path):
    rows = len(small_pipeline.VOCABULARY)
    plain = tokens.load_clip(str(tokenizer(tmp_path / 'plain')), 77, rows)
    assert (plain.vocabulary_size, plain.end) == (rows, rows - 1)
    added = str(tokenizer(tmp_path / 'added', '<toy>', '<cat>'))
    with pytest.raises(UsageError, match=f"has {rows + 2} ids, the text encoder {rows} rows: '<toy>', '<cat>' would"):
        tokens.load_clip(added, 77, rows)
    with pytest.raises(UsageError, match='rows'):
        tokens.make({'folder': added, 'length': 77, 'vocabulary_size': rows})
    resized = tokens.load_clip(added, 77, rows + 2)
    row = resized(['a <toy>'])[0].tolist()
    assert resized.end == rows - 1 and rows in row and row.index(resized.end) > row.index(rows)  # not the largest id


@pytest.mark.parametrize(
    ('name', 'text', 'says'),
    [
        ('tokenizer_config.json', '{"tokenizer_class": "T5Tokenizer"}', 'holds a T5Tokenizer: t3d reads CLIPTokenizer'),
        ('tokenizer_config.json', '{', 'tokenizer_config.json is damaged'),
        ('tokenizer_config.json', '[]', 'tokenizer_config.json is damaged'),
        ('vocab.json', '{"a": ', 'cannot be read'),
    ],
)
def test_damaged_and_other_tokenizers_are_refused(tmp_path, name, text, says):
    folder = tokenizer(tmp_path)
    (folder / name).write_text(text)
    with pytest.raises(UsageError, match=says):
        tokens.load_clip(str(folder))
