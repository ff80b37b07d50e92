"""Text to several views of one object: multi-view diffusion.

    t3d train configs/mvdiffusion.py:tiny
    t3d train configs/mvdiffusion.py:tiny_masked        (SPAD's form)
    t3d train configs/mvdiffusion.py:tiny_epipolar      (epipolar consistency blocks)

| variant | data | network | where |
|---|---|---|---|
| `tiny`, `tiny_masked`, `tiny_epipolar` | toy, 4 views at 32 px | grown out of image_diffusion:tiny | two CPU cores, an hour |
| `furniture` | furniture, 4 views at 32 px | as `tiny`, from a run of image_diffusion:furniture | two CPU cores, hours |
| `base` | furniture, 4 views at 64 px | 128-512 channels | one large GPU |
| `pod` | furniture, or `data.name=posed data.path=DIR` | MVDream of Stable Diffusion 2.1, 867.6 M | v5e-64 or 32 x H100 class |
| `pod_masked`, `pod_epipolar` | the same | Stable Diffusion 1.5 as SPAD, or with epipolar blocks | the same |
"""

import ml_collections

from configs import common


def get_config(variant: str = 'tiny') -> ml_collections.ConfigDict:
    """The config of a variant; every number a run depends on."""
    variants = {
        'tiny': tiny,
        'tiny_masked': tiny_masked,
        'tiny_epipolar': tiny_epipolar,
        'furniture': furniture,
        'base': base,
        'pod': pod,
        'pod_masked': pod_masked,
        'pod_epipolar': pod_epipolar,
    }
    if variant not in variants:
        raise ValueError(f'unknown variant {variant!r} of mvdiffusion: there are {", ".join(variants)}')
    return variants[variant]().lock()


def tiny() -> ml_collections.ConfigDict:
    config = common.defaults()
    config.system = 'mvdiffusion'
    config.variant = 'tiny'
    config.steps = 6_000
    config.batch = 8  # objects, of data.views views each
    config.accumulate = 1  # parts of the batch, one after the other: memory of a part, gradients of the whole
    config.dtype = 'float32'
    config.given = {'prior': 'image_diffusion-toy', 'clip': ''}  # prior '' learns from nothing; clip: pictures beside prompts
    config.start = True  # from the weights of the prior's UNet
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
        attention_head_dim=4,
        cross_attention_dim=64,
        norm_num_groups=16,
        use_linear_projection=True,
        attention_levels=(True, True),
        attention='xla',  # 'flash': the kernel for TPUs, where maps are large (nets/flash_attention.py)
    )
    config.patch = 4
    config.remat = False  # True: ResNets and transformers are computed again in the backward pass
    config.views = dict(
        form='dense',  # 'dense' (MVDream), 'masked' (SPAD), 'epipolar'
        camera='mvdream',  # 'mvdream', 'spad', 'spad_relative', '' for none
        camera_zero=False,
        plucker=False,
        masks='geometric',  # or 'spad_legacy'
        line_width=1.5,  # positions about an epipolar line
        block_levels=(),  # levels with epipolar blocks, 0 the finest
        axis='',  # mesh axis over which the views of an object are spread: 'tensor', 'fsdp'; '' for none, as up to 8 views want
        samples=16,  # points of a ray, between `reach` before and behind the middle of the box
        reach=1.0,
    )
    config.diffusion = dict(schedule='cosine', timesteps=1000, prediction='v', min_snr=5.0, least_snr=1.0)  # 3 without a prior
    config.drop_text, config.drop_camera, config.drop_image = 0.1, 0.0, 0.5
    config.flat_share = 0.2  # of the steps learn from single pictures without cameras
    config.sample = dict(steps=25, guidance=1.0, rescale=0.0, views=4, elevation=0.3)
    config.render = dict(background=1.0, radius=3.2, fov=0.7027699)
    config.optimizer = dict(learning_rate=1e-3, warmup=200, final=0.05, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01, clip=1.0)
    config.optimizer.kernels = 'adam'  # or 'muon' (core/muon.py)
    config.staged = dict(
        unfreeze_at=200, old_rate=1.0
    )  # new layers alone until then; then the others, at this share of the rate
    config.ema_decay = 0.999
    config.data = dict(
        name='toy',
        kind='views',
        rig='canonical',  # front, right, back, left
        elevation=(0.0, 0.5235988),  # radians, MVDream's 0 to 30 degrees
        split='train',
        scenes='singles',
        size=32,
        views=4,
        poses=256,
        seed=0,
        supersample=3,
        path='',
        train_views=0,
        variants=0,
    )
    config.preview = dict(rows=8, views=4, columns='4 generated views, 4 true')
    config.preview_every = 1000
    config.checkpoint.every = 500
    config.saves_memory = ('batch', 'remat')
    config.evaluate = ('view_sets',)
    config.export = dict(prompts=('a red cube', 'a purple sphere', 'a small green cone'), lift='configs/reconstruct.py:tiny')
    return config


def tiny_masked() -> ml_collections.ConfigDict:
    config = tiny()
    config.variant = 'tiny_masked'
    config.views.update(form='masked', camera='spad', camera_zero=True, plucker=True)
    return config


def tiny_epipolar() -> ml_collections.ConfigDict:
    config = tiny()
    config.variant = 'tiny_epipolar'
    config.views.update(form='epipolar', block_levels=(0, 1), samples=8)
    return config


def furniture() -> ml_collections.ConfigDict:
    """Real objects at the size of `tiny`, from given.prior=RUN of configs/image_diffusion.py:furniture, or from nothing."""
    config = tiny()
    config.variant = 'furniture'
    config.diffusion.update(prediction='x0')
    config.given.prior = ''
    config.text.update(length=14, width=128)
    config.unet.update(cross_attention_dim=128)
    config.sample.guidance = 2.0
    config.data.update(name='furniture', rig='free', size=32, train_views=12)
    config.evaluate = ('captioned_views',)
    config.export.update(prompts=('a chair', 'a table', 'a sofa'))
    return config


def base() -> ml_collections.ConfigDict:
    config = tiny()
    config.variant = 'base'
    config.dtype = 'bfloat16'
    config.given.prior = ''
    config.start = False
    config.patch = 2
    config.steps = 100_000
    config.batch = 64
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
    config.sample.update(steps=50, guidance=5.0, rescale=0.5)
    config.data.update(name='furniture', rig='free', size=64, train_views=12, variants=7)
    config.evaluate = ()
    config.export.update(prompts=('a chair', 'a table', 'a sofa'), lift='configs/reconstruct.py:base')
    return config


def pod() -> ml_collections.ConfigDict:
    """MVDream of Stable Diffusion 2.1 at 256 pixels: 1,024 objects of 4 views (arXiv 2308.16512, Sec. 4)."""
    config = base()
    config.variant = 'pod'
    config.patch = 1
    config.steps = 50_000
    config.batch = 1024
    config.remat = True
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
    config.flat_share = 0.3
    config.optimizer.update(learning_rate=1e-4, warmup=1000)
    config.staged.update(unfreeze_at=0, old_rate=1.0)
    config.sample.update(guidance=7.5)
    config.data.update(size=32)  # latents of 256 pixels; with a Stable Diffusion folder as given.prior set data.size=256
    config.mesh.update(data=-1, fsdp=8)
    return config


def pod_masked() -> ml_collections.ConfigDict:
    """SPAD of Stable Diffusion 1.5 (arXiv 2402.05235, Sec. 4)."""
    config = pod()
    config.variant = 'pod_masked'
    config.text.update(width=768, layers=12, heads=12, activation='quick_gelu')
    config.unet.update(attention_head_dim=(8, 8, 8, 8), cross_attention_dim=768, use_linear_projection=False)
    config.views.update(form='masked', camera='spad', camera_zero=True, plucker=True)
    config.staged.update(unfreeze_at=5_000, old_rate=0.2)
    config.sample.update(steps=100)
    return config


def pod_epipolar() -> ml_collections.ConfigDict:
    """Stable Diffusion 1.5 with epipolar consistency blocks at the two middle levels."""
    config = pod_masked()
    config.variant = 'pod_epipolar'
    config.views.update(form='epipolar', camera='mvdream', camera_zero=False, plucker=False, block_levels=(1, 2), samples=16)
    return config
