"""The compiled functions of a run: the train step, compiled while the state is being made or restored, and the preview."""

import concurrent.futures
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from t3d.core import prng
from t3d.core.system import System, TrainState, weights_of
from t3d.core.typing import PyTree
from t3d.parallel import devices, offload, sharding
from t3d.train import log as logs
from t3d.train import traced

KEY_PREVIEW = 2**32 - 2  # folded into the seed's key, as loop.KEY_INIT, 2**32 - 1; steps stay below


class Program:
    """The compiled train_step and preview of a run.

    `compile_ahead` compiles the step in a thread: its shapes are known long before the state is, and neither compiling the init
    nor reading a checkpoint keeps every core busy. The first call finds the result in JAX's own cache.
    """

    def __init__(
        self,
        config,
        system: System,
        mesh: Mesh,
        target: TrainState,
        log: logs.Log = logs.SILENT,
        keep: traced.Keep = traced.NOTHING,
        given: PyTree = None,
    ):
        """target: ShapeDtypeStructs of the state, with shardings; log: where lines go; given: {name: arrays on the mesh}."""
        self.mesh, self._log, self._system, self._given = mesh, log, system, given or {}
        replicated = sharding.replicated(mesh)
        self.key, self._preview_key = jax.jit(_keys, out_shardings=replicated)(np.uint32(config.seed))
        placed = jax.tree.map(lambda leaf: leaf.sharding, target)
        structure = jax.tree.structure(target)

        given_structure = jax.tree.structure(self._given)

        def program(number: int, one_step):
            def of_leaves(leaves, batch, data, given):
                state, given = jax.tree.unflatten(structure, leaves), jax.tree.unflatten(given_structure, given)
                state, metrics = one_step(state, batch, jax.random.fold_in(prng.of_data(data), state.step), given)
                return jax.tree.leaves(state), metrics

            def train_step(state, batch, key, given):
                words = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=replicated)  # jax.export knows no keys but JAX's own
                rows, others = self._arguments[1], jax.tree.leaves(self._arguments[3])
                name = f'train_step_{number}' if number else 'train_step'
                function = keep(name, of_leaves, jax.tree.leaves(offload.of_device(target)), rows, words, others)
                leaves = jax.tree.leaves(offload.fetched(state))
                leaves, metrics = function(leaves, batch, jax.random.key_data(key), jax.tree.leaves(given))
                return offload.returned(jax.tree.unflatten(structure, leaves), placed), metrics

            return jax.jit(train_step, donate_argnums=0, out_shardings=(placed, replicated))

        self._steps = [program(number, step) for number, step in enumerate((system.train_step, *system.other_steps))]
        self.step = self._steps[0]
        self._preview = None if system.preview is None else jax.jit(system.preview, out_shardings=replicated)
        self.previews = system.preview is not None
        self._ahead, self._compiled, self.compile_seconds = None, False, None
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), self._given)
        self._arguments = target, sharding.abstract_batch(system.batch_spec, mesh), self.key, abstract

    def compile_ahead(self) -> None:
        """Begins to compile the step, and returns. The interpreter ends only when that is done."""
        self._log.line('compiling train_step ...')
        helper = concurrent.futures.ThreadPoolExecutor(1)
        self._ahead = helper.submit(self._compile)
        helper.shutdown(wait=False)

    def _compile(self) -> float:
        """Seconds that it took."""
        began = time.perf_counter()
        for number in range(len(self._steps)):
            self.executable(number)
        return time.perf_counter() - began

    def executable(self, number: int = 0):
        """A step compiled ahead of time, which says what memory it needs; at once after the step has run."""
        with jax.set_mesh(self.mesh):  # the context of a mesh is a thread's own
            return self._steps[number].lower(*self._arguments).compile()

    def __call__(
        self, state: TrainState, local: dict[str, np.ndarray], number: int = 0
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step, dispatched; the state is donated. number: of the step that begins, from 0."""
        batch = sharding.global_batch(local, self.mesh)
        step = self._steps[self._system.choose(number) if self._system.choose else 0]
        if not self._compiled:
            return self._first(step, state, batch)
        with jax.transfer_guard('disallow'):
            return step(state, batch, self.key, self._given)

    def _first(self, step, state: TrainState, batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """The first step, once it is compiled. (A call of the ahead-of-time executable costs 0.2 ms more at every step.)"""
        if self._ahead is None:
            self.compile_ahead()
        failure = self._ahead.exception()  # waits
        if failure is not None:
            why = f'{type(failure).__name__}: {str(failure).partition(chr(10))[0]}'
            self._log.line(f'compiling train_step again, after {why}')
        seconds = 0.0 if failure is not None else self._ahead.result()
        devices.wait_for_all('t3d_train_step_is_compiled')
        began = time.perf_counter()
        result = step(state, batch, self.key, self._given)
        seconds += time.perf_counter() - began
        self._log.line(f'compiled train_step in {seconds:.1f} s (cached next time)')
        self._compiled, self._ahead, self.compile_seconds = True, None, seconds
        return result

    def preview(self, state: TrainState, batch) -> np.ndarray:
        """The preview images [N, H, W, 3] of the weights that generate reads."""
        weights = weights_of(state, self._system.weights)
        return jax.device_get(self._preview(weights, batch, self._preview_key, self._given))


def _keys(seed):
    key = prng.key(seed)
    return key, jax.random.fold_in(key, KEY_PREVIEW)
