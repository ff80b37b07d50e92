"""Text-to-image diffusion in pixel space: the small prior for score distillation and for guided multi-view sampling.

    t3d train configs/image_diffusion.py:tiny

| variant | data | network | where |
|---|---|---|---|
| `tiny` | toy, single objects, 32 px | SD-shaped UNet on 4 x 4 patches, 64-96 channels | two CPU cores, an hour |
| `patterns` | toy with stripes, checks and dots, 32 px | as `tiny` | two CPU cores, an hour |
| `furniture` | furniture, 32 px | as `tiny`, text 128 wide | two CPU cores, an hour |
| `base` | furniture, 64 px | 128-512 channels | one large GPU |
| `pod` | furniture, 64 px, batch 2,048 | Stable Diffusion 2.1's, pixels in place of latents | v5e-64 or 32 x H100 class |
"""

import ml_collections

from configs import common


def get_config(variant: str = 'tiny') -> ml_collections.ConfigDict:
    """The config of a variant; every number a run depends on."""
    variants = {'tiny': tiny, 'patterns': patterns, 'furniture': furniture, 'base': base, 'pod': pod}
    if variant not in variants:
        raise ValueError(f'unknown variant {variant!r} of image_diffusion: there are {", ".join(variants)}')
    return variants[variant]().lock()


def tiny() -> ml_collections.ConfigDict:
    config = common.defaults()
    config.system = 'image_diffusion'
    config.variant = 'tiny'
    config.steps = 8_000
    config.batch = 32
    config.accumulate = 1  # parts of the batch, one after the other: memory of a part, gradients of the whole
    config.dtype = 'float32'
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
    )
    config.unet = dict(
        block_out_channels=(64, 96),
        layers_per_block=1,
        attention_head_dim=4,  # the number of heads, as diffusers has it
        cross_attention_dim=64,
        norm_num_groups=16,
        use_linear_projection=True,
        attention_levels=(True, True),
        attention='xla',  # 'flash': the kernel for TPUs, where maps are large (nets/flash_attention.py)
    )
    config.patch = 4  # pixels per side that the network sees as one
    config.diffusion = dict(schedule='cosine', timesteps=1000, prediction='v', min_snr=5.0, least_snr=0.0)
    config.drop_text = 0.1  # share of examples trained without their text, for guidance
    config.sample = dict(steps=25, guidance=1.0)  # 1: none; toy's captions are obeyed without, and above 2 less so
    config.render = dict(background=1.0)
    config.optimizer = dict(learning_rate=1e-3, warmup=200, final=0.05, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01, clip=1.0)
    config.optimizer.kernels = 'adam'  # or 'muon' (core/muon.py)
    config.ema_decay = 0.999
    config.data = dict(
        name='toy',
        kind='views',
        split='train',
        scenes='singles',
        size=32,
        views=1,
        poses=256,
        seed=0,
        supersample=3,
        path='',
        layout='auto',  # this and the next two: of posed pictures
        fit='auto',
        views_kept=0,
        train_views=0,
        variants=0,
    )
    config.preview = dict(rows=8, views=1, columns='4 samples')
    config.preview_every = 1000
    config.checkpoint.every = 1000
    config.evaluate = ('toy_pictures',)
    config.export = dict(prompts=('a red cube', 'a purple sphere', 'a small green cone'))
    return config


def patterns() -> ml_collections.ConfigDict:
    """Objects that are striped, checked, dotted or plain: the 2D model whose texture joint sampling lends to a plain one."""
    config = tiny()
    config.variant = 'patterns'
    config.diffusion.update(prediction='x0', least_snr=1.0)  # 48 numbers of noise a patch do not pass through 64 channels
    config.steps = 10_000
    config.data.update(name='toy_patterns', poses=64, patterns=('plain', 'stripes', 'checks', 'dots'))
    config.evaluate = ('pattern_pictures',)
    config.export.update(prompts=('a striped red cube', 'a checked purple sphere', 'a dotted green cone'))
    return config


def furniture() -> ml_collections.ConfigDict:
    """Real objects, as small as `tiny`: what the multi-view model of mvdiffusion:furniture grows out of."""
    config = tiny()
    config.variant = 'furniture'
    config.diffusion.update(prediction='x0', least_snr=1.0)  # 48 numbers of noise a patch do not pass through 64 channels
    config.text.update(length=14, width=128)
    config.unet.update(cross_attention_dim=128)
    config.sample.guidance = 2.0
    config.data.update(name='furniture', size=32, train_views=12)
    config.evaluate = ('captioned_pictures',)
    config.export.update(prompts=('a chair', 'a table', 'a sofa'))
    return config


def base() -> ml_collections.ConfigDict:
    config = tiny()
    config.variant = 'base'
    config.dtype = 'bfloat16'
    config.patch = 2
    config.steps = 200_000
    config.batch = 256
    config.text.update(length=14, open_vocabulary=True, width=512, layers=6, heads=8)
    config.unet.update(
        block_out_channels=(128, 256, 512),
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=512,
        norm_num_groups=32,
        attention_levels=(False, True, True),
    )
    config.optimizer.update(learning_rate=2e-4, warmup=2000)
    config.ema_decay = 0.9999
    config.sample.update(steps=50, guidance=5.0)
    config.data.update(name='furniture', size=64, train_views=12, variants=7)
    config.evaluate = ('captioned_pictures',)
    config.export.update(prompts=('a chair', 'a table', 'a sofa'))
    return config


def pod() -> ml_collections.ConfigDict:
    """The network of Stable Diffusion 2.1 (865.9 M parameters) on 64 x 64 pixels in place of latents."""
    config = base()
    config.variant = 'pod'
    config.batch = 2048
    config.patch = 1
    config.text.update(length=77, width=1024, layers=23, heads=16, activation='gelu', embedding_scale=0.02)
    config.unet = dict(
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024,
        norm_num_groups=32,
        use_linear_projection=True,
        attention_levels=(True, True, True, False),
        attention='xla',
    )
    config.optimizer.update(learning_rate=1e-4)
    config.mesh.update(data=-1, fsdp=8)
    return config
