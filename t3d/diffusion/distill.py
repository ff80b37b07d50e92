"""stub until the real one lands"""
from typing import NamedTuple
import jax, jax.numpy as jnp
from t3d.diffusion import schedules
class Aux(NamedTuple):
    not_finite: jax.Array
def inner(g, z):
    return jnp.sum(jax.lax.stop_gradient(g)*z.astype(jnp.float32))/z.shape[0]
def uniform_times(keys, length, low, high):
    u=jax.vmap(lambda k: jax.random.uniform(k,(),jnp.float32))(keys)
    lo=jnp.round(low*length); hi=jnp.minimum(jnp.round(high*length), length-1)
    return jnp.floor(lo+u*(hi-lo+1)).astype(jnp.int32)
def sds_gradient(denoise, schedule, z, t, noise, weighting):
    z=jax.lax.stop_gradient(z); x=schedules.q_sample(schedule,z,t,noise)
    eps=schedules.to_eps(schedule,denoise(x,t),x,t)
    sig,sgm=schedules.levels_like(schedule,t,z)
    w={'sds':sgm**2,'uniform':1.0,'fantasia3d':sig*sgm**2}[weighting]
    g=w*(eps-noise); bad=~jnp.isfinite(g)
    return jnp.where(bad,0,g),Aux(jnp.sum(bad))
def x0_gradient(denoise, schedule, z, t, noise, rescale):
    z=jax.lax.stop_gradient(z); x=schedules.q_sample(schedule,z,t,noise)
    x0=schedules.to_x0(schedule,denoise(x,t),x,t)
    g=z-x0; bad=~jnp.isfinite(g)
    return jnp.where(bad,0,g),Aux(jnp.sum(bad))
