"""`t3d generate PROMPT` of a system that is trained for the prompts themselves: `config.prompts` says that it is one."""

import pathlib

from t3d.core import files
from t3d.core.errors import UsageError

RUN = 'run'  # folder under --out, which the same command goes on with


def trains(config) -> bool:
    """Whether a config is of such a system."""
    return 'prompts' in config


def config_of(system: str | None) -> str | None:
    """The config of a system of the table that is trained for each prompt, or never; None for others, which have weights."""
    from t3d import systems
    from t3d.core import config as configs

    spec = f'configs/{system}.py:tiny'
    if system not in systems.SYSTEMS:
        return None
    config = configs.load(spec)
    return spec if trains(config) or config.get('untrained', False) else None


def model(config, prompts: list[str], seeds: list[int], out, given: dict[str, str]):
    """The trained model: trains it in `out`/run, or goes on with it there; its progress is the training's own.

    Raises:
      UsageError: no prompt or an empty one, several seeds, a prompt that the system cannot take, or an interrupted training.
    """
    from t3d.inference import loading
    from t3d.train import loop, signals, traced

    config, folder, opened, system, data = prepared(config, prompts, seeds, out, given)
    stop, options = signals.Stop(), {'system': system, 'data': data, 'given': opened}
    loaded = loading.load(loop.run(config, folder, **options, stop=stop, traced_in=traced.folder(config, opened)))
    if loaded.step < config.steps or stop.requested:
        raise UsageError(f'stopped at step {loaded.step} of {config.steps}: the same command goes on from there.')
    return loaded


def _refuse_another_run(folder: pathlib.Path, config) -> None:
    """Raises UsageError where the folder holds what was trained for other prompts, of another seed, or with other settings."""
    from t3d.checkpoint import run_configs

    if not (folder / 'config.json').exists():
        return
    old = run_configs.read(folder)
    before, seed = tuple(old.get('prompts', ())), old.get('seed')
    if (before, seed) != (config.prompts, config.seed):
        inside = seed == config.seed and set(config.prompts) <= set(before)
        some = f', or --run {files.quoted(folder)} for some of them' if inside else ''
        prompts = ' '.join(files.quoted(prompt) for prompt in before)
        raise UsageError(f'{folder} was trained for {prompts}, seed {seed}: give another --out, or these again{some}.')
    for name, (there, now) in run_configs.changed(old, config).items():
        raise UsageError(f'{folder} was trained with {name}={there!r}, not {now!r}: give another --out, or the same config.')


def _refuse_other_models(folder: pathlib.Path, opened) -> None:
    """Raises UsageError where the folder holds what was trained with other given models."""
    from t3d.checkpoint import run_configs, tiers
    from t3d.checkpoint import store as stores
    from t3d.inference import given as givens

    if not (folder / 'checkpoints').is_dir():
        return
    reader = stores.Store(folder / 'checkpoints', read_only=True)
    try:
        recorded = (tiers.meta([reader]) or {}).get('given', {})  # of the newest step that can be read, as training goes on
    finally:
        reader.close()
    before = ' '.join(f'{name}={value}' for name, value in run_configs.read(folder).get('given', {}).items())
    givens.refuse_other(opened, recorded, folder, f'give another --out, or what it had (--given {before}).')


def prepared(config, prompts: list[str], seeds: list[int], out, given: dict[str, str]):
    """(config, run folder, given models, system, data) of what `model` would train; nothing is written."""
    from t3d.core.outputs import Request
    from t3d.data import sources
    from t3d.inference import given as givens
    from t3d.inference import loading
    from t3d.train import checked

    if not prompts:
        raise UsageError(f'{config.system} is trained for each prompt: give one in quotes, or --prompts FILE.')
    if not all(prompt.strip() for prompt in prompts):
        raise UsageError(f'{config.system} cannot make an object of an empty prompt: give one in quotes, or --prompts FILE.')
    if len(seeds) > 1:
        several = ','.join(map(str, seeds))
        raise UsageError(f'--seeds {several}: {config.system} is trained for each seed: give one, and an --out for each.')
    with config.unlocked():
        config.prompts, config.seed = tuple(prompts), seeds[0]
        for name, value in given.items():
            if name not in config.get('given', {}):
                raise UsageError(
                    f'--given {name}=...: {config.system} has {", ".join(config.get("given", {})) or "none"} alone.'
                )
            config.given[name] = value
    config = sources.resolve(config)
    folder = pathlib.Path(out) / RUN
    _refuse_another_run(folder, config)
    opened = loading.open_given(config, folder, kept_first=False)
    givens.require_weights(opened)
    _refuse_other_models(folder, opened)
    system, data = checked.prepare(config, opened)
    system.check([Request(prompt) for prompt in prompts])
    return config, folder, opened, system, data
