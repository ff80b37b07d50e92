"""GANFusion, stage 2: text to the planes of a frozen triplane GAN, by diffusion.

    python -m launch.make_triplanes --run runs/0001-ganfusion_gan-tiny --out pairs --pairs 1000 --captioner toy
    t3d train configs/ganfusion_diffusion.py:tiny data.path=pairs

| variant | planes | denoiser, without text tower and generator | where |
|---|---|---|---|
| `tiny` | 32 x 32 x 8, the toy GAN's | 4.2 M, patch 2, 16 x 16 positions | two CPU cores, under half an hour |
| `endless` | 32 x 32 x 8, that of endless objects | as `tiny` | the same |
| `furniture` | 32 x 32 x 12, that of furniture | the same | two CPU cores, two hours |
| `base` | 128 x 128 x 32 | 307 M, patch 2, 64 x 64 positions | one large GPU |
| `pod` | 256 x 256 x 32 | Stable Diffusion 1's sizes, 868 M, patch 4, 64 x 64 positions | v4-64 class, fsdp |

The generator is that of the folder of pairs (`data.path`); until there is one, `given.generator` names its config.
Guidance, shift of the schedule and layout are to be swept, none of them is published.
"""

import ml_collections

from configs import common, ganfusion_gan


def get_config(variant: str = 'tiny') -> ml_collections.ConfigDict:
    """The config of a variant; every number a run depends on."""
    variants = {'tiny': tiny, 'endless': endless, 'furniture': furniture, 'base': base, 'pod': pod}
    if variant not in variants:
        raise ValueError(f'unknown variant {variant!r} of ganfusion_diffusion: there are {", ".join(variants)}')
    return variants[variant]().lock()


def of_generator(config: ml_collections.ConfigDict, variant: str) -> None:
    """The generator that a variant is for, until the folder of pairs names the trained one."""
    config.given = dict(generator=f'configs/ganfusion_gan.py:{variant}')
    config.sr_style = 'unit' if ganfusion_gan.get_config(variant).generator.sr_style == 'unit' else 'ones_w'


def tiny() -> ml_collections.ConfigDict:
    config = common.defaults()
    config.system = 'ganfusion_diffusion'
    config.variant = 'tiny'
    config.steps = 3_000
    config.batch = 32
    config.accumulate = 1  # parts of the batch, one after the other: memory of a part, gradients of the whole
    config.dtype = 'float32'
    config.remat = False
    of_generator(config, 'tiny')
    config.planes = dict(mean=(), std=())  # of the 3 C channels; empty: those of data.path
    config.psi = 1.0  # truncation that the pairs were made with
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
    config.layout = 'stack'  # or rollout, rollout_axis: t3d/nets/triplane_unet.py
    config.cross_plane = False  # attention between planes, of rollout_axis
    config.patch = 2  # texels per side that the network sees as one
    config.unet = dict(
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        attention_head_dim=4,  # the number of heads, as diffusers has it
        cross_attention_dim=64,
        norm_num_groups=16,
        use_linear_projection=True,
        attention_levels=(False, True, True),
        attention='xla',  # 'flash': the kernel for TPUs, where maps are large (nets/flash_attention.py)
    )
    config.diffusion = dict(
        timesteps=1000,
        shift=-2.0,  # of log SNR, on Stable Diffusion's betas
        prediction='x0',
        clip=5.0,  # deviations of a channel at which planes are cut, in data and in samples
        min_snr=0.0,  # gamma of the min-SNR weights; 0: all weights 1
    )
    config.aux = dict(weight=0.0, size=32, elevation=(-0.2, 0.9))  # raw colour of rendered x_0; radians
    config.drop_text = 0.1  # share of examples trained without their text, for guidance
    config.sample = dict(steps=25, guidance=2.0)
    config.optimizer = dict(learning_rate=1e-3, warmup=200, final=0.05, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01, clip=1.0)
    config.optimizer.kernels = 'muon'  # or 'adam' (core/muon.py)
    config.ema_decay = 0.999
    config.data = dict(
        name='triplanes',
        kind='triplanes',
        split='train',
        path='',
        max_distance=0.6,  # above: failures of the generator, left out
    )
    config.preview = dict(rows=8, views=4, elevation=0.35, columns='left: 4 views of a sample, right: the raw colour')
    config.preview_every = 1000
    config.checkpoint.every = 1000
    config.evaluate = ('captioned_objects',)
    config.saves_memory = ('batch', 'remat')
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
    """Of objects that are all different; pairs by --captioner endless."""
    config = tiny()
    config.variant = 'endless'
    of_generator(config, 'endless')
    config.text.length = 12  # two solids
    config.evaluate = ('endless_objects',)
    config.export.prompts = ('a red cube', 'a small green cone', 'a purple sphere on top of a white cylinder')
    return config


def furniture() -> ml_collections.ConfigDict:
    config = tiny()
    config.variant = 'furniture'
    config.steps = 6_000
    config.optimizer.kernels = 'adam'
    of_generator(config, 'furniture')
    config.text.update(length=14, open_vocabulary=True, width=128)
    config.unet.cross_attention_dim = 128
    config.data.max_distance = 0.0  # the catalogue's distance is one of features, with another scale
    config.export.update(prompts=('a chair', 'a table', 'a sofa'))
    return config


def base() -> ml_collections.ConfigDict:
    config = furniture()
    config.variant = 'base'
    config.dtype = 'bfloat16'
    config.steps = 200_000
    config.batch = 64
    config.remat = True
    of_generator(config, 'base')
    config.text.update(width=512, layers=6, heads=8)
    config.unet = dict(
        block_out_channels=(192, 384, 768, 768),
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=512,
        norm_num_groups=32,
        use_linear_projection=True,
        attention_levels=(False, True, True, False),
        attention='xla',
    )
    config.optimizer.update(learning_rate=1e-4, warmup=10_000, b2=0.999)
    config.ema_decay = 0.9999
    config.sample.update(steps=50, guidance=3.0)
    return config


def pod() -> ml_collections.ConfigDict:
    """Stable Diffusion 1's network on patches of planes.

    `text` has the sizes of its tower. With the tokenizer and weights of CLIP ViT-L/14 (`text.folder`, --init-from) freeze it.
    """
    config = base()
    config.variant = 'pod'
    config.steps = 300_000
    config.batch = 1024
    of_generator(config, 'pod')
    config.text.update(length=77, width=768, layers=12, heads=12)
    config.patch = 4
    config.unet.update(
        block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_levels=(True, True, True, False)
    )
    config.diffusion.update(shift=-2.77)  # 2 log(64 / 256)
    config.mesh.update(data=-1, fsdp=8)
    return config
