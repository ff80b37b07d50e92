"""The state that a run starts from: made by a sharded init, restored, or begun with the weights of another run."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from t3d.checkpoint import store as stores
from t3d.checkpoint import tiers as tiers_of
from t3d.checkpoint import weights
from t3d.core import config as configs
from t3d.core import files, prng
from t3d.core import tree as trees
from t3d.core.errors import UsageError
from t3d.core.system import Given, System, TrainState, weights_of, with_weights
from t3d.core.typing import PyTree
from t3d.parallel import offload, quickly, sharding
from t3d.train import log as logs
from t3d.train import traced

KEY_INIT = 2**32 - 1  # folded into the seed's key, as KEY_PREVIEW of program.py; steps stay below


def start(
    config,
    system: System,
    tiers: Sequence[stores.Store],
    mesh: Mesh,
    log: logs.Log,
    target: TrainState,
    init_from=None,
    keep: traced.Keep = traced.NOTHING,
    given: PyTree = None,
) -> TrainState:
    """The state to train from: restored as `target` (see `abstract`) from the newest checkpoint that loads, or made."""
    restored = tiers_of.restore(tiers, target, log.line)
    if restored is None:
        if log.resume(0):
            log.line('no checkpoint was saved before: starting again at step 0')
        state = fresh(config, system, target, keep, given)
        return state if init_from is None else _with_weights(state, system, init_from, mesh, log)
    step = int(restored.state.step)
    if restored.data['position'] != step:
        raise UsageError(f'checkpoint {step}: its data position is {restored.data["position"]}: not made by this loop.')
    log.line(f'resuming from step {step}')
    log.resume(step)
    return restored.state


def placed(given: Mapping[str, Given], mesh: Mesh, floor: int) -> dict[str, PyTree]:
    """{name: parameters} of given models on a mesh, each by its own sharding rules."""

    def put(one: Given):
        where = sharding.shardings(one.params, one.sharding, mesh, floor)
        return jax.tree.map(
            lambda leaf, place: jax.make_array_from_callback(leaf.shape, place, lambda index: np.asarray(leaf)[index]),
            one.params,
            where,
        )

    return {name: put(one) for name, one in given.items()}


def shapes(config, system: System, given: PyTree = None) -> TrainState:
    """ShapeDtypeStructs of the state of a run of this config."""
    return jax.eval_shape(_init(config, system), np.uint32(config.seed), given or {})


def abstract(config, system: System, mesh: Mesh, given: PyTree = None) -> TrainState:
    """The same with their shardings on a mesh, and the memories that the config's `offload` says."""
    state = shapes(config, system, given)
    floor = config.get('fsdp_floor', sharding.FLOOR)
    placed = sharding.shardings(state, system.sharding, mesh, floor)
    return sharding.abstract_with(state, offload.place(state, placed, config.get('offload', ''), floor))


def fresh(config, system: System, target: TrainState, keep: traced.Keep = traced.NOTHING, given: PyTree = None) -> TrainState:
    """The state a run of this config starts from, made by a sharded init; `target` as from `abstract`."""
    where, structure = jax.tree.map(lambda leaf: leaf.sharding, target), jax.tree.structure(target)
    plain, given = _init(config, system), given or {}
    others, shape = jax.tree.structure(given), lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    def of_leaves(seed, leaves):
        return jax.tree.leaves(plain(seed, jax.tree.unflatten(others, leaves)))

    def init(seed, given):
        abstract_given = [shape(leaf) for leaf in jax.tree.leaves(given_arrays)]
        function = keep('init', of_leaves, jax.ShapeDtypeStruct((), np.uint32), abstract_given)
        return jax.tree.unflatten(structure, function(seed, jax.tree.leaves(given)))

    given_arrays = given
    return quickly.jit(init, out_shardings=where)(np.uint32(config.seed), given)


def _init(config, system: System):
    """(seed, given) -> state."""

    def init(seed, given):
        key = jax.random.fold_in(prng.key(seed), KEY_INIT)
        batch = {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in system.batch_spec.items()}
        return system.init(key, batch, given)

    return init


def check_source(config, system: System, target: TrainState, folder, workdir=None) -> None:
    """Raises UsageError for weights to start a new run from that are not there or do not fit; nothing is written before."""
    if workdir is not None and stores.Store(epath.Path(workdir) / 'checkpoints', read_only=True).latest() is not None:
        return  # a run that goes on has them
    folder = files.path(folder)
    if not (folder / 'checkpoints').exists():
        weights.require(folder, 'Give a run folder or a weights folder to start from (--init-from DIR), or leave it out.')
    refuse_others(config, folder)
    if jax.process_count() == 1:
        advice = 'Give weights that were trained with the same networks, or leave --init-from out.'
        own = (weights_of(target, system.weights), f'the weights in {folder}', f'{config.system} with this config', advice)
        weights.check(_stored_weights(folder), *own)


def _stored_weights(folder) -> PyTree:
    if not (folder / 'checkpoints').exists():
        return weights.load(folder)[0]
    store = stores.Store(folder / 'checkpoints', read_only=True)
    try:
        return store.restore_weights()
    finally:
        store.close()


def refuse_others(config, folder) -> None:
    """Raises UsageError for weights to start from whose `must_match` keys differ: their numbers would mean something else."""
    path = epath.Path(folder) / weights.CONFIG
    ours, theirs = configs.flatten(config), configs.flatten(configs.read(path)) if path.exists() else {}
    names = config.get('must_match', ())
    wrong = [name for name in names if name in ours and name in theirs and ours[name] != theirs[name]]
    if wrong:
        there = ' '.join(f'{name}={theirs[name]}' for name in wrong)
        here = ', '.join(f'{name}={ours[name]!r}' for name in wrong)
        raise UsageError(f'the weights in {folder} were trained with {there}, this config has {here}: set {there}.')


def _with_weights(state: TrainState, system: System, folder, mesh: Mesh, log: logs.Log) -> TrainState:
    """The state with the weights of another run or weights folder, in the parameters too where they are averages of these.

    What weights leave out (a GAN's discriminator) comes from a run's checkpoint; weights folders lack it, so it starts anew.
    """
    folder, rest = epath.Path(folder), {}
    averaged = system.weights == ('ema',)
    own = weights_of(state, system.weights)
    if (folder / 'checkpoints').exists():
        store = stores.Store(folder / 'checkpoints', read_only=True)
        read = jax.device_get(store.restore_weights(sharding=sharding.replicated(mesh)))
        if averaged and set(trees.flatten(state.params)) - set(trees.flatten(read)):
            rest = trees.flatten(_params_of(store, state))
        store.close()
    else:
        read, _ = weights.load(folder)
    read = weights.check(read, own, f'the weights in {folder}')
    flat = {**rest, **trees.flatten(read)} if averaged else trees.flatten(state.params)
    new = sorted({name.split('/')[0] for name in trees.flatten(state.params) if name not in flat})
    log.line(f'starting from the weights in {folder}' + (f'; {", ".join(new)} not there: new' if new else ''))
    state = with_weights(state, system.weights, jax.tree.map(_put, read, own))
    if not averaged:
        return state
    params = trees.map_with_name(lambda name, old: _put(flat[name], old) if name in flat else old, state.params)
    return state.replace(params=params)


def _params_of(store: stores.Store, state: TrainState):
    """The parameters that training went on from, on the host; {} if the rest of that state (the optimizer) is another's."""
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    try:
        return jax.device_get(store.restore(target).state.params)
    except stores.CorruptCheckpoint:
        raise
    except UsageError:
        return {}


def _put(new, old):
    """A host array, laid out as `old`; buffers of its own."""
    return jax.make_array_from_callback(old.shape, old.sharding, lambda index: np.array(new[index]))
