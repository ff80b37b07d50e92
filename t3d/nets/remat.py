"""What of a module is computed again in the backward pass, by one word: a config's `remat`.

| remat | kept of each module | computed again |
|---|---|---|
| false | all that its gradient reads | nothing |
| 'products' | its inputs, and what matrix products and convolutions give | norms, activations, attention's logits and weights |
| true | its inputs | all |
"""

import jax
from flax import linen as nn
from jax import lax

PRODUCTS = 'products'


def again(module: type[nn.Module], remat: bool | str) -> type[nn.Module]:
    """The module class, of which in the backward pass is computed again what `remat` says: True, False or 'products'."""
    if remat == PRODUCTS:
        return nn.remat(module, policy=_products)
    return nn.remat(module) if remat else module


def _products(primitive, *avals, **parameters) -> bool:
    """Whether a result is kept: of convolutions, and of products without a batch, which are those with weights."""
    of_weights = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    called = parameters.get('call_jaxpr')  # of a function with a gradient of its own, as nets.convolution is
    inside = [equation.primitive for equation in called.eqns] if called is not None else []
    return lax.conv_general_dilated_p in (primitive, *inside) or of_weights(primitive, *avals, **parameters)
