"""What tests/fuzz.py reads: each target makes one odd input from a good one and reads it as commands do."""

import argparse
import functools
import io
import json
import os
import pathlib
import shutil
import zipfile

import fuzz_mutations as mutate
import fuzz_posed
import fuzz_records
import numpy as np

from t3d import cli
from t3d.checkpoint import convert, convert_clip, torch_files, weights
from t3d.commands import outputs
from t3d.core import config as configs
from t3d.core import prompts, tokens
from t3d.data.adapters import single_view
from t3d.data.sets import captions, images, objmesh, raycast, sweethome
from t3d.diffusion import scheduler_files, schedules
from t3d.nets import unet, vae

OBJ = """# a chair
mtllib chair.mtl
o chair
v 0 0 0
v 1.0 0 0
v 1 1e0 0
v 0 1 0 0.5 0.5 0.5
v 0.5 0.5 1
vt 0 0
vt 1 1
vn 0 0 1
usemtl wood
f 1/1/1 2/2/1 3/1/1 4
s off
usemtl red
f -5 -4 -1
f 1//1 2//1 3//1 4//1 5//1
"""
MTL = """newmtl wood
Kd 0.8 0.6 0.4
d 1
map_Kd -s 1 1 1 -clamp on wood grain.png
newmtl red
Kd xyz 0.4 0.2 0.1
Tr 0.25
Ks 0 0 0
"""
CATALOGUE = """# furniture
id=Mine
id#1=Mine#chair
name#1=Ch\\u00e2ise 3
tags#1=Seat, \\
   Wood
category#1=Living room
model#1=/m/chair.obj
width#1=50
modelRotation#1=1 0 0 0 1 0 0 0 1
name#2 : Rug
model#2=/m/rug.obj
"""
SCHEDULER = {
    '_class_name': 'DDIMScheduler', 'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear',
    'clip_sample': False,
    'num_train_timesteps': 100, 'prediction_type': 'epsilon', 'set_alpha_to_one': False, 'steps_offset': 1,
    'trained_betas': None,
    'timestep_spacing': 'leading', 'rescale_betas_zero_snr': False, 'thresholding': False, 'clip_sample_range': 1.0,
}  # fmt: skip
UNET = {
    '_class_name': 'UNet2DConditionModel', 'in_channels': 4, 'out_channels': 4, 'block_out_channels': [8, 16],
    'layers_per_block': 1,
    'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'], 'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
    'attention_head_dim': 2, 'cross_attention_dim': 8, 'norm_num_groups': 4, 'norm_eps': 1e-5, 'sample_size': 8,
    'act_fn': 'silu',
    'use_linear_projection': False, 'downsample_padding': 1, 'flip_sin_to_cos': True, 'freq_shift': 0,
}  # fmt: skip
VAE = {
    '_class_name': 'AutoencoderKL', 'in_channels': 3, 'out_channels': 3, 'block_out_channels': [4, 8], 'layers_per_block': 1,
    'down_block_types': ['DownEncoderBlock2D'] * 2, 'up_block_types': ['UpDecoderBlock2D'] * 2, 'latent_channels': 4,
    'norm_num_groups': 4, 'sample_size': 16, 'scaling_factor': 0.18215, 'act_fn': 'silu',
}  # fmt: skip
CLIP = {
    'text': {'hidden_size': 8, 'intermediate_size': 32, 'num_attention_heads': 2, 'num_hidden_layers': 2, 'vocab_size': 50,
             'max_position_embeddings': 77, 'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5, 'eos_token_id': 2},
    'vision': {'hidden_size': 8, 'intermediate_size': 32, 'num_attention_heads': 2, 'num_hidden_layers': 2, 'image_size': 8,
               'patch_size': 4, 'hidden_act': 'gelu', 'layer_norm_eps': 1e-5, 'num_channels': 3},
}  # fmt: skip
VOCABULARY = ('a', 'red', 'blue', 'cube', 'würfel', '内', 'chair')


def empty(folder: pathlib.Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink()


@functools.cache
def picture(seed: int = 0) -> bytes:
    return images.png(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8))


def zipped(members: dict[str, bytes], compression=zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def pose(angle: float) -> list[float]:
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, 0, s, 0], [0, 1, 0, 0], [-s, 0, c, 0], [0, 0, 0, 1]])
    front = np.array([[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2.7], [0, 0, 0, 1]])
    return [*(turn @ front).ravel().tolist(), 4.26, 0.0, 0.5, 0.0, 4.26, 0.5, 0.0, 0.0, 1.0]


# ------------------------------------------------------------------------------------------------------------- targets


def obj(source, folder):
    files = {
        'm/chair.obj': mutate.encoded(source, mutate.text(source, OBJ)),
        'm/chair.mtl': mutate.encoded(source, mutate.text(source, MTL)),
        'm/wood grain.png': mutate.raw(source, picture()),
    }
    mesh = objmesh.load('m/chair.obj', files.__getitem__)
    if len(mesh.positions):
        mesh = objmesh.dataclasses.replace(mesh, positions=raycast.fit_sphere(mesh.positions, 0.9))
        scene = raycast.Scene(mesh, files.__getitem__)
        scene.hits(*(np.float32([[0, 0, 3]] * 4) * scale for scale in (1, -1 / 3)), 0.1)


def catalogue(source, folder):
    data = mutate.encoded(source, mutate.text(source, CATALOGUE))
    for entry in sweethome.parse_catalogue(data, 'Mine'):
        noun = captions.noun(entry.name)
        list(captions.captions(noun, 'red', entry.tags))
        entry.object_id.encode()


def library(source, folder):
    members = {
        'm/chair.obj': OBJ,
        'm/chair.mtl': MTL,
        'm/wood grain.png': picture(),
        'm/rug.obj': 'v 0 0 0\n',
        sweethome.CATALOGUE: CATALOGUE,
    }
    data = mutate.raw(source, zipped(members, source.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))))
    (folder / 'Mine.sh3f').write_bytes(data)
    for opened in sweethome.open_libraries(folder / 'Mine.sh3f', folder / 'scratch'):
        for entry in opened.entries():
            try:
                objmesh.load(opened.model(entry), opened.read, opened.locate)
            except (configs.UsageError, KeyError):
                continue


def labels(source, folder):
    index = {
        'labels': [[f'{k}.png', pose(0.4 * k)] for k in range(3)],
        'captions': {'0.png': ['a red cube', 'cube']},
        'attributes': {'0.png': {'colour': 'red'}},
    }
    content = json.dumps(mutate.tree(source, index), ensure_ascii=source.random() < 0.5)
    data = content.encode('utf-8', 'replace') if source.random() < 0.5 else mutate.encoded(source, mutate.text(source, content))
    (folder / 'dataset.json').write_bytes(data)
    for k in range(3):
        (folder / f'{k}.png').write_bytes(picture(k))
    _train_on(folder)


def pictures(source, folder):
    index = json.dumps({'labels': [[f'x/{k}.png', pose(0.4 * k)] for k in range(3)]})
    members = {f'x/{k}.png': picture(k) for k in range(3)} | {'dataset.json': index}
    if source.random() < 0.5:
        members['x/1.png'] = mutate.raw(source, picture(1))
    data = zipped(members, source.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    (folder / 'set.zip').write_bytes(mutate.raw(source, data))
    _train_on(folder / 'set.zip')


def _train_on(path):
    source = single_view.SingleView(images.ImageSet(path), background=0.5, posed=True, mirror=False)
    for k in range(len(source)):
        source[k]
    list(source.captions())


@functools.cache
def _config_keys(name: str) -> dict:
    return configs.flatten(configs.load(name))


def overrides(source, folder):
    spec = f'{source.choice(("instant3d", "renderdiffusion", "ganfusion_gan", "image_diffusion", "ganfusion_diffusion"))}:tiny'
    flat, words = _config_keys(spec), []
    for _ in range(source.randint(1, 3)):
        key = source.choice(list(flat))
        old = str(flat[key])
        value = source.choice((old, mutate.text(source, old), str(source.choice(mutate.VALUES)), mutate.words(source, 2)))
        key = key if source.random() < 0.8 else mutate.text(source, key)
        words.append(key + source.choice(('=',) * 9 + ('', '==')) + value)
    configs.to_json(configs.load(spec if source.random() < 0.95 else mutate.text(source, spec), words))


def prompt(source, folder):
    good = source.choice(
        ('a red cube\na blue chair\n', 'ein roter Würfel\n', '内部 a red cube', '"a cube"\n# cube\n\n--out x\n')
    )
    (folder / 'p.txt').write_bytes(mutate.encoded(source, mutate.text(source, good)))
    tokenize = tokens.WordTokenizer(VOCABULARY, 12, source.random() < 0.5)
    tokenize([mutate.text(source, 'a red cube')])
    tokenize(prompts.read(folder / 'p.txt'))


def scheduler(source, folder):
    config = mutate.tree(source, SCHEDULER | {'_class_name': source.choice(list(scheduler_files.CLASSES))})
    if isinstance(config, dict):
        schedules.from_config(config)


def model(source, folder):
    kind = source.randrange(4)
    config = mutate.tree(source, (UNET, VAE, CLIP['text'], CLIP['vision'])[kind])
    if not isinstance(config, dict):
        return  # torch_files.read_config refuses it
    if kind == 0:
        unet.UNet.from_config(config)
    elif kind == 1:
        vae.VAE.from_config(config)
    elif kind == 2:
        convert_clip.text_module(config)
    else:
        convert_clip.vision_module(config, 4)


def folder_of_weights(source, folder):
    """A pipeline's folder: the files are read, the tensors touched; nothing is computed."""
    _weights_file(source, folder / 'diffusion_pytorch_model.safetensors')
    content = json.dumps(mutate.tree(source, UNET))
    (folder / 'config.json').write_bytes(
        content.encode() if source.random() < 0.5 else mutate.encoded(source, mutate.text(source, content))
    )
    (folder / 'scheduler_config.json').write_text(json.dumps(mutate.tree(source, SCHEDULER)))
    reader = source.randrange(3)
    if reader == 0:
        unet.UNet.from_config(torch_files.read_config(folder))
    elif reader == 1:
        convert.load_schedule(folder)
    else:
        for value in torch_files.read(folder).values():
            np.asarray(value).sum()


def header(source, folder):
    _weights_file(source, folder / 'model.safetensors')
    if source.random() < 0.5:
        for value in torch_files.map_file(folder / 'model.safetensors').values():
            np.asarray(value).sum()
        return
    content = json.dumps({'system': 'instant3d', 'text': {'words': ['a']}})
    (folder / 'config.json').write_bytes(
        mutate.encoded(source, mutate.text(source, content)) if source.random() < 0.3 else content.encode()
    )
    weights.load(folder)


def _weights_file(source, path) -> None:
    arrays = {'a.kernel': np.ones((2, 3), np.float32), 'b/c': np.zeros((4,), np.float16), 'd': np.ones((), np.int64)}
    offset, index, body = 0, {'__metadata__': {'format': 'pt'}}, b''
    for (key, array), name in zip(arrays.items(), ('F32', 'F16', 'I64')):
        index[key] = {'dtype': name, 'shape': list(array.shape), 'data_offsets': [offset, offset + array.nbytes]}
        offset, body = offset + array.nbytes, body + array.tobytes()
    if source.random() < 0.7:
        index = mutate.tree(source, index)
    content = json.dumps(index)
    content = (content if source.random() < 0.7 else mutate.text(source, content)).encode('utf-8', 'replace')
    data = len(content).to_bytes(8, 'little') + content + body
    path.write_bytes(mutate.raw(source, data) if source.random() < 0.4 else data)


@functools.cache
def _options() -> dict[str, list[str]]:
    """{command: its flags}."""
    [words] = [action for action in cli.make_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: sorted(command._option_string_actions) for name, command in words.choices.items()}


def parsing(source, folder):
    command = source.choice(list(_options()))
    argv = [command if source.random() < 0.95 else mutate.words(source, 1)]
    for _ in range(source.randint(0, 5)):
        flag = source.choice([*_options()[command], '--nonsense'])
        argv += source.choice(
            ([flag], [mutate.words(source, 1)], [flag, mutate.words(source, 1)], [f'{flag}={mutate.words(source, 1)}'])
        )
    args = cli.parse(argv)
    if hasattr(args, 'seeds') and len(args.seeds) < 100:
        outputs.parse_seeds(args.seeds)
    if hasattr(args, 'formats'):
        outputs.check(args)


def commands(source, folder):
    """Commands that end early, run whole."""
    place = source.choice((mutate.words(source, 2), mutate.words(source, 1), 'set.zip', '.'))
    (folder / 'set.zip').write_bytes(mutate.raw(source, zipped({'a.png': picture(), 'dataset.json': '{"labels": []}'})))
    out = source.choice((mutate.words(source, 1), 'new.zip', 'new'))
    argv = source.choice((
        ['info', place], ['weights', place, out], ['weights', 'check', place], ['export', place, '--seeds',
        mutate.words(source, 1)],
        ['data', 'single-view', 'eg3d', '--source', place, '--out', out], ['eval', place], ['render', place, 'a cube',
        '--out', out],
        ['data', 'build', 'furniture', '--source', place, '--out', out, '--processes', '1', '--size', source.choice(('16',
        mutate.words(source, 1)))],
        ['generate', 'a cube', '--weights', place, '--prompts', out], ['train', mutate.text(source, 'instant3d:tiny') + ':x',
        place],
        ['data', 'single-view', place, '--out', out, '--size', mutate.words(source, 1)],
    ))  # fmt: skip
    if place in ('', '.', './', ' ') and argv[0] in ('info', 'generate', 'export', 'render', 'eval', 'weights'):
        return None  # the shipped weights, or the folder itself: other tests
    try:
        if b'\0' in b''.join(map(os.fsencode, argv)):
            return None  # no system hands that over
    except UnicodeEncodeError:  # nor that
        return None
    whole = os.path.realpath(os.path.expanduser(place)) if place.isprintable() and place.isascii() else folder / 'none'
    if folder.resolve().is_relative_to(whole):
        return None  # a walk over the whole machine takes its time
    return cli.main(argv)


TARGETS = {
    'obj': obj, 'catalogue': catalogue, 'library': library, 'labels': labels, 'pictures': pictures, 'overrides': overrides,
    'prompt': prompt, 'scheduler': scheduler, 'model': model, 'folder': folder_of_weights, 'header': header, 'parsing': parsing,
    'commands': commands, 'posed': fuzz_posed.views, 'records': fuzz_records.read,
}  # fmt: skip
