"""CLIP's vision transformer (arXiv 2103.00020, Sec. 2.4) and the preparation of its images."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from t3d.core.typing import Array, Float, typechecked
from t3d.nets import clip, pil_resize

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's and OpenCLIP's training images, R G B in [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)

VISION = {  # attributes of VisionTower for released weights
    # OpenAI's ViT-L/14: 303,966,208 parameters. Zero-1-to-3, Point-E, Shap-E and Wonder3D read it.
    'L/14': dict(image=224, patch=14, width=1024, layers=24, heads=16, mlp_width=4096, projection=768, activation='quick_gelu'),
    # OpenCLIP's ViT-H/14: 632,076,800 parameters. ImageDream reads it.
    'H/14': dict(image=224, patch=14, width=1280, layers=32, heads=16, mlp_width=5120, projection=1024, activation='gelu'),
}


@flax.struct.dataclass
class VisionOutput:
    """What the vision tower says of B images of N patches."""

    hidden: jax.Array  # [B, 1 + N, width] of the last layer, class token first, before the last norm
    pooled: jax.Array  # [B, projection], or [B, width] where there is no projection; not normalised


class VisionTower(nn.Module):
    """Images to features.

    Attributes:
      image, patch: side of the image and of a patch in pixels; image / patch squared patches.
      width, layers, heads, mlp_width: of the transformer.
      projection: width of the space shared with text; 0 leaves the projection out, as CLIPVisionModel does.
      activation: 'quick_gelu' (OpenAI) or 'gelu' (OpenCLIP).
    """

    image: int
    patch: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    projection: int = 0
    activation: str = 'quick_gelu'
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    @typechecked
    def __call__(self, images: Float[Array, 'b h w 3']) -> VisionOutput:
        """images [B, image, image, 3] as `prepare` returns them.

        Raises:
          ValueError: another image size; positions are learned for one size only.
        """
        batch, height, width, _ = images.shape
        if (height, width) != (self.image, self.image):
            raise ValueError(
                f'images of {height} x {width} given, {self.image} x {self.image} wanted: use clip_vision.prepare.'
            )
        side = self.image // self.patch
        x = nn.Conv(
            self.width,
            (self.patch, self.patch),
            (self.patch, self.patch),
            padding='VALID',
            use_bias=False,
            dtype=self.dtype,
            name='patch_embedding',
        )(images).reshape(batch, side * side, self.width)
        normal = nn.initializers.normal
        first = self.param('class_embedding', normal(self.width**-0.5), (self.width,), jnp.float32)
        positions = self.param('position_embedding', normal(0.02), (1 + side * side, self.width), jnp.float32)
        first = jnp.broadcast_to(first.astype(self.dtype), (batch, 1, self.width))
        x = jnp.concatenate([first, x], 1) + positions.astype(self.dtype)  # [B, 1 + N, width]
        x = nn.LayerNorm(use_fast_variance=False, epsilon=1e-5, dtype=self.dtype, name='pre_norm')(x)
        x = clip.stack(self.layers, self.heads, self.mlp_width, self.activation, self.dtype, causal=False)(x)
        pooled = nn.LayerNorm(use_fast_variance=False, epsilon=1e-5, dtype=self.dtype, name='post_norm')(x[:, 0])
        if self.projection:
            pooled = nn.Dense(self.projection, use_bias=False, dtype=self.dtype, name='projection')(pooled)
        return VisionOutput(hidden=x, pooled=pooled)


def grid(output: VisionOutput) -> Float[Array, 'b n c']:
    """The patch tokens of the last layer, row by row, without the class token and without a norm.

    Source: the grid conditioning of Point-E and Shap-E (arXiv 2212.08751, Sec. 4.2; released code).
    """
    return output.hidden[:, 1:]


def prepare(images: Float[Array, 'b h w 3'], size: int = 224) -> Float[Array, 'b s s 3']:
    """Images in [0, 1] as the tower reads them: shorter side to `size` as PIL resizes, middle cropped, normalised.

    Images whose shorter side is `size` are not resized, and so not rounded to 8 bits either.
    """
    _, height, width, _ = images.shape
    if (height, width) != (size, size):
        short = min(height, width)
        height, width = height * size // short, width * size // short
        images = pil_resize.bicubic(images, height, width)
        top, left = (height - size) // 2, (width - size) // 2
        images = images[:, top : top + size, left : left + size]
    return (images - jnp.asarray(MEAN, images.dtype)) / jnp.asarray(STD, images.dtype)
