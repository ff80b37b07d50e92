"""RenderDiffusion with text, GANFusion's baseline: diffusion of pictures through planes that are rendered at each step.

    t3d train configs/renderdiffusion.py:tiny

| variant | data | network | where |
|---|---|---|---|
| `tiny` | toy, one view a record, 64 px on grey | 4.5 M, 16 x 16 positions, planes 32 x 32 x 8 | two CPU cores, an hour |
| `endless` | toy_endless: 16,384 different objects, one view of each, 64 px on grey | as `tiny` | the same |
| `furniture` | furniture, one view of each colour variant, 64 px on grey | 4.6 M, planes 32 x 32 x 12 | two CPU cores |
| `base` | furniture, one view of each variant, 256 px | 332 M, planes 128 x 128 x 32 | one large GPU |
| `pod` | the same, batch 1,024 | 898 M, planes 256 x 256 x 32 | v5e-64 or 32 x H100 class |

Parameters are matched to GANFusion's, denoiser and generator of the same variant together (4.19 + 0.31, 306.9 + 24.0,
868.3 + 29.6 M; text towers are alike and not counted), to 0.5 %, by the widths of the levels. The renderer takes as many
samples a ray. Compare at equal images seen: batch times steps here, the same over both stages there.
"""

import ml_collections

from configs import common


def get_config(variant: str = 'tiny') -> ml_collections.ConfigDict:
    """The config of a variant; every number a run depends on."""
    variants = {'tiny': tiny, 'endless': endless, 'furniture': furniture, 'base': base, 'pod': pod}
    if variant not in variants:
        raise ValueError(f'unknown variant {variant!r} of renderdiffusion: there are {", ".join(variants)}')
    return variants[variant]().lock()


def tiny() -> ml_collections.ConfigDict:
    config = common.defaults()
    config.system = 'renderdiffusion'
    config.variant = 'tiny'
    config.steps = 3_000
    config.batch = 32
    config.accumulate = 1  # parts of the batch, one after the other: memory of a part, gradients of the whole
    config.dtype = 'float32'
    config.remat = False
    config.text = dict(
        words=(),
        length=8,
        open_vocabulary=False,
        folder='',
        vocabulary_size=0,
        width=64,
        layers=2,
        heads=4,
        activation='quick_gelu',
        embedding_scale=1.0,
        frozen=False,
        mask=True,  # attend to nothing behind the end mark
    )
    config.patch = 4  # pixels per side that the network sees as one
    config.unet = dict(
        block_out_channels=(32, 68, 132),
        layers_per_block=1,
        attention_head_dim=4,  # the number of heads, as diffusers has it
        cross_attention_dim=64,
        norm_num_groups=4,
        use_linear_projection=True,
        attention_levels=(False, True, True),
        attention='xla',  # 'flash': the kernel for TPUs, where maps are large (nets/flash_attention.py)
    )
    config.camera_embedding = True
    config.planes = dict(resolution=32, channels=8, hidden=64)
    config.render = dict(
        samples=16, importance=16, plane_axes='orthogonal', box_warp=1.6, background=0.5, radius=3.2, fov=0.7027699
    )
    config.loss = dict(stride=4)  # one of stride x stride pixels is rendered in training
    config.diffusion = dict(schedule='cosine', timesteps=1000, min_snr=0.0)
    config.drop_text = 0.1  # share of examples trained without their text, for guidance
    config.sample = dict(steps=25, guidance=2.0, elevation=0.35)  # radians, of the front view that is sampled
    config.optimizer = dict(learning_rate=1e-3, warmup=200, final=0.05, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01, clip=1.0)
    config.optimizer.kernels = 'adam'  # or 'muon' (core/muon.py)
    config.ema_decay = 0.999
    config.data = dict(
        name='toy',
        kind='single_view',
        mode='posed-known',
        split='all',  # as the GAN's, whose samples stage 2 learns from
        scenes='singles',
        size=64,
        poses=64,
        seed=0,
        supersample=3,
        path='',
        layout='auto',  # this and the next two: of posed pictures
        fit='auto',
        views_kept=0,
        mirror=False,
        train_views=0,
        variants=0,
    )
    config.preview = dict(rows=8, views=4, elevation=0.35, columns='4 views of a sample')
    config.preview_every = 1000
    config.checkpoint.every = 1000
    config.evaluate = ('captioned_objects',)
    config.must_match = ('render.plane_axes', 'render.box_warp')
    config.saves_memory = ('batch', 'render.samples', 'remat')
    config.export = dict(
        prompts=('a red cube', 'a purple sphere', 'a small green cone'),
        formats=('glb',),
        texture=512,
        faces=10_000,
        grid=96,
        frames=120,
        size=512,
        render_size=128,
    )
    return config


def endless() -> ml_collections.ConfigDict:
    """As GANFusion's paper compares: no two pictures show one object."""
    config = tiny()
    config.variant = 'endless'
    config.text.length = 12  # two solids
    config.data.update(name='toy_endless', split='train', count=16_384)
    config.evaluate = ('endless_objects',)
    return config


def furniture() -> ml_collections.ConfigDict:
    config = tiny()
    config.variant = 'furniture'
    config.steps = 6_000
    config.text.update(length=14, open_vocabulary=True, width=128)
    config.unet.cross_attention_dim = 128
    config.planes.channels = 12
    config.render.update(box_warp=1.8, radius=3.5)
    config.data.update(name='furniture', split='train', variants=7, mirror=True)
    config.export.update(prompts=('a chair', 'a table', 'a sofa'))
    return config


def base() -> ml_collections.ConfigDict:
    config = furniture()
    config.variant = 'base'
    config.dtype = 'bfloat16'
    config.steps = 200_000
    config.batch = 64
    config.remat = True
    config.text.update(width=512, layers=6, heads=8)
    config.unet = dict(
        block_out_channels=(192, 384, 832, 768),
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=512,
        norm_num_groups=32,
        use_linear_projection=True,
        attention_levels=(False, True, True, False),
        attention='xla',
    )
    config.planes.update(resolution=128, channels=32)
    config.render.update(samples=48, importance=48)
    config.loss.update(stride=4)
    config.optimizer.update(learning_rate=1e-4, warmup=10_000, b2=0.999)
    config.ema_decay = 0.9999
    config.sample.update(steps=50, guidance=3.0)
    config.data.update(size=256)
    return config


def pod() -> ml_collections.ConfigDict:
    config = base()
    config.variant = 'pod'
    config.steps = 300_000
    config.batch = 1024
    config.text.update(length=77, width=768, layers=12, heads=12)
    config.unet.update(
        block_out_channels=(320, 672, 1312, 1280), cross_attention_dim=768, attention_levels=(True, True, True, False)
    )
    config.planes.update(resolution=256)
    config.loss.update(stride=4)
    config.mesh.update(data=-1, fsdp=8)
    return config
