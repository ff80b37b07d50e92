"""An evaluator of somebody's own: how many splats are alive."""

import jax
import numpy as np

PAIRED, CAPTIONED = False, True


def evaluate(loaded, log, *, limit=None, split=None):
    (output,) = loaded.generate(['a red cube'], jax.random.key(0)[None])
    return {'alive': int(np.sum(output.alive)), 'alive_n': len(output.alive)}
