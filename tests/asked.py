"""Outputs of a system for prompts, as the commands ask for them: keys of places under one key."""

import jax
import jax.numpy as jnp

from t3d.core.outputs import Request


def generate(system, weights, prompts, key, given=None):
    """One output for each prompt; that of place k has the key fold_in(key, k)."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(prompts)))
    return system.generate(weights, [Request(prompt) for prompt in prompts], keys, given or {})
