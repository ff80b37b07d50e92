"""FLOPs of the Pallas kernels that t3d calls, which a compiled program does not show: by names in their metadata, and shapes.

A kernel is told by the first of KERNELS that its metadata has; any other counts nothing.
"""

import math
import re
from collections.abc import Sequence

from t3d.plan.hlo import Shape


def flops(rest: str, operands: Sequence[Shape], results: Sequence[Shape]) -> float:
    """FLOPs of one call on one device."""
    name = re.search(r'op_name="([^"]*)"', rest)
    count = next((count for part, count in KERNELS.items() if name and part in name[1]), None)
    return count(operands, results) if count else 0.0


def flash(products: int):
    """A pass of nets.flash_attention with so many products of queries and keys, over [B, heads, N, D] and [B, heads, M, D]."""
    return lambda operands, results: 2.0 * products * math.prod(operands[0].sizes) * operands[1].sizes[-2]


def fused_forward(operands, results) -> float:
    """fields.fused_render: level, origins, directions, depths [B, S, R], added, table [B, 3, W C, 3 H], the MLP's weights."""
    points, (kernel, _, out_kernel, _) = math.prod(operands[3].sizes), operands[6:10]
    return 2.0 * points * (math.prod(operands[5].sizes[1:]) + math.prod(kernel.sizes) + math.prod(out_kernel.sizes))


def fused_backward(operands, results) -> float:
    """Level, origins, directions, depths, the MLP's weights, ... -> gradients of the table [B, 3, W C, H], of the weights.

    The first in three bfloat16 products; the MLP again, and its two gradients.
    """
    points, (kernel, _, out_kernel, _) = math.prod(operands[3].sizes), operands[4:8]
    mlp = math.prod(kernel.sizes) + math.prod(out_kernel.sizes)
    return 2.0 * points * (3 * math.prod(results[0].sizes[1:]) + 3 * mlp)


KERNELS = {
    'flash_mha_bwd_dkv': flash(4),
    'flash_mha_bwd_dq': flash(3),
    'flash_attention': flash(2),
    'fused_render_forward': fused_forward,
    'fused_render_backward': fused_backward,
}
