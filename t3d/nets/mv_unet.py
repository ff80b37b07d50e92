"""The multi-view UNet: Stable Diffusion's UNet over several views of one object at once, by config in three forms.

| form | views see each other by | camera enters by | source |
|---|---|---|---|
| `dense` | self attention over the positions of all views | the time embedding | MVDream, arXiv 2308.16512, Sec. 3.1, 3.2 |
| `masked` | the same, along epipolar lines | the time embedding, Plücker coordinates | SPAD, arXiv 2402.05235, Sec. 3.2, 3.3 |
| `epipolar` | epipolar consistency blocks | the time embedding, points of the rays | Guided multi-view diffusion, Sec. 3.2 |

No form changes a weight of the UNet that it grows out of: `graft` takes a text-to-image UNet's weights over, and with one view
and no camera the network is that UNet. The number of views is free at every call. The network knows no camera; `ViewInputs`
are arrays that `t3d.fields.view_inputs` makes of cameras.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from t3d.core import tree
from t3d.core.errors import UsageError
from t3d.core.typing import Array, Bool, Float, PyTree, Shaped, typechecked
from t3d.nets import convolution, view_attention
from t3d.nets.epipolar_block import EpipolarBlock
from t3d.nets.unet import Time, UNet
from t3d.nets.unet_blocks import (
    TRANSFORMER_EPSILON,
    Attention,
    FeedForward,
    Masked,
    Options,
    group_norm,
    layer_norm,
)

SHARDING = (  # before the rules of the plain UNet
    (r'camera_embedding/linear_1/kernel$', P('fsdp', 'tensor')),
    (r'camera_embedding/linear_2/kernel$', P('tensor', 'fsdp')),
    (r'epipolar/(to_q|to_k|to_v|to_q_ray|to_k_ray|to_v_ray|mlp_in)/kernel$', P('fsdp', 'tensor')),
    (r'epipolar/(to_out|to_out_views|mlp_out)/kernel$', P('tensor', 'fsdp')),
)
FORMS = ('dense', 'masked', 'epipolar')
VIEW_AXES = ('', 'fsdp', 'tensor')  # mesh axes that views can lie on
PLUCKER = 6  # coordinates of a ray


class ViewInputs(NamedTuple):
    """What a network is told of the cameras of [B, V] views; None for what its form does not read.

    Attributes:
      camera: [B, V, K], for the time embedding.
      plucker: [B, V, H, W, 6] of the rays through the positions of the input.
      masks: {'h x w': bool [B, V h w, V h w]} for each level.
      rays: {'h x w': RayPoints [B, V]} for each level that has epipolar blocks.
      keep: [B, V] bool, False where the camera's embedding is left out; None keeps all.
    """

    camera: jax.Array | None = None
    plucker: jax.Array | None = None
    masks: dict | None = None
    rays: dict | None = None
    keep: jax.Array | None = None


NO_VIEWS = ViewInputs()  # the 2D mode
LECUN = nn.initializers.lecun_normal()


class Context(NamedTuple):
    """What the transformers of a multi-view UNet read."""

    text: jax.Array | Masked  # [B, N, D], one for each object
    views: ViewInputs


class Settings(NamedTuple):
    """Of the transformers."""

    form: str
    plucker: bool  # coordinates join the map
    blocks: bool  # epipolar consistency blocks at this level
    view_axis: str  # mesh axis of the views, '' for none


def level_name(height: int, width: int) -> str:
    """The key of a level in `ViewInputs`."""
    return f'{height} x {width}'


class ViewTransformerBlock(nn.Module):
    """Self attention over one or all views, cross attention to the text, the epipolar block, feed-forward."""

    heads: int
    options: Options

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'n h w c'], context: Context) -> Float[Array, 'n h w c']:
        options, settings = self.options, self.options.settings
        count, height, width, channels = x.shape
        features = context.text.features if isinstance(context.text, Masked) else context.text
        objects, level = features.shape[0], level_name(height, width)
        views = count // objects
        axis = view_attention.axis_of(settings.view_axis, views)
        joint = (objects, views * height * width, channels)
        alone = (count, height * width, channels)
        h = view_attention.constrain(x, objects, axis).reshape(alone)
        y = layer_norm(options, 'norm1')(h)
        if settings.form == 'epipolar':
            y = Attention(self.heads, options, name='attn1')(y.reshape(alone))
        else:
            mask = context.views.masks[level] if settings.form == 'masked' and context.views.masks is not None else None
            y = view_attention.JointAttention(self.heads, options, axis, name='attn1')(y.reshape(joint), mask)
        h = h.reshape(joint) + y.reshape(joint)
        h = h + Attention(self.heads, options, name='attn2')(layer_norm(options, 'norm2')(h), context.text)
        if settings.blocks and context.views.rays is not None:
            block = EpipolarBlock(self.heads, options.dtype, axis, name='epipolar')
            h = block(h.reshape(x.shape), context.views.rays[level]).reshape(joint)
        h = h + FeedForward(options.dtype, name='ff')(layer_norm(options, 'norm3')(h))
        return view_attention.constrain(h.reshape(x.shape), objects, axis)


class ViewTransformer(nn.Module):
    """`unet_blocks.Transformer` for maps [B V, h, w, C] of several views."""

    heads: int
    options: Options

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'n h w c'], context: Context) -> Float[Array, 'n h w c']:
        options, channels = self.options, x.shape[-1]

        def project(name, value, kernel_init=LECUN):
            if options.linear:
                return nn.Dense(channels, dtype=options.dtype, kernel_init=kernel_init, name=name)(value)
            return convolution.layer(channels, (1, 1), dtype=options.dtype, kernel_init=kernel_init, name=name)(value)

        h = group_norm(options, TRANSFORMER_EPSILON, 'norm')(x)
        if options.settings.plucker:
            h = project('proj_in', jnp.concatenate([h, self.plucker(h, context.views.plucker)], -1), zero_rows(PLUCKER))
        else:
            h = project('proj_in', h)
        h = ViewTransformerBlock(self.heads, options, name='transformer_blocks_0')(h, context)
        return x + project('proj_out', h)

    def plucker(self, h, coordinates):
        """[B V, h, w, 6], resized to the map; zeros where no camera is given."""
        shape = (*h.shape[:3], PLUCKER)
        if coordinates is None:
            return jnp.zeros(shape, h.dtype)
        flat = coordinates.reshape(-1, *coordinates.shape[-3:])
        return jax.image.resize(flat, shape, 'bilinear', antialias=False).astype(h.dtype)


def zero_rows(count: int):
    """A kernel initialiser whose last `count` inputs have no weight: what they say is learned from nothing."""

    def init(key, shape, dtype=jnp.float32):
        kernel = LECUN(key, (*shape[:-2], shape[-2] - count, shape[-1]), dtype)
        return jnp.concatenate([kernel, jnp.zeros((*shape[:-2], count, shape[-1]), dtype)], -2)

    return init


class MultiViewUNet(UNet):
    """A `UNet` over views.

    Attributes of ours:
      form: 'dense', 'masked' or 'epipolar'.
      camera: numbers that describe a camera, K of ViewInputs.camera; 0 for none.
      camera_zero: the camera's embedding starts at zero (SPAD) instead of anywhere (MVDream).
      plucker: Plücker coordinates join the map before each transformer.
      block_levels: levels, 0 the finest, with epipolar consistency blocks.
      view_axis: the axis of the context's mesh ('tensor' or 'fsdp') that the views of an object are spread over, for more of
        them than one device holds; '' keeps an object on one device.
    """

    form: str = 'dense'
    camera: int = 16
    camera_zero: bool = False
    plucker: bool = False
    block_levels: tuple[int, ...] = ()
    view_axis: str = ''

    def check(self) -> None:
        """Raises UsageError if the attributes do not fit each other."""
        super().check()
        if self.form not in FORMS:
            raise UsageError(f'form={self.form!r}: wanted one of {", ".join(FORMS)}.')
        if self.view_axis not in VIEW_AXES:
            raise UsageError(f"view_axis={self.view_axis!r}: wanted 'fsdp', 'tensor', or '' for objects whole on each device.")
        levels = len(self.block_out_channels)
        if self.form == 'epipolar' and not self.block_levels:
            raise UsageError("form='epipolar' with block_levels=(): no view would see another; name a level, 0 is the finest.")
        if any(not 0 <= level < levels for level in self.block_levels):
            raise UsageError(f'block_levels={tuple(self.block_levels)}: wanted levels from 0 to {levels - 1}.')

    def options_of(self, level: int) -> Options:
        """What the blocks of a level share; the middle is of the last one."""
        blocks = self.form == 'epipolar' and level in self.block_levels
        settings = Settings(self.form, self.plucker, blocks, self.view_axis)
        return self.options(self.per_level('remat')[level])._replace(transformer=ViewTransformer, settings=settings)

    @nn.compact
    @typechecked
    def __call__(
        self,
        latents: Float[Array, 'b v h w c'],
        t: Time | Shaped[Array, 'b v'],
        text: Float[Array, 'b n d'],
        views: ViewInputs = NO_VIEWS,
        mask: Bool[Array, 'b n'] | None = None,
    ) -> Float[Array, 'b v h w o']:
        """Args:
          latents: noisy, [B, V, H, W, in_channels].
          t: diffusion time, scalar, [B] or [B, V].
          text: features [B, N, cross_attention_dim], one text for all views of an object.
          views: of the cameras; the empty one is the 2D mode, in which views should be one.
          mask: [B, N] bool, True for the tokens that count.
        Returns: [B, V, H, W, out_channels], float32.
        """
        self.check_views(latents, text)
        objects, count = latents.shape[:2]
        t = jnp.asarray(t, jnp.float32)
        t = jnp.broadcast_to(t[:, None] if t.ndim == 1 else t, (objects, count)).reshape(-1)
        embedding = None
        if views.camera is not None and self.camera:
            last = {'kernel_init': nn.initializers.zeros} if self.camera_zero else {}
            embedding = CameraEmbedding(4 * self.block_out_channels[0], last, name='camera_embedding')(
                views.camera.reshape(objects * count, -1).astype(jnp.float32)
            )
            embedding = embedding if views.keep is None else jnp.where(views.keep.reshape(-1, 1), embedding, 0.0)
        temb = self.temb(t, objects * count, embedding)
        text = text.astype(self.dtype) if mask is None else Masked(text.astype(self.dtype), mask)
        axis = view_attention.axis_of(self.view_axis, count)
        flat = view_attention.constrain(latents.reshape(-1, *latents.shape[2:]), objects, axis)
        return self.denoise(flat, temb, Context(text, views)).reshape(*latents.shape[:-1], -1)

    def check_views(self, latents, text) -> None:
        """Raises UsageError if the inputs are not of this network."""
        if latents.ndim != 5:
            raise UsageError(f'latents of shape {latents.shape}: wanted [B, V, H, W, {self.in_channels}].')
        self.check_call(latents[:, 0], text)


class CameraEmbedding(nn.Module):
    """Linear, SiLU, linear, float32: MVDream's and SPAD's `camera_embed`."""

    width: int
    last: dict

    @nn.compact
    @typechecked
    def __call__(self, x: Float[Array, 'n k']) -> Float[Array, 'n e']:
        return nn.Dense(self.width, name='linear_2', **self.last)(nn.silu(nn.Dense(self.width, name='linear_1')(x)))


def graft(params: PyTree, plain: PyTree) -> PyTree:
    """Parameters of a multi-view UNet with all weights of a plain one; new rows of kernels are zero, new layers as they are.

    Args:
      params: of a MultiViewUNet, as `init` makes them.
      plain: of the UNet that it grows out of.
    Raises:
      UsageError: `plain` has an array that `params` has no place for.
    """
    ours, theirs = tree.flatten(params), tree.flatten(plain)
    for name, leaf in theirs.items():
        if name not in ours:
            raise UsageError(f'{name} of the text-to-image UNet has no place in this one: make `unet` of the same sizes.')
        shape = ours[name].shape
        if name.endswith('proj_in/kernel') and shape[-2] == leaf.shape[-2] + PLUCKER:
            leaf = jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 2) + [(0, PLUCKER), (0, 0)])
        if shape != leaf.shape:
            raise UsageError(
                f'{name} has shape {leaf.shape} in the text-to-image UNet and {shape} here: make `unet` of the same sizes.'
            )
        ours[name] = leaf
    return tree.unflatten(ours)
