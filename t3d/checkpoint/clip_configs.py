"""The config.json of CLIP's towers as transformers writes it: defaults, keys that change nothing, and refusals of the rest."""

import difflib
from collections.abc import Mapping

from t3d.core.errors import UsageError
from t3d.nets import clip

BOTH = dict(num_hidden_layers=12, hidden_act='quick_gelu', layer_norm_eps=1e-5)
DEFAULTS = {  # what transformers' CLIPTextConfig and CLIPVisionConfig leave out of config.json when it has these values
    'text': dict(
        vocab_size=49408,
        max_position_embeddings=77,
        hidden_size=512,
        intermediate_size=2048,
        num_attention_heads=8,
        eos_token_id=49407,
        **BOTH,
    ),
    'vision': dict(
        image_size=224,
        patch_size=32,
        num_channels=3,
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        **BOTH,
    ),
}
MOST = {'num_hidden_layers': 1000}  # of whole numbers; others at most 10 million, so that a damaged file allocates nothing
FIXED = {  # keys that change the computation unless they have one of these values; the first is the one to name
    'use_attention_mask': (False, None),  # diffusers then masks the padding
    'is_decoder': (False, None),
    'add_cross_attention': (False, None),
    'is_encoder_decoder': (False, None),
    'pruned_heads': ({}, [], None),
    'quantization_config': (None,),
}
IGNORED = frozenset(  # keys of training, other outputs, generation and bookkeeping, which do not change the features
    'architectures model_type transformers_version torch_dtype dtype torchscript name_or_path attn_implementation '
    'initializer_factor initializer_range attention_dropout dropout projection_dim logit_scale_init_value '
    'bos_token_id pad_token_id sep_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id '
    'return_dict return_dict_in_generate output_attentions output_hidden_states output_scores use_cache use_return_dict '
    'id2label label2id num_labels problem_type finetuning_task task_specific_params tokenizer_class prefix '
    'use_bfloat16 tf_legacy_loss tie_word_embeddings tie_encoder_decoder cross_attention_hidden_size '
    'chunk_size_feed_forward gradient_checkpointing max_length min_length do_sample early_stopping num_beams '
    'num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty '
    'no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences remove_invalid_values '
    'exponential_decay_length_penalty suppress_tokens begin_suppress_tokens'.split()
)


def complete(config: Mapping, tower: str, where) -> dict:
    """The settings of a tower ('text' or 'vision') with defaults filled in, checked for what our towers fix.

    Raises:
      UsageError: a key that is not known, or a value that t3d does not compute; it says which.
    """
    known = DEFAULTS[tower]
    for key, value in config.items():
        if key in FIXED and value not in FIXED[key]:
            raise UsageError(
                f'{where}: {key}={value!r} is another computation: t3d implements {FIXED[key][0]!r}. Take weights that were '
                'made without it.'
            )
        if key not in known and key not in FIXED and key not in IGNORED and not key.startswith('_'):
            near = difflib.get_close_matches(key, [*known, *FIXED, *IGNORED], 1)
            hint = f' Did you mean {near[0]!r}?' if near else ' Take weights whose config transformers knows as CLIP.'
            raise UsageError(f'{where}: unknown key {key!r} of a {tower} encoder.{hint}')
    config = known | {key: value for key, value in config.items() if key in known}
    if config['hidden_act'] not in list(clip.ACTIVATIONS):
        raise UsageError(
            f'{where}: hidden_act {config["hidden_act"]!r} is unknown: choose one of {", ".join(clip.ACTIVATIONS)}.'
        )
    if config['layer_norm_eps'] != 1e-5:
        raise UsageError(f'{where}: layer_norm_eps {config["layer_norm_eps"]}, but every CLIP has 1e-5.')
    for key in (key for key, value in DEFAULTS[tower].items() if isinstance(value, int)):
        _whole(key, config[key], where)
    width, heads = config['hidden_size'], config['num_attention_heads']
    if width % heads:
        raise UsageError(f'{where}: hidden_size {width} in {heads} heads does not divide.')
    return config


def _whole(key: str, value, where) -> None:
    least, most = int(key != 'eos_token_id'), MOST.get(key, 10_000_000)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UsageError(f'{where}: {key} {value!r}: wanted a whole number from {least} to {most}.')


def end_mark(config: Mapping) -> int | None:
    """eos_token_id; configs from before transformers 4.31 say 2, which is wrong: None, the tokenizer knows its own."""
    end = (DEFAULTS['text'] | dict(config))['eos_token_id']
    return None if end == 2 else end
