"""`t3d weights check DIR`: what a folder of real weights holds, and whether it would load, part by part."""

import difflib
import pathlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from t3d.checkpoint import convert, convert_clip, ldm_names, torch_files
from t3d.checkpoint.torch_files import Stored
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.diffusion import scheduler_files
from t3d.nets.unet import UNet
from t3d.nets.vae import VAE

NETS = ('unet', 'vae', 'text_encoder', 'image_encoder')
NOT_OURS = ('safety_checker', 'feature_extractor', 'text_encoder_2', 'tokenizer_2')
SHOWN = 5  # keys of each kind


class Part(NamedTuple):
    """What is said of one part, and whether it would load."""

    name: str
    good: bool
    lines: list[str]


def run(folder, *, config=None, variant: str | None = None) -> int:
    """The command: prints, and returns 0 if everything there would load, else 2."""
    parts = check(folder, config=config, variant=variant)
    for part in parts:
        print(f'{part.name}: {"loads" if part.good else "WOULD NOT LOAD"}')
        print('\n'.join(f'  {line}' for line in part.lines))
    bad = [part.name for part in parts if not part.good]
    print(f'would not load: {", ".join(bad)}' if bad else f'all {len(parts)} parts load')
    return 2 if bad else 0


def check(folder, *, config=None, variant: str | None = None) -> list[Part]:
    """The parts of a pipeline folder, a component folder, a single-file checkpoint, or a weights folder of t3d.

    Args:
      config: for a single file, the folder with its settings; None: where the file lies, if that has some.
    Raises:
      UsageError: there is nothing to check; the message says what is there.
    """
    folder = pathlib.Path(folder)
    if not folder.exists():
        near = difflib.get_close_matches(folder.name, [path.name for path in folder.absolute().parent.glob('*')], 1)
        hint = f' Did you mean {folder.parent / near[0]}?' if near else ''
        raise UsageError(
            f'nothing at {folder}.{hint} Wanted a pipeline folder as diffusers saves it (unet/, vae/, text_encoder/, ...), '
            'one of its parts, one .safetensors file, or a weights folder of t3d: download one first, or check the path.'
        )
    if folder.is_file():
        beside = folder.parent if config is None else pathlib.Path(config)
        return _single_file(folder, beside if config is not None or (beside / 'unet').is_dir() else None)
    if config is not None:
        raise UsageError(f'--config {config}: only a single .safetensors file takes its settings from elsewhere, not {folder}.')
    if (folder / 'config.json').is_file():
        return [_component(folder, variant)]
    there = [name for name in NETS if (folder / name).is_dir()]
    pipeline = (folder / 'model_index.json').is_file() or 'unet' in there
    if not there and not pipeline:
        torch_files.read_config(folder)  # says what is there instead
    components = [name for name in NETS if name in there or pipeline and name != 'image_encoder']
    parts = [_guarded(name, lambda name=name: _component(folder / name, variant)) for name in components]
    if pipeline:
        parts += [_guarded('scheduler', lambda: _schedule(folder)), _guarded('tokenizer', lambda: _tokenizer(folder))]
        if all(part.good for part in parts):
            parts.append(_guarded('together', lambda: _together(folder)))
    others = [name for name in NOT_OURS if (folder / name).is_dir()]
    return parts + ([Part('not read', True, [', '.join(others)])] if others else [])


def _guarded(name: str, made) -> Part:
    """A part whose folder may be missing or unreadable."""
    try:
        return made()
    except (UsageError, OSError) as error:
        return Part(name, False, str(error).splitlines())


def _component(folder: pathlib.Path, variant) -> Part:
    """One net, by the class its config names."""
    config = torch_files.read_config(folder)
    if 'system' in config:
        return _ours(folder)
    kind = config.get('_class_name') or config.get('model_type', 'unknown')
    stored = torch_files.open_stored(folder, variant=variant)
    lines = [f'{kind}', *_files(stored), _count(stored)]
    bad = _not_finite(stored)
    try:
        if kind == convert.CLASSES['unet']:
            lines += (problems := _fits(stored, convert.unet_shapes(UNet.from_config(config))))
        elif kind == convert.CLASSES['vae']:
            lines += (problems := _fits(stored, convert.vae_shapes(VAE.from_config(config))))
        elif kind in ('clip_text_model', 'clip_vision_model', 'clip'):
            lines += (problems := [] if bad else _clip(folder, kind, variant))
        else:
            lines += (problems := ['t3d has no net of this class'])
    except UsageError as error:
        lines += (problems := str(error).splitlines())
    return Part(folder.name, not problems and not bad, lines + bad + ([] if problems or bad else ['every key has its place']))


def _fits(stored: Stored, target) -> list[str]:
    """Lines on what is missing, unused, misshapen; none if the tensors are the module's."""
    fitted = convert.fit(stored.tensors, target)
    problems = [line.strip() for line in fitted.problems()]
    return [f'{len(fitted.used)} of {len(trees.flatten(target))} leaves fit', *problems] if problems else []


def _clip(folder, kind: str, variant) -> list[str]:
    """Loads the towers, which their names decide."""
    if kind != 'clip_vision_model':
        convert_clip.load_clip_text(folder, variant=variant)
    if kind != 'clip_text_model':
        convert_clip.load_clip_vision(folder, variant=variant)
    return []


def _single_file(path: pathlib.Path, beside: pathlib.Path | None) -> list[Part]:
    """What a .safetensors file holds and, with a folder that has its settings, whether every part of it fits."""
    stored = torch_files.open_stored(path)
    lines, bad = _files(stored), _not_finite(stored)
    alone = ldm_names.part_alone(stored.tensors)
    if not ldm_names.is_ldm(stored.tensors) and alone:
        return _alone(path, alone, lines + bad, beside)
    if not ldm_names.is_ldm(stored.tensors):
        lines += [_count(stored), 'names of no whole model: give the folder that holds the file and its config.json']
        return [Part(path.name, False, lines + bad)]
    good, there = True, {}
    for name in ldm_names.PREFIXES:
        try:
            there[name] = ldm_names.component(stored, name)
            lines.append(f'{name}: {_count(there[name])}, under diffusers names')
        except UsageError as error:
            good = good and beside is None and f'no {name}' in str(error)
            lines.append(f'{name}: {error}')
    average = sum(key.startswith(ldm_names.AVERAGE) for key in stored.tensors)
    lines.append(f'moving average of the UNet: {f"{average} arrays" if average else "none"}')
    if beside is None:
        lines.append('settings, tokenizer and schedule are not in such a file: give --config DIR, a folder that has them')
        return [Part(path.name, good and not bad, lines + bad)]
    parts = [Part(path.name, good and not bad, [*lines, f'settings of {beside}', *bad])]
    for name, part in there.items():
        folder = beside / ('text_encoder' if name == 'text' else name)
        parts.append(_guarded(name, lambda name=name, part=part, folder=folder: _part(path, name, part, folder)))
    parts += [_guarded('scheduler', lambda: _schedule(beside)), _guarded('tokenizer', lambda: _tokenizer(beside))]
    return parts + ([_guarded('together', lambda: _together(beside))] if all(part.good for part in parts) else [])


def _alone(path: pathlib.Path, name: str, lines: list[str], beside: pathlib.Path | None) -> list[Part]:
    """A UNet or an autoencoder in ldm names without prefix."""
    stored = torch_files.open_stored(path)
    part = ldm_names.component(stored, name)
    lines = [
        *lines,
        f'{name} alone, {_count(part)}, under diffusers names',
        f'in Python: convert.load_{name}(file, config=DIR)',
    ]
    good = not _not_finite(stored)
    if beside is None:
        return [Part(path.name, good, [*lines, 'settings are not in such a file: give --config DIR, a folder that has them'])]
    return [Part(path.name, good, lines), _guarded(name, lambda: _part(path, name, part, beside / name))]


def _part(path, name: str, stored: Stored, folder: pathlib.Path) -> Part:
    """A part of a single file against the settings of a component folder."""
    config = torch_files.read_config(folder)
    if name == 'text':
        convert.text_from_file(path, folder)
        problems = []
    else:
        unet = name == 'unet'
        shapes = convert.unet_shapes(UNet.from_config(config)) if unet else convert.vae_shapes(VAE.from_config(config))
        problems = _fits(stored, shapes)
    return Part(name, not problems, problems or [f'every key has its place in the settings of {folder}'])


def _ours(folder: pathlib.Path) -> Part:
    """A weights folder of t3d."""
    from t3d.inference import loading

    stored = torch_files.open_stored(folder)
    lines, bad = [*_files(stored), _count(stored)], _not_finite(stored)
    try:
        loaded = loading.load(folder)
    except UsageError as error:
        return Part(folder.name, False, [*lines, *str(error).splitlines(), *bad])
    return Part(folder.name, not bad, [f'{loaded.config.system} of t3d, step {loaded.step}', *lines, *bad])


def _schedule(folder: pathlib.Path) -> Part:
    schedule = convert.load_schedule(folder)
    config = torch_files.read_config(folder / 'scheduler', 'scheduler_config.json')
    table = np.asarray(schedule.alpha_bar)
    said = 'as the file says' if 'prediction_type' in config else f'as {config.get("_class_name")} files without the field mean'
    lines = [
        f'predicts {schedule.prediction}, {said}',
        f'{config.get("beta_schedule", "default")} table of {schedule.length} times, abar {table[0]:.5f} to {table[-1]:.3e}',
        f'few steps are spaced {schedule.spacing!r}, offset {schedule.steps_offset}',
    ]
    if doubtful := convert.doubt(folder):
        lines.append(f'note: {doubtful}')
    if chosen := scheduler_files.left_to_the_user(config):
        lines.append(f'its choice of a sampler is not read ({", ".join(chosen)}): --sampler of `t3d sample2d` chooses')
    return Part('scheduler', True, lines)


def _tokenizer(folder: pathlib.Path) -> Part:
    from t3d.core import tokens

    text = torch_files.read_config(folder / 'text_encoder')
    text = convert_clip.text_module(text, where=folder / 'text_encoder')
    tokenize = tokens.load_clip(str(folder / 'tokenizer'), text.length, text.vocabulary_size)
    shown = (*tokens.readable(tokenize, list(tokens.PROBES)), '')[0]
    ids = tokenize([shown])[0]
    lines = [f'"{shown}" is {ids[:6].tolist()}..., {len(ids)} ids, padded with {ids[-1]}']
    return Part('tokenizer', True, [*lines, f'{tokenize.vocabulary_size} ids, the end mark is {tokenize.end}'])


def _together(folder: pathlib.Path) -> Part:
    """Whether the parts belong to one model."""
    unet, vae = (torch_files.read_config(folder / name) for name in ('unet', 'vae'))
    text = convert_clip.text_module(torch_files.read_config(folder / 'text_encoder'))
    unet, vae = UNet.from_config(unet), VAE.from_config(vae)
    convert.refuse_mismatch(folder, text, unet, vae)
    return Part('together', True, [f'text features of {text.width}, {unet.in_channels} latent channels'])


def _files(stored: Stored) -> list[str]:
    return [f'{path.name}: {path.stat().st_size:,} bytes, sha256 {torch_files.digest(path)}' for path in stored.files]


def _count(stored: Stored) -> str:
    kinds = sorted({str(value.dtype) for value in stored.tensors.values()})
    return (
        f'{sum(value.size for value in stored.tensors.values()):,} numbers in {len(stored.tensors)} arrays, {", ".join(kinds)}'
    )


def _not_finite(stored: Stored) -> list[str]:
    bad = [
        f'{key} in {stored.sources[key].name}: {count} of {value.size} values are not finite'
        for key, value in stored.tensors.items()
        if jnp.issubdtype(value.dtype, jnp.floating) and (count := int(value.size - np.isfinite(value).sum()))
    ]
    return bad[:SHOWN] + ([f'and {len(bad) - SHOWN} more arrays'] if len(bad) > SHOWN else [])
