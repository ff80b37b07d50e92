"""Attention layers against plain loops."""

import jax
import numpy as np

from t3d.nets import attention


def test_distance_attention_equals_a_loop():
    module = attention.DistanceAttention(heads=2)
    x = jax.random.normal(jax.random.key(0), (1, 4, 6))
    variables = module.init(jax.random.key(1), x)
    p = jax.tree.map(np.asarray, variables['params'])
    rows = np.asarray(x[0])
    rows = rows / np.sqrt(np.mean(rows**2, -1, keepdims=True)) * p['norm']['scale']
    qk, v = rows @ p['query_key']['kernel'], rows @ p['value']['kernel']
    out = np.zeros((4, 6))
    for head in range(2):
        part = slice(3 * head, 3 * head + 3)
        for i in range(4):
            keys = [p['null'][0, head]] + [qk[j, part] for j in range(4)]
            values = [p['null'][1, head]] + [v[j, part] for j in range(4)]
            logits = np.array([-np.linalg.norm(qk[i, part] - key) * 3**-0.5 for key in keys])
            logits[1 + i] = -1e2
            share = np.exp(logits - logits.max())
            out[i, part] = (share / share.sum()) @ np.array(values)
    np.testing.assert_allclose(module.apply(variables, x)[0], out @ p['out']['kernel'], atol=1e-5)
