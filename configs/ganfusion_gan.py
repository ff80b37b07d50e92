"""GANFusion stage 1: a triplane GAN from one posed image of each object.

    t3d train configs/ganfusion_gan.py:tiny

| variant | data | generator / discriminator | where |
|---|---|---|---|
| `tiny` | toy, one view a record, 64 px on grey | 0.31 M / 0.31 M, planes 3 x 32 x 32 x 8 | two CPU cores, an hour |
| `endless` | toy_endless: 16,384 different objects, one view of each, 64 px | as `tiny` | the same |
| `furniture` | furniture, one view of each variant, 64 px | 0.58 M / 0.70 M, planes 3 x 32 x 32 x 12 | two CPU cores, an hour |
| `base` | furniture, 256 px | 24 M / 26 M, planes 3 x 128 x 128 x 32 | one large GPU |
| `ffhq` | an EG3D set of faces, 512 px | EG3D's released sizes and schedule | 8 large GPUs |
| `pod_256` | an EG3D set, 256 px, batch 256 | 29.3 M / 31.2 M, planes 3 x 256 x 256 x 32 | the same |
| `pod` | an EG3D set, 512 px, batch 256 | 30.7 M / 31.4 M, planes 3 x 256 x 256 x 32 | v5e-64 or 32 x H100 class |

`generator` and `render` are what stage 2 (configs/ganfusion_diffusion.py) takes over with the weights.
"""

import ml_collections

from configs import common


def get_config(variant: str = 'tiny') -> ml_collections.ConfigDict:
    """The config of a variant; every number a run depends on."""
    variants = {
        'tiny': tiny,
        'endless': endless,
        'furniture': furniture,
        'base': base,
        'ffhq': ffhq,
        'pod': pod,
        'pod_256': pod_256,
    }
    if variant not in variants:
        raise ValueError(f'unknown variant {variant!r} of ganfusion_gan: there are {", ".join(variants)}')
    return variants[variant]().lock()


def tiny() -> ml_collections.ConfigDict:
    """An hour of two cores: 192,000 pictures.

    What a million pictures changed on the way, and what rates that are low from the start do, is in docs/benchmarks.md.
    """
    config = small()
    config.variant = 'tiny'
    config.steps = 24_000
    config.micro_batch = 4
    config.generator.mapping_layers = 6
    config.discriminator.label_noise = 0.2
    config.ladder = ((0, 16), (108_000, 32))
    config.fakes = 'shared'
    config.average.images = 10_000
    config.data.poses = 256
    config.preview_every = 1000
    config.checkpoint.every = 500
    return config


def small() -> ml_collections.ConfigDict:
    """Every key, for 64 px and single views of the toy; the variants are made of it."""
    config = common.defaults()
    config.system = 'ganfusion_gan'
    config.variant = 'small'
    config.steps = 12_000
    config.batch = 8
    config.micro_batch = 8  # samples that share statistics and swap labels: divides the share of every device
    config.dtype = 'float32'  # of the upsampler and the discriminator's high resolutions; the backbone is float32 always
    config.generator = dict(
        z=64,
        w=64,
        mapping_layers=2,
        pose_conditioning=False,  # True where poses and looks go together (faces): with `swap`
        plane_resolution=32,
        plane_channels=8,
        channel_base=1024,
        channel_max=64,
        hidden=64,
        features=16,
        sr=dict(input_size=32, channels=(32, 16), ups=(False, True)),
        sr_style='unit',  # w, unit, ones_w, w_avg: what the upsampler is modulated by
        clamp=0.0,
    )
    config.discriminator = dict(
        channel_base=1024, channel_max=64, mapping_layers=2, group=4, pose=True, label_noise=1.0, clamp=0.0
    )
    config.render = dict(
        size=32,  # neural resolution: rays per side
        samples=16,
        importance=16,
        limits='box',  # 'fixed': between near and far
        near=0.0,
        far=0.0,
        box_warp=1.6,  # side of the box that the planes span, scene units
        plane_axes='orthogonal',
        background=0.5,
        radius=3.2,
        fov=0.7027699,
    )
    config.ladder = ()  # ((images shown, neural resolution), ...) where it grows
    config.fakes = 'new'  # of the discriminator; 'shared': those that the generator was just judged by, a render less
    config.average = dict(images=0, rampup=0.05)  # half-life of the generator's average in images, 0: by the batch
    config.r1 = dict(gamma=0.3, every=16)
    config.density = dict(weight=1.0, every=4)
    config.opacity = dict(weight=10.0, images=(40_000, 56_000))  # of the translucency: 0 up to the first, whole from the second
    config.blur = dict(sigma=2.0, images=3_000)
    config.swap = dict(p=0.5, images=1_000_000)
    config.augment = dict(on=False, p=0.0, images=500_000)
    config.optimizer = dict(
        generator=dict(learning_rate=0.0025, b1=0.0, b2=0.99), discriminator=dict(learning_rate=0.002, b1=0.0, b2=0.99)
    )
    config.fall = dict(images=(0, 1), final=1.0)  # of both rates: linearly, to this share of them
    config.data = dict(
        name='toy',
        kind='single_view',
        mode='posed-known',
        split='all',
        scenes='singles',
        size=64,
        views=1,
        poses=64,
        seed=0,
        supersample=3,
        path='',
        layout='auto',  # this and the next two: of posed pictures
        fit='auto',
        views_kept=0,
        train_views=0,
        variants=0,
        mirror=False,
    )
    config.preview = dict(rows=8, views=4, elevation=0.35, columns='4 views: upsampled, then raw, then depth')
    config.preview_every = 250
    config.checkpoint.update(every=250, best='')
    config.log_every = 25
    config.evaluate = ('generated_objects',)
    config.must_match = ('render.plane_axes', 'render.box_warp')
    config.saves_memory = ('batch', 'micro_batch', 'render.samples')
    config.export = dict(
        prompts=('seed',), formats=('glb',), texture=512, faces=10_000, grid=96, frames=120, size=512, render_size=128
    )
    return config


def endless() -> ml_collections.ConfigDict:
    """As the paper's data: no two pictures show one object."""
    config = tiny()
    config.variant = 'endless'
    config.data.update(name='toy_endless', split='train', count=16_384)
    config.evaluate = ('generated_objects', 'endless_objects')
    return config


def furniture() -> ml_collections.ConfigDict:
    config = small()
    config.variant = 'furniture'
    config.steps = 6_000
    config.generator.update(channel_base=1536, channel_max=96, plane_channels=12)
    config.discriminator.update(channel_base=1536, channel_max=96)
    config.r1.gamma = 1.0
    config.opacity.update(weight=5.0, images=(16_000, 32_000))
    config.render.update(box_warp=1.8, radius=3.5)
    config.data.update(name='furniture', split='train', variants=7, mirror=True)
    return config


def base() -> ml_collections.ConfigDict:
    config = furniture()
    config.variant = 'base'
    config.dtype = 'bfloat16'
    config.steps = 300_000
    config.batch = 32
    config.generator.update(
        z=512,
        w=512,
        plane_resolution=128,
        plane_channels=32,
        channel_base=16384,
        channel_max=512,
        features=32,
        sr=dict(input_size=128, channels=(128, 64), ups=(False, True)),
        clamp=256.0,
    )
    config.discriminator.update(channel_base=16384, channel_max=512, mapping_layers=8, clamp=256.0)
    config.render.update(size=64, samples=48, importance=48)
    config.data.update(size=256)
    config.r1.gamma = 1.0
    config.blur.update(sigma=10.0, images=200_000)
    config.preview_every = 1000
    config.checkpoint.update(every=1000)
    config.log_every = 50
    return config


def ffhq() -> ml_collections.ConfigDict:
    """EG3D's FFHQ-512: the sizes and schedule of the released weights; data.path names the set."""
    config = base()
    config.variant = 'ffhq'
    config.steps = 781_250  # 25 M images
    config.generator.update(
        pose_conditioning=True,
        plane_resolution=256,
        channel_base=32768,
        sr=dict(input_size=128, channels=(256, 128), ups=(True, True)),
        sr_style='w',
    )
    config.discriminator.update(channel_base=32768, label_noise=0.0)
    config.render.update(limits='fixed', near=2.25, far=3.3, box_warp=1.0, background=0.0, radius=2.7, fov=0.2334)
    config.opacity.weight = 0.0  # where the background belongs to the picture, opacity says nothing
    config.data.update(name='eg3d', mode='posed-estimated', split='train', size=512, mirror=True, variants=0)
    config.data.update(yaw=(-0.5, 0.5), pitch=(-0.3, 0.3), radius=2.7, fov=0.2334)  # read by mode='pose-distribution' only
    config.ladder = ((0, 64), (250_000, 80), (500_000, 96), (750_000, 112), (1_000_000, 128))
    return config


def pod() -> ml_collections.ConfigDict:
    config = ffhq()
    config.variant = 'pod'
    config.batch = 256
    config.micro_batch = 4
    config.steps = 97_656  # 25 M images
    config.blur.images = 1_600_000  # 200,000 for every 32 of the batch
    config.generator.sr_style = 'unit'
    config.ladder = ((0, 64), (1_000_000, 128))
    config.r1.gamma = 0.0  # the rule by batch and pixels
    return config


def pod_256() -> ml_collections.ConfigDict:
    """The same at 256 px: the upsampler doubles once."""
    config = pod()
    config.variant = 'pod_256'
    config.generator.sr.update(channels=(128, 64), ups=(False, True))
    config.data.update(size=256)
    return config
