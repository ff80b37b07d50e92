"""What a config would do, without doing it: parameter counts, the sharded step compiled, memory for each device."""

import ast
import math
import time

import jax

from t3d import systems
from t3d.core import cadence, prng, strict_json, tree
from t3d.core import config as configs
from t3d.core.errors import UsageError
from t3d.data import sources
from t3d.parallel import devices
from t3d.plan import programs
from t3d.train import checked, goodput

MADE_UP = 'word'  # before the number of a word that stands in for one of data that are not here


def describe(config, given, *, compile_step: bool = True) -> str:
    """The resolved config, the parameter counts, and the memory that the compiled train step needs on each device.

    The step is lowered and compiled for the device mesh of the config on the devices of this process; virtual CPU devices
    (`JAX_NUM_CPU_DEVICES=64`) stand in for a pod. Argument bytes are those of any backend; temporary bytes are XLA:CPU's and
    larger than an accelerator's.
    """
    system = systems.make(config, given)
    others = jax.eval_shape(lambda: {name: jax.tree.map(_zeros, one.params) for name, one in given.items()})
    abstract = jax.eval_shape(system.init, prng.key(0), system.batch_spec, others)
    lines = [f'{name} = {_short(value)}' for name, value in configs.flatten(config).items()]
    lines += ['', *counts(abstract.params)]
    lines += [f'given {name}: {tree.count(one.params):,} parameters ({one.name})' for name, one in given.items()]
    lines += ['', data(config, system)]
    checked.check_best(config, system, others)
    if compile_step:
        lines.append('')
        try:
            mesh = devices.make(config.mesh)
        except UsageError as error:  # the config is for another machine: what needs no devices is known all the same
            lines += [f'memory for each device: not known here: {error}', advice(config)]
        else:
            lines += compiled(config, system, abstract, mesh, given)
    return '\n'.join(lines)


def data(config, system) -> str:
    """The line about the data, one record of which is read as the training would."""
    if not system.batch_spec:
        return 'data: none: it learns from prompts alone'
    try:
        source, transform = sources.make(config, None, system.batch_spec)
        sources.preview(config, system.batch_spec)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        return f'data: not here: {error}'
    checked.check_example(config, system, source, transform)
    return sources.describe(config, source)


def resolve(config):
    """`sources.resolve`, with words made up where the data set that has them is not built here, or not read by what is
    installed."""
    try:
        return sources.resolve(config)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        print(f'note: {error}\nnote: a vocabulary of made-up words stands in for that of the data.')
        with config.unlocked():
            config.text.words = tuple(f'{MADE_UP}{k}' for k in range(max(config.text.vocabulary_size, 1000) - 3))
        return config


def has_made_up_words(config) -> bool:
    """Whether the vocabulary is that of `resolve`, which no prompt can be held to."""
    return tuple(config.get('text', {}).get('words', ()))[:1] == (f'{MADE_UP}0',)


def advice(config) -> str:
    """The command that lets virtual devices stand in for those of the config's mesh."""
    fixed = math.prod(size for size in config.mesh.values() if size != -1)
    count = 64 if -1 in config.mesh.values() and 64 % fixed == 0 and config.batch % 64 == 0 else fixed
    return f'Virtual devices can stand in: JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES={count} t3d train ... --dry-run'


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 400 else f'{text[:200]} ... ({len(value)} in all)'


def counts(params) -> list[str]:
    """A line for each part of the parameters, and their sum."""
    parts = {name: tree.count(part) for name, part in params.items()}
    return [f'{name:>10}: {number:>13,} parameters' for name, number in {**parts, 'all': sum(parts.values())}.items()]


def compiled(config, system, abstract, mesh, given) -> list[str]:
    """Lines about the sharded train steps: mesh, seconds to compile, model FLOPs, bytes for each device."""
    devices.check_batch(config.batch, mesh, config.get('accumulate', 1))
    one = programs.Model(config, system, abstract, given)
    shape = ' x '.join(f'{name} {size}' for name, size in mesh.shape.items())
    lines, giga = [f'mesh: {shape} = {mesh.size} devices ({jax.default_backend()})'], 2**30
    with jax.set_mesh(mesh):
        works = programs.works(one)
    for number, (name, work) in enumerate(works.items(), 1):
        began = time.perf_counter()
        memory = programs.memory_of(one, programs.lower(one, name, mesh).compile(), mesh)
        seconds = time.perf_counter() - began
        together = f', on average over {cadence.cycle(work.cadences)}' if work.cadences else ''
        lines += [
            f'train step{f" {number}" if system.other_steps else ""} compiled in {seconds:.1f} s',
            f'model FLOPs of a step{together}: {work.flops:.3g}, {work.flops / mesh.size:.3g} for each device',
            f'for each device: arguments {memory["argument_bytes"] / giga:.3f} GiB (state of all devices together '
            f'{tree.size_bytes(abstract) / giga:.3f} GiB), temporaries {memory["temporary_bytes"] / giga:.3f} GiB',
        ]
    if host := programs.host_bytes_of(one, dict(mesh.shape)):
        parts = ', '.join(f'{name} {size / giga:.3f} GiB' for name, size in host.items())
        lines.append(f"in the host's memory for each device: {parts}")
    return lines


def _zeros(leaf):
    return jax.numpy.zeros(leaf.shape, leaf.dtype)


def configs_table() -> str:
    """Every config file with the first line of its docstring and its table of variants."""
    lines = []
    for name, path in configs.files().items():
        try:
            text = ast.get_docstring(ast.parse(path.read_bytes())) or ''
        except (SyntaxError, ValueError, RecursionError, OSError) as error:
            text = f'(not read: {error})'
        lines.append(f'configs/{name}.py  {text.partition(chr(10))[0]}')
        lines += [f'  {line}' for line in text.splitlines() if line.startswith('|')]
    return '\n'.join(lines)


def info(folder) -> str:
    """System, step, parameters and scores of a run or weights folder."""
    from t3d.inference import loading

    loaded = loading.load(folder)
    lines = [f'{loaded.name}: {loaded.config.system} {loaded.config.get("variant", "")}, step {loaded.step}']
    lines += counts(loaded.weights)
    lines += _scores(loaded.folder / 'scores.json')
    spent = goodput.read(loaded.folder / goodput.NAME)
    lines += [goodput.describe(spent)] if spent is not None and sum(spent.seconds.values()) else []
    if 'text' in loaded.config:  # a GAN has no text
        words = loaded.config.text.words
        lines.append(f'words it knows ({len(words)}): {" ".join(words[:60])}{" ..." if len(words) > 60 else ""}')
    return '\n'.join(lines)


def _scores(path) -> list[str]:
    """A line for each score of a `scores.json`; of a damaged one what is wrong with it, as nothing else needs it."""
    try:
        scores = strict_json.loads(path.read_bytes(), str(path))
    except FileNotFoundError:
        return []
    except UsageError as error:
        return [f'scores: {error}']
    if not isinstance(scores, dict):
        return [f'scores: none in {path}']
    return [f'{name}: {f"{len(value)} rows" if isinstance(value, list) else value}' for name, value in scores.items()]
