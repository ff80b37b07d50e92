"""What `t3d bench render` times: the triplane renderer on random planes, forward and with its gradients, on all devices.

A batch that divides over the devices is spread over them, each with its own examples, the gradients of the parameters averaged:
as on the data axis of a training mesh; `JAX_NUM_CPU_DEVICES=2 t3d bench render --sizes tiny` keeps two cores busier than one
device does.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t3d.core import prng
from t3d.fields import triplane_field
from t3d.geom import cameras, triplanes, volume

# size: batch, image side, plane side R, plane channels C, coarse and fine samples, features out (performance.md's workloads)
SHAPES = {
    'tiny': {'batch': 4, 'image': 32, 'size': 32, 'channels': 16, 'coarse': 16, 'fine': 16, 'outputs': 16},
    '64': {'batch': 1, 'image': 64, 'size': 256, 'channels': 32, 'coarse': 48, 'fine': 48, 'outputs': 32},
    '128': {'batch': 1, 'image': 128, 'size': 256, 'channels': 32, 'coarse': 48, 'fine': 48, 'outputs': 32},
}
CAMERA = {'radius': 2.7, 'fov': 0.45, 'near': 2.0, 'far': 3.4, 'bound': 0.6, 'hidden': 64}


class Workload(NamedTuple):
    """Inputs of one size and the functions to time, all of (params, planes, key)."""

    args: tuple
    forward: object
    both: object
    lookup: object  # the forward pass's lookups alone
    rows: int  # rows of C gathered in a forward pass
    flops: float  # of the point MLP in a forward pass


def render_workload(shape: dict) -> Workload:
    """Random planes and weights; a fixed camera, the same rays for each example; see SHAPES. Spread over `devices_for`."""
    devices = devices_for(shape)
    batch = shape['batch'] // devices  # of one device
    rays = rays_of({**shape, 'batch': batch})
    params = triplane_field.init(
        prng.key(0), shape['channels'], hidden=CAMERA['hidden'], outputs=shape['outputs'], equalised=False
    )
    planes = jax.random.normal(prng.key(1), (shape['batch'], 3, shape['size'], shape['size'], shape['channels']), jnp.float32)

    def forward(params, planes, key):
        field = triplane_field.make(params, planes, bound=CAMERA['bound'], equalised=False)
        out = volume.render(
            field,
            rays,
            key,
            near=CAMERA['near'],
            far=CAMERA['far'],
            num_samples=shape['coarse'],
            num_importance=shape['fine'],
            density_activation=triplane_field.eg3d_density,
        )
        return out.features, out.opacity

    def both(params, planes, key):
        def loss(params, planes):
            features, opacity = forward(params, planes, key)
            return jnp.mean(features**2) + jnp.mean(opacity**2)

        to_params, to_planes = jax.grad(loss, (0, 1))(params, planes)
        return (to_params if devices == 1 else jax.lax.pmean(to_params, 'data')), to_planes / devices

    def lookup(params, planes, key):
        dist = jnp.linspace(CAMERA['near'], CAMERA['far'], shape['coarse'] + shape['fine'], dtype=jnp.float32)[:, None, None]
        points = (rays.origins[:, None] + dist * rays.directions[:, None]).reshape(batch, -1, 3)
        total = lambda params, rows: jnp.sum(jax.lax.optimization_barrier(rows), -1)  # whole rows first, as the MLP takes them
        return triplanes.map_sum(total, params, triplanes.pad(planes), points, CAMERA['bound'])

    points = shape['batch'] * shape['image'] ** 2 * (shape['coarse'] + shape['fine'])
    flops = 2.0 * points * CAMERA['hidden'] * (shape['channels'] + 1 + shape['outputs'])
    args = (params, planes, prng.key(2))
    if devices > 1:
        mesh = jax.make_mesh((devices,), ('data',))
        args = _place(args, mesh)
        out_specs = {
            forward: PartitionSpec('data'),
            both: (PartitionSpec(), PartitionSpec('data')),
            lookup: PartitionSpec('data'),
        }
        functions = [_spread(function, mesh, specs) for function, specs in out_specs.items()]
    else:
        functions = [forward, both, lookup]
    return Workload(args, *functions, 12 * points, flops)


def devices_for(shape: dict) -> int:
    """All devices if the batch divides over them, else one."""
    return jax.device_count() if shape['batch'] % jax.device_count() == 0 else 1


def _place(args, mesh):
    params, planes, key = args
    everywhere, split = (jax.sharding.NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ('data',)))
    return jax.device_put(params, everywhere), jax.device_put(planes, split), jax.device_put(key, everywhere)


def _spread(function, mesh, out_specs):
    """The function of (params, planes, key), each device with its own planes."""
    specs = (PartitionSpec(), PartitionSpec('data'), PartitionSpec())
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)


def rays_of(shape: dict):
    """The rays of one view [batch, image * image, 3], the same for each example."""
    rays = cameras.rays(cameras.orbit(0.3, 0.2, CAMERA['radius'], CAMERA['fov']), shape['image'], shape['image'])
    return jax.tree.map(lambda leaf: jnp.tile(leaf.reshape(1, -1, 3), (shape['batch'], 1, 1)), rays)
