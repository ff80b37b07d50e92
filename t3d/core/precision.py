"""In which number format a system keeps, computes and hands on its numbers: one policy, made of the config's `dtype`.

- Parameters, their averages and the optimizer's state are float32, whatever the `dtype`: Flax makes them so, and no cast of a
  step reaches what is kept. So a checkpoint has the same arrays with any `dtype`, and may be read with another.
- Products and activations of networks have the format `compute`. Each network is made with it, and casts what comes in.
- Within a network, sums that need the digits are float32: logits of attention, means and variances of norms, phases of time.
- What a network hands on has the format `output`, float32, and so have planes, fields, renders, samplers and losses behind it.

A network may keep parts in float32 for reasons of its own, which its docstring gives: the backbone of EG3D's generator, whose
planes are unbounded, and the lower resolutions of its discriminator. Given models compute as they were opened. Losses are not
scaled, so gradients in float16 may vanish: bfloat16 is the one to train in.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Policy(NamedTuple):
    """The formats of a system's numbers.

    Attributes:
      compute: of products and activations of the networks: float32, bfloat16 or float16.
      output: of what the networks hand on.
    """

    compute: np.dtype
    output: np.dtype = np.dtype(np.float32)


def policy(config) -> Policy:
    """The policy of a config, by its `dtype`; float32 where it has none."""
    return Policy(jnp.dtype(config.get('dtype', 'float32')))


def result(policy: Policy, x: jax.Array) -> jax.Array:
    """What a network hands on, in the policy's format."""
    return x.astype(policy.output)
