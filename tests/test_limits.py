"""Every key of every config against values that cannot be meant: works, or one sentence; never a traceback or a folder."""

import ast
import math

import pytest
from small_cli import TINY, alone, refusal  # noqa: F401

from t3d import systems
from t3d.core import config as configs
from t3d.core import config_files, limits
from t3d.core.errors import UsageError
from t3d.data import sources
from t3d.export import meshes
from t3d.fields import fused_render, text_field
from t3d.geom import triplanes
from t3d.inference import loading
from t3d.nets import clip, flash_attention

ODD = ('-1', '0', '1e9', '2**32', '4294967296', 'nan', 'inf', '-inf', '', 'many', 'none', 'true', '(1,2,3,4,5)', "'x'", '1e400')


def every_variant():
    """(name:variant, flat config) of all configs."""
    for name, path in configs.files().items():
        for variant in config_files.variants(path):
            yield f'{name}:{variant}', configs.load(f'{name}:{variant}')


def test_every_key_works_or_is_refused_in_one_sentence():
    """Independent of the rules: what is accepted is of the kind of the value that the file has, finite, and an index if one."""
    tried, refused, seen = 0, 0, set()
    for spec, config in every_variant():
        for name, old in configs.flatten(config).items():
            if (name, old) in seen:
                continue
            seen.add((name, old))
            fresh = configs.load(spec)
            for text in ODD:
                tried += 1
                try:
                    configs.apply(fresh, f'{name}={text}')
                except UsageError as error:
                    refused += 1
                    said = str(error)
                    assert said.startswith(f'{name}=') and 'wanted' in said and said.count('\n') == 0, said
                    continue
                value = configs.flatten(fresh)[name]
                kinds = {int, tuple} if name == 'unet.attention_head_dim' else {type(old)}
                assert type(value) in kinds, (spec, name, text, value)
                assert not isinstance(value, float) or math.isfinite(value), (spec, name, text)
                if type(value) is int:
                    assert -1 <= value < 2**51 and (value != -1 or name.startswith('mesh.')), (spec, name, text, value)
    assert tried > 5_000 and refused > tried // 2


def test_every_key_of_every_config_has_a_rule_and_every_rule_a_key():
    keys = set().union(*(configs.flatten(config) for _, config in every_variant()))
    assert keys == set(limits.LIMITS)


def test_choices_are_those_of_the_code():
    assert limits.LIMITS['export.formats'].each.choices == meshes.FORMATS
    assert set(limits.LIMITS['render.plane_axes'].choices) == set(triplanes.PLANE_AXES)
    assert limits.LIMITS['unet.attention'].choices == flash_attention.KERNELS
    assert limits.LIMITS['render.kernel'].choices == fused_render.KERNELS
    assert set(limits.LIMITS['text.activation'].choices) == set(clip.ACTIVATIONS)
    assert set(limits.LIMITS['field.albedo'].choices) == set(text_field.ALBEDOS)


@pytest.mark.parametrize(
    'override, text',
    [
        ('seed=-1', 'seed=-1: wanted a whole number from 0 to 4294967295 (of every random draw). Nearest: seed=0.'),
        ('seed=4294967296', 'Nearest: seed=4294967295.'),
        ('data.seed=-1', 'Nearest: data.seed=0.'),
        ('loader.threads=-1', 'loader.threads=-1: wanted a whole number from 1 to 256 (that make batches). Nearest'),
        ('loader.prefetch=0', 'Nearest: loader.prefetch=1.'),
        ('preview.rows=0', 'Nearest: preview.rows=1.'),
        (
            'dtype=fp16',
            "dtype='fp16': wanted one of 'float32', 'bfloat16', 'float16' (of the computation). Nearest: dtype=float16.",
        ),
        ('dtype=bf16', 'Nearest: dtype=bfloat16.'),
        ('ema_decay=2', 'ema_decay=2: wanted a number from 0 to 1 (decay of the averaged weights). Nearest: ema_decay=1.0.'),
        ('log_every=0', 'Nearest: log_every=1.'),
        ('checkpoint.every=0', 'Nearest: checkpoint.every=1.'),
        ('checkpoint.keep=0', 'Nearest: checkpoint.keep=1.'),
        ('optimizer.learning_rate=nan', 'This config has optimizer.learning_rate=0.001.'),
        ('optimizer.learning_rate=-1', 'Nearest: optimizer.learning_rate=0.0.'),
        ('optimizer.b2=1.0', 'optimizer.b2=1.0: wanted a number from 0 and below 1'),
        ('render.background=white', "render.background='white': wanted a number from 0 to 1 (grey)."),
        ('decoder.heads=(6,-4,0)', 'Nearest: decoder.heads=(6, 0, 0).'),
        ('export.formats=glb,fbx', "export.formats=('glb', 'fbx'): wanted a list of 0 to 4 values, each one of 'glb', 'obj'"),
        ('export.prompts=a chair,a table', "in brackets and quotes, for example export.prompts=\"('a chair', 'a table')\""),
        ('decoder.remat=1', "decoder.remat=1: wanted true or false, or one of 'products' (what is computed again"),
        ('decoder.remat=dots', "decoder.remat='dots': wanted true or false, or one of 'products'"),
    ],
)
def test_refusals_say_value_range_and_nearest_and_leave_no_folder(capsys, tmp_path, override, text):
    assert text in refusal(capsys, 'train', TINY, override, '--workdir', 'run')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'override, value',
    [
        ('batch=1e3', 1000),
        ('batch=16.0', 16),
        ('batch=1_000', 1000),
        ('batch=0x10', 16),
        ('batch= 16 ', 16),
        ('optimizer.learning_rate=1', 1.0),
        ('optimizer.learning_rate=5e-4', 5e-4),
        ('decoder.remat=True', True),
        ('decoder.remat=TRUE', True),
        ('decoder.remat=products', 'products'),
        ('data.path=/a=b/c d', '/a=b/c d'),
        ('data.path=', ''),
        ('data.path=none', 'none'),
        ('data.path=Möbel/椅子 [1]*?', 'Möbel/椅子 [1]*?'),
        ('decoder.channels=[96,64,32]', (96, 64, 32)),
        ('decoder.channels=96,64,32', (96, 64, 32)),
        ('decoder.channels=(96, 64.0, 32)', (96, 64, 32)),
        ('export.formats=glb', ('glb',)),
        ('export.formats=glb, obj', ('glb', 'obj')),
        ('export.prompts=a red cube', ('a red cube',)),
        ("export.prompts=('a, b', \"it's\")", ('a, b', "it's")),
        ('export.prompts=()', ()),
        ('export.prompts=["x=y"]', ('x=y',)),
    ],
)
def test_values_are_read_as_people_write_them(override, value):
    config = configs.load(TINY, [override])
    stored = configs.flatten(config)[override.partition('=')[0]]
    assert stored == value and type(stored) is type(value)
    assert configs.flatten(configs.from_json(configs.to_json(config))) == configs.flatten(config)


@pytest.mark.parametrize(
    'text', ['(' * 500, '[' * 5000, '9' * 6000, "('a'", '\x00', '{}', '{1,2}', 'b"x"', '1j', '...', '-' * 400 + '1']
)
def test_texts_that_are_no_values_end_in_one_sentence(text):
    for name in ('batch', 'ema_decay', 'decoder.channels', 'decoder.remat', 'unet.attention_head_dim', 'export.formats'):
        config = configs.load('image_diffusion:tiny' if name.startswith('unet') else TINY)
        with pytest.raises(UsageError, match='wanted'):
            configs.apply(config, f'{name}={text}')


@pytest.mark.parametrize(
    'word, text',
    [
        ('lr', "Did you mean 'optimizer.learning_rate'?"),
        ('learning_rate', "Did you mean 'optimizer.learning_rate'?"),
        ('optimizer.lr', "Did you mean 'optimizer.learning_rate'?"),
        ('bs', "Did you mean 'batch'?"),
        ('batch_size', "Did you mean 'batch'?"),
        ('batchSize', "Did you mean 'batch'?"),
        ('max_steps', "Did you mean 'steps'?"),
        ('iterations', "Did you mean 'steps'?"),
        ('epochs', 'Training is counted in optimizer steps, not epochs: set steps'),
        ('output_dir', 'The run folder is a flag: --workdir DIR.'),
        ('resume', 'The same command again, with the same --workdir, resumes'),
        ('init_from', 'To start from the weights of another run: --init-from DIR.'),
        ('gpus', "Did you mean 'mesh.data'?"),
        ('fp16', "Did you mean 'dtype'?"),
        ('wd', "Did you mean 'optimizer.weight_decay'?"),
        ('num_workers', "Did you mean 'loader.threads'?"),
        ('image_size', "Did you mean 'data.size'?"),
        ('wandb', 'tensorboard --logdir RUN'),
        ('optimizer', "config key 'optimizer' is a group: set one of optimizer.b1, "),
        ('bach', "Did you mean 'batch'?"),
    ],
)
def test_a_key_is_found_by_meaning_and_by_spelling(word, text):
    with pytest.raises(UsageError) as error:
        configs.load(TINY, [f'{word}=1'])
    assert text in str(error.value)


@pytest.mark.parametrize(
    'spec, overrides, text',
    [
        ('instant3d', ('decoder.heads=(5,4,0)',), 'decoder.heads[0]=5 does not divide decoder.channels[0]=96. Nearest'),
        ('instant3d', ('decoder.groups=(8,64,8)',), 'decoder.groups[1]=64 does not divide decoder.channels[0]=96'),
        ('instant3d', ('decoder.channels=(96,64)',), 'decoder.heads=(6, 4, 0) has 3 values, decoder.channels=(96, 64) has 2'),
        ('instant3d', ('decoder.mid_heads=7',), 'decoder.mid_heads=7 does not divide decoder.channels[0]=96'),
        ('instant3d', ('decoder.mixer_heads=3',), 'Nearest: decoder.mixer_heads=2.'),
        ('instant3d', ('decoder.out_channels=49',), 'decoder.out_channels=49: wanted a multiple of 3'),
        ('instant3d', ('decoder.out_groups=5',), 'does not divide decoder.channels[2]=32'),
        ('instant3d', ('text.heads=3',), 'text.heads=3 does not divide text.width=64. Nearest: text.heads=2.'),
        ('image_diffusion', ('text.folder=x',), "text.folder='x' with text.vocabulary_size=0: give the number of tokens"),
        ('image_diffusion', ('text.width=128',), 'set unet.cross_attention_dim=128'),
        ('image_diffusion', ('patch=5',), 'patch=5 does not divide data.size=32: set data.size=30'),
        ('image_diffusion', ('unet.norm_num_groups=7',), 'block_out_channels has 64: wanted an even multiple of'),
        ('image_diffusion', ('unet.attention_levels=(True,)',), 'has 1 entries: the 2 levels of block_out_channels want 2'),
        ('image_diffusion', ('unet.attention_head_dim=(4,4,4)',), 'give one value, or 2, one for each level'),
        ('renderdiffusion', ('text.heads=5',), 'text.heads=5 does not divide text.width=64'),
        ('renderdiffusion', ('loss.stride=3',), 'loss.stride=3 does not divide data.size=64'),
        ('ganfusion_diffusion', ('text.width=32',), 'set unet.cross_attention_dim=32'),
        (
            'ganfusion_gan',
            ('data.size=48',),
            'data.size=48: the discriminator wants a power of two from 8. Nearest: data.size=64.',
        ),
        ('ganfusion_gan', ('data.size=4',), 'Nearest: data.size=8.'),
        ('ganfusion_gan', ('data.size=32',), 'generator.sr makes images of 64 pixels, data.size=32: give them the same size'),
        ('ganfusion_gan', ('render.limits=fixed',), 'give render.near < render.far'),
        ('ganfusion_gan', ('ladder=((0,0),)',), 'wanted (images shown, neural resolution) pairs that rise from 0 images'),
        ('ganfusion_gan', ('micro_batch=3',), 'the batch must fall into whole micro-batches'),
    ],
)
def test_numbers_that_do_not_fit_each_other_are_named_when_the_system_is_made(spec, overrides, text):
    config = configs.load(f'{spec}:tiny', overrides)
    if 'text' in config:
        with config.unlocked():
            config.text.words = ('red', 'cube')
    with pytest.raises(UsageError) as error:
        systems.make(config, loading.open_given(config))
    assert text in str(error.value)


def test_a_single_view_set_has_one_view():
    with pytest.raises(UsageError, match='data.views=99: a single-view set has one picture of each record. Set data.views=1.'):
        sources.make(configs.load('ganfusion_gan:tiny', ['data.views=99']))


FAULTS = {  # what stands in a config file, and what is said of it
    'def get_config(:\n  pass\n': 'line 1: invalid syntax: def get_config(:',
    'config = 1\n': 'has no get_config(variant): wanted a function',
    'get_config = {}\n': 'has no get_config(variant): wanted a function',
    'import no_such_thing\n': "line 1: ModuleNotFoundError: No module named 'no_such_thing'",
    'def get_config(variant="a"):\n  return None\n': 'returned None: wanted a config',
    'def get_config(variant="a"):\n  return [1]\n': 'returned [1]: wanted a config',
    'def get_config(variant="a"):\n\n  return 1 / 0\n': 'line 3: ZeroDivisionError: division by zero',
    'def get_config(variant="a"):\n  raise ValueError("no")\n': 'line 2: ValueError: no',
    'def get_config(variant):\n  return {}\n': 'wants a variant: give one',
    'def get_config(variant="a"):\n  return {1: 2}\n': 'returned is no config',
    'def get_config(variant="a"):\n  return {"data.name": "toy"}\n': 'but the key data.name contains one',
    'def get_config(variant="a"):\n  a = {}\n  a["a"] = a\n  return a\n': 'a dictionary that holds itself',
    'def get_config(variant="a"):\n  raise SystemExit("bye")\n': 'line 2: SystemExit: bye',
    'import sys\nsys.exit(3)\n': 'line 2: SystemExit: 3',
    'def get_config(variant="a"):\n  return {"seed": {1, 2}}\n': 'seed={1, 2}: wanted a whole number',
    'def get_config(variant="a"):\n  return {"mine": {1, 2}}\n': 'mine={1, 2}: wanted plain data',
    'def get_config(variant="a"):\n  return {"mine": float("nan")}\n': 'mine=nan: wanted plain data',
    'def get_config(variant="a"):\n  return {"system": "instant3d", "batch": 2}\n': 'lacks checkpoint.every, checkpoint.keep, ',
}
OWN = 'from configs import instant3d\ndef get_config(variant="tiny"):\n  config = instant3d.get_config(variant)\n'
FAULTS |= {
    OWN + '  config.optimizer.lr = 1.0\n  return config\n': (
        "line 4: unknown config key 'lr'. Did you mean 'optimizer.learning_rate'?"
    ),
    OWN + '  config.btach = 1\n  return config\n': "line 4: unknown config key 'btach'. Did you mean 'batch'?",
    OWN + '  config.nokey = 1\n  return config\n': "line 4: unknown config key 'nokey'. Keys are fixed",
    OWN + '  config.unlock()\n  config.optimizer.lr = 1.0\n  return config\n': (
        "unknown config key 'optimizer.lr' of instant3d. Did you mean 'optimizer.learning_rate'?"
    ),
    OWN + '  config.unlock()\n  config.preview_evry = 3\n  return config\n': "Did you mean 'preview_every'?",
    OWN + '  config.unlock()\n  del config.loss.rays\n  return config\n': 'lacks loss.rays: start from the keys of configs/',
    OWN + '  config.ema_decay = -0.5\n  return config\n': 'ema_decay=-0.5: wanted a number from 0 to 1',
    OWN + '  config.batch = 0\n  return config\n': 'batch=0: wanted a whole number from 1',
}


@pytest.mark.parametrize('code', FAULTS)
def test_a_config_file_that_cannot_be_run_is_named_with_its_line(capsys, tmp_path, code):
    (tmp_path / 'mine.py').write_text(code)
    assert FAULTS[code] in refusal(capsys, 'train', 'mine.py', '--workdir', 'run')
    assert not (tmp_path / 'run').exists()


def test_files_of_ones_own_may_be_plain_dictionaries_in_folders_of_any_name(tmp_path):
    folder = tmp_path / 'a:b [1]'
    folder.mkdir()
    (folder / 'mine.py').write_text(
        'def get_config(variant="a"):\n  return {"system": "mine", "batch": 8.0, "list": [1, variant]}\n'
    )
    assert configs.load(f'{folder}/mine.py').to_dict() == {'system': 'mine', 'batch': 8, 'list': (1, 'a')}
    assert configs.load(f'{folder}/mine.py:b').list == (1, 'b')
    (folder / 'bare.py').write_text('def get_config():\n  return {"batch": 8}\n')
    with pytest.raises(UsageError, match='takes no variant: leave out :b'):
        configs.load(f'{folder}/bare.py:b')
    assert ast.literal_eval(str(configs.load(f'{folder}/bare.py').to_dict())) == {'batch': 8}
