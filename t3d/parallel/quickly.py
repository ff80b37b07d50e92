"""Programs that run rarely, compiled in the least time: the draws a state begins with, the digests of a checkpoint."""

import functools

import jax

# XLA's options for a CPU, where making machine code well takes several times as long: hundreds of small loops, each run once.
OPTIONS = {
    'xla_backend_optimization_level': 0,
    'xla_cpu_opt_preset': 'CPU_OPT_PRESET_FAST_COMPILE',
    'xla_cpu_use_fusion_emitters': False,
}


def jit(function, **kwargs):
    """`jax.jit`, with machine code that takes little to make where the default backend is a CPU.

    Sums of floating-point numbers may round otherwise than in a program of `jax.jit`; integers do not.
    """
    options = OPTIONS if jax.default_backend() == 'cpu' and _known() else None
    return jax.jit(function, compiler_options=options, **kwargs)


@functools.cache
def _known() -> bool:
    """False for a jaxlib that has not got the options."""
    try:
        jax.jit(lambda: 0, compiler_options=OPTIONS)()
    except jax.errors.JaxRuntimeError as error:
        if 'option' not in str(error):
            raise
        return False
    return True
