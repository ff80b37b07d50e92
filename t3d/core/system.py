"""The contract between a text-to-3D system and everything that runs it.

A system is a `NamedTuple` of pure functions, as an optax transformation is. The training loop, the command line, the evaluators
and the exporters know these names and nothing else. Other models that a system uses and does not train are handed to it as
`given`: their functions when it is made, their parameters as an argument of each of its functions.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax
import jax

from t3d.core.errors import UsageError
from t3d.core.outputs import Output, Request
from t3d.core.typing import PyTree

# Scalars by name; 'loss' is the total, 'loss/<part>' its parts, '<part>/not_finite' the share of a step's numbers that were not
# finite and count as 0.
Metrics = dict[str, jax.Array]
NOT_FINITE, STEPS_NOT_FINITE = 0.01, 100  # a run stops at a larger share, and at any in so many steps in a row


@flax.struct.dataclass
class TrainState:
    """Everything a training step reads and writes; the whole of it is checkpointed."""

    step: jax.Array  # int32 scalar, number of finished steps
    params: PyTree  # float32
    opt_state: PyTree
    ema: PyTree  # exponential moving average of params; never aliases them; {} without one
    extras: PyTree  # what else a system carries: caches, a second network; {} for most


class Given(NamedTuple):
    """Another model that a system uses and does not train: a prior, a stage-1 generator, a judge.

    Attributes:
      functions: what the model offers (`System.functions`, or a diffusion.prior.Prior); holds no arrays.
      params: abstract while a system is made, arrays when it runs; never averaged, donated or checkpointed. Of a model that is
        given others itself, {'weights', 'given': their params by name}.
      config: of the model, None where it has none of ours.
      name: where it came from, for messages.
      digest: of its content: what a run's metadata keep, and what resuming compares.
      sharding: its own rules, as `System.sharding`.
      given: the models that it is given itself, {} for most.
    """

    functions: Any
    params: PyTree
    config: Any = None
    name: str = ''
    digest: str = ''
    sharding: tuple = ()
    given: Mapping[str, 'Given'] = MappingProxyType({})


class System(NamedTuple):
    """A text-to-3D method as pure functions.

    `given` is `{name: params}` of `make`'s second argument, {} for most systems.

    Attributes:
      init: `(key, batch, given) -> TrainState`; jitted by the loop with sharded outputs.
      train_step: `(state, batch, key, given) -> (state, metrics)`; pure, traced once, its state donated. None: only samples.
      preview: `(weights, batch, key, given) -> images [N, H, W, 3]` in [0, 1], one image per row of the contact sheet.
      generate: `(weights, requests, keys [N], given) -> list[Output]`, one for each request; an output depends on its request
        and key alone.
      check: `(requests) -> None`; UsageError for what cannot be taken, before anything heavy is loaded.
      weights: paths of the TrainState that `preview` and `generate` read, and that weights folders hold: ('ema',),
        ('params/gaussians', 'extras/alive'). See `weights_of`.
      sharding: `((path regex, PartitionSpec), ...)`; first match wins, the rest falls back to parallel.sharding's rule.
      batch_spec: name -> `jax.ShapeDtypeStruct` of the global batch: what the data pipeline must deliver. {}: trains without
        data.
      functions: what another system gets as `Given.functions` when this one is given to it; None: this System.
      other_steps: further train steps over the same state, each a compiled program of its own, with the same metrics.
      choose: `(step) -> int`, on the host: 0 runs `train_step` at that step, k other_steps[k - 1]. A function of the config
        and the step alone, so that all processes agree and a resumed run goes on alike. None: always 0.
    """

    init: Callable[..., TrainState]
    train_step: Callable[..., tuple[TrainState, Metrics]] | None
    preview: Callable[..., jax.Array] | None
    generate: Callable[..., list[Output]] | None
    check: Callable[[list[Request]], None]
    weights: tuple[str, ...]
    sharding: tuple
    batch_spec: dict[str, jax.ShapeDtypeStruct]
    functions: Any = None
    other_steps: tuple[Callable[..., tuple[TrainState, Metrics]], ...] = ()
    choose: Callable[[int], int] | None = None


def anything(requests: list[Request]) -> None:
    """A `check` that refuses nothing."""


def weights_of(state: PyTree, paths: tuple[str, ...]) -> PyTree:
    """What `generate` reads of a state: the subtree at the one path, or those at several, nested as in the state.

    Args:
      state: a TrainState, of arrays or abstract.
      paths: `System.weights`.
    """
    picked = {}
    for path in paths:
        node, *parts = state, *path.split('/')
        for part in parts:
            node = node[part] if isinstance(node, Mapping) else getattr(node, part)
        if len(paths) == 1:
            return node
        place = picked
        for part in parts[:-1]:
            place = place.setdefault(part, {})
        place[parts[-1]] = node
    return picked


def with_weights(state: TrainState, paths: tuple[str, ...], weights: PyTree) -> TrainState:
    """The state with other `weights`, as `weights_of` has them."""
    for path in paths:
        first, *rest = path.split('/')
        value = weights if len(paths) == 1 else weights_of(weights, (path,))
        state = state.replace(**{first: _replaced(getattr(state, first), rest, value)})
    return state


def without(state: TrainState, paths: tuple[str, ...]) -> TrainState:
    """The state with nothing at `paths`."""
    for path in paths:
        first, *rest = path.split('/')
        state = state.replace(**{first: _removed(getattr(state, first), rest)})
    return state


def placed(weights: PyTree, paths: tuple[str, ...]) -> PyTree:
    """`weights_of` a state as dictionaries from its root, so that leaves have the names that they have in the state."""
    for part in reversed(paths[0].split('/')) if len(paths) == 1 else ():
        weights = {part: weights}
    return weights


def _replaced(tree: PyTree, parts: list[str], value: PyTree) -> PyTree:
    return {**tree, parts[0]: _replaced(tree.get(parts[0], {}), parts[1:], value)} if parts else value


def _removed(tree: PyTree, parts: list[str]) -> PyTree:
    if not parts:
        return {}
    others = {name: part for name, part in tree.items() if name != parts[0]}
    inner = _removed(tree[parts[0]], parts[1:]) if len(parts) > 1 else {}
    return {**others, parts[0]: inner} if inner else others


def params_of(given: Mapping[str, Given]) -> dict[str, PyTree]:
    """`{name: params}`: the argument that a system's functions take."""
    return {name: one.params for name, one in given.items()}


def require(given: Mapping[str, Given], name: str, kind: type | tuple[type, ...], what: str) -> Given:
    """given[name], whose functions must be a `kind`, or one of several.

    Raises:
      UsageError: it is missing or of another kind; `what` says what is wanted and where one comes from.
    """
    if name not in given:
        others = f' (given: {", ".join(given)})' if given else ''
        raise UsageError(f'given.{name} is missing{others}: wanted {what}. Set given.{name}=NAME or FOLDER.')
    if not isinstance(given[name].functions, kind):
        other, kinds = type(given[name].functions).__name__, kind if isinstance(kind, tuple) else (kind,)
        names = ' or '.join(one.__name__ for one in kinds)
        raise UsageError(f'given.{name}={given[name].name!r} is a {other}, not a {names}: wanted {what}.')
    return given[name]
