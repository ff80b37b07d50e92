"""Instant3D: text to a triplane in one pass.

    python -m launch.train --config configs/instant3d.py:tiny

| variant | data | planes | where |
|---|---|---|---|
| `tiny` | toy, single objects, from 32 px pictures | 3 x 32 x 32 x 16 | two CPU cores, minutes |
| `rays` | the same objects, by rays in closed form | 3 x 32 x 32 x 16 | two CPU cores, minutes |
| `scenes` | toy, one and two objects with relations | 3 x 32 x 32 x 16 | two CPU cores, 15 minutes |
| `scenes_rays` | the same scenes, by rays in closed form | 3 x 64 x 64 x 16 | two CPU cores, hours; shipped (of shorter runs) |
| `toy_imle`, `toy_codes`, `toy_places` | toy, captions of several objects | 3 x 32 x 32 x 8 | two CPU cores, minutes |
| `toy_mean` | their control | the same | the same |
| `furniture_seeds` | furniture, 128 px, by rays: seeds choose | 3 x 64 x 64 x 24 | two CPU cores, an hour and a half; shipped |
| `sds` | prompts of toy, by score distillation from the prior `toy` | 3 x 32 x 32 x 16 | two CPU cores, minutes |
| `sds_trained` | the same, from `image_diffusion-toy` | 3 x 32 x 32 x 16 | two CPU cores, an hour |
| `furniture` | the real furniture library, 64 px | 3 x 32 x 32 x 24 | two CPU cores, an hour |
| `base` | furniture | 3 x 128 x 128 x 32 | one large GPU |
| `pod` | furniture; released decoder (270 M parameters), 290 M tower | 3 x 256 x 256 x 32 | v5e-64 or 32 x H100 class |
| `pod_sds` | animals, by score distillation from Stable Diffusion 2.1; the same network | 3 x 256 x 256 x 32 | the same |
"""

import ml_collections

from configs import _instant3d_rays, _instant3d_seeds, common


def get_config(variant: str = 'tiny') -> ml_collections.ConfigDict:
    """The config of a variant; every number a run depends on."""
    scenes_rays = lambda: _instant3d_rays.scenes_rays(scenes())
    variants = {'tiny': tiny, 'rays': lambda: _instant3d_rays.rays(tiny()), 'scenes': scenes, 'scenes_rays': scenes_rays}
    variants.update({'sds': sds, 'sds_trained': sds_trained})
    seeds = {name: getattr(_instant3d_seeds, name) for name in ('toy_imle', 'toy_codes', 'toy_places', 'toy_mean')}
    variants.update({name: lambda make=make: make(scenes_rays()) for name, make in seeds.items()})
    variants['furniture_seeds'] = lambda: _instant3d_seeds.furniture_seeds(furniture())
    variants.update({'furniture': furniture, 'base': base, 'pod': pod, 'pod_sds': pod_sds})
    if variant not in variants:
        raise ValueError(f'unknown variant {variant!r} of instant3d: there are {", ".join(variants)}')
    return variants[variant]().lock()


def tiny() -> ml_collections.ConfigDict:
    config = common.defaults()
    config.system = 'instant3d'
    config.variant = 'tiny'
    config.steps = 2800
    config.batch = 8
    config.accumulate = 1  # parts of the batch, one after the other: memory of a part, gradients of the whole
    config.dtype = 'float32'
    config.supervision = 'photometric'
    config.given = {'prior': ''}  # for the supervision 'sds'
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
    config.decoder = dict(
        channels=(96, 64, 32),
        heads=(6, 4, 0),
        groups=(8, 8, 8),
        layers=1,
        mid_heads=6,
        base_size=4,
        base_channels=64,
        mixer_width=32,
        mixer_heads=4,
        style_width=32,
        style_channels=96,
        out_channels=48,
        out_groups=8,
        cross_attention=True,
        style_injection=True,
        token_to_plane=True,
        remat=False,
    )
    config.field = dict(hidden=32, alpha=0.7, albedo='scaled_sigmoid', blob=0.0, density_bias=-3.0, density_scale=20.0)
    config.render = dict(
        samples=32, importance=0, samples_shown=48, plane_axes='orthogonal', background=1.0, radius=3.2, fov=0.7027699
    )
    config.render.kernel = 'xla'  # 'fused': the kernel for TPUs, for planes up to 128 texels (fields/fused_render.py)
    config.loss = dict(rays=192, foreground=0.5, mask=0.2, depth=0.0)
    config.optimizer = dict(learning_rate=1e-3, warmup=50, final=0.05, b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.0, clip=1.0)
    config.optimizer.kernels = 'muon'  # all singular values of a move alike (core/muon.py), or 'adam'
    config.noise = 0.1  # deviation of the style noise; the paper's 1 is for score distillation, where one text has many answers
    config.ema_decay = 0.99
    config.data = dict(
        name='toy',
        kind='views',
        split='train',
        scenes='singles',
        size=32,
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
    )
    config.preview = dict(rows=8, views=4, columns='left: rendered, right: truth')
    config.preview_every = 700
    config.evaluate = ('toy_objects',)
    config.must_match = ('render.plane_axes',)
    config.saves_memory = ('batch', 'loss.rays', 'data.views', 'render.samples', 'decoder.remat')
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


def scenes() -> ml_collections.ConfigDict:
    config = tiny()
    config.variant = 'scenes'
    config.steps = 5_000
    config.batch = 16
    config.text.length = 12
    config.loss.rays = 128
    config.optimizer.warmup = 200
    config.ema_decay = 0.999
    config.preview_every = 2000
    config.data.scenes = 'both'
    config.data.poses = 8
    config.export.prompts = ('a red cone on top of a blue cube', 'a green sphere to the left of a purple cylinder')
    return config


def sds() -> ml_collections.ConfigDict:
    """48 prompts, 16 held out: an object each, told by a closed-form model of pictures that knows the words for sides."""
    config = tiny()
    config.variant = 'sds'
    config.supervision = 'sds'  # 'photometric' with data.name=toy data.kind=views: the same network from pictures
    config.given = {'prior': 'toy:16', 'clip': ''}  # the second for sds+clip, and for adaptive negatives
    config.data.update(name='prompts', kind='prompts', prompts='toy', count=0)  # of the rest, photometric reads
    config.cameras = dict(
        views=1,
        elevation=(-0.1, 0.8),
        radius=(3.2, 3.2),
        fov=(0.7027699, 0.7027699),
        even=1.0,
        shift=0.0,
        target=0.0,
        up=0.0,
        turned=True,
        sectors=(),
    )
    config.render.update(size=16, random_background=False)
    config.distill = dict(
        method='sds',
        weighting='sds',
        scale=1.0,
        rescale=0.0,
        low=20,
        high=980,
        high_last=500,
        anneal=1000,
        words='nearest',
        negatives='none',
        least=1.0,  # this and the next one: of negatives='adaptive'
        more=3.0,
    )
    none = (0, 0.0, 0.0, 1)  # from step, first and last weight, to step
    config.loss.update(density=none, orientation=none, smoothness=none, offset=0.01, clip=(0, 0.1, 0.1, 1))  # clip: of sds+clip
    config.steps = 1600
    config.optimizer.update(learning_rate=2e-3, kernels='adam')
    config.preview = dict(rows=8, views=4, size=32, elevation=0.3, columns='held out: front, right, back, left')
    config.preview_every = 400
    config.evaluate = ('toy_prompts',)
    config.saves_memory = ('batch', 'cameras.views', 'render.samples', 'decoder.remat')
    return config


def sds_trained() -> ml_collections.ConfigDict:
    """From a model that was trained on pictures of 24 combinations, each held-out prompt unseen to it too."""
    config = sds()
    config.variant = 'sds_trained'
    config.given.prior = 'image_diffusion-toy'
    config.text.words = tuple(  # the words of the prior, in their order
        'a an black blue cone cube cylinder front green in large left of on orange purple red small sphere the to top white '
        'yellow'.split()
    )
    config.render.update(size=32)
    config.distill.update(scale=4.0, words='none')
    return config


def furniture() -> ml_collections.ConfigDict:
    config = tiny()
    config.variant = 'furniture'
    config.steps = 12_000
    config.batch = 16
    config.text.update(length=14, open_vocabulary=True, width=128, layers=2, heads=4)
    config.decoder.update(
        channels=(128, 96, 48),
        heads=(8, 6, 0),
        mid_heads=8,
        base_channels=96,
        mixer_width=32,
        style_width=64,
        style_channels=128,
        out_channels=72,
    )
    config.field.update(hidden=64)
    config.render.update(samples=40, samples_shown=64, radius=3.5)
    config.loss.update(rays=96)
    config.optimizer.update(learning_rate=1e-3, warmup=200, kernels='adam')
    config.ema_decay = 0.999
    config.data.update(name='furniture', size=64, views=2, train_views=12)
    config.evaluate = ('object_views',)
    config.preview_every = 1000
    config.export.update(prompts=('a chair', 'a table', 'a sofa'), texture=1024, faces=20_000, grid=128, render_size=192)
    return config


def base() -> ml_collections.ConfigDict:
    config = furniture()
    config.variant = 'base'
    config.dtype = 'bfloat16'
    config.steps = 60_000
    config.batch = 32
    config.text.update(width=512, layers=6, heads=8)
    config.decoder.update(
        channels=(256, 256, 160, 96, 64),
        heads=(0, 16, 10, 6, 0),
        groups=(8, 8, 8, 8, 8),
        layers=4,
        mid_heads=16,
        base_channels=256,
        mixer_width=128,
        mixer_heads=8,
        style_width=256,
        style_channels=256,
        out_channels=96,
    )
    config.render.update(samples=64, importance=32)
    config.loss.update(rays=512)
    config.optimizer.update(learning_rate=3e-4, warmup=1000)
    config.data.update(size=128, views=4)
    config.checkpoint.update(every=1000, keep_every=10_000)
    return config


def pod() -> ml_collections.ConfigDict:
    """The released network and rig (arXiv 2311.08403 and its code) on 64x64 renders.

    The paper freezes Stable Diffusion's text tower (checkpoint.convert reads it); here a tower of that size trains with the
    decoder, on the data's words.
    """
    config = base()
    config.variant = 'pod'
    config.batch = 384
    config.text.update(length=77, width=1024, layers=23, heads=16, activation='gelu', embedding_scale=0.02)
    config.decoder = dict(
        channels=(320, 320, 160, 80, 80, 40),
        heads=(0, 20, 10, 5, 0, 0),
        groups=(8, 8, 8, 8, 4, 2),
        layers=13,
        mid_heads=20,
        base_size=4,
        base_channels=512,
        mixer_width=192,
        mixer_heads=8,
        style_width=768,
        style_channels=320,
        out_channels=96,
        out_groups=4,
        cross_attention=True,
        style_injection=True,
        token_to_plane=True,
        remat=True,
    )
    config.field.update(hidden=64, alpha=0.5, blob=10.0, density_bias=-1.0, density_scale=1.0)
    config.render.update(samples=64, importance=64, samples_shown=128)
    config.loss.update(rays=1024)
    config.optimizer.update(learning_rate=1e-4, b2=0.99, eps=1e-15)
    config.data.update(size=64)
    config.mesh.update(data=-1, fsdp=4)
    return config


def pod_sds() -> ml_collections.ConfigDict:
    """The paper's own supervision: whole renders of a prompt set, judged by Stable Diffusion 2.1; the text tower is frozen.

    `given.prior` has the sizes of that model alone: enough for `t3d plan`. Name a folder of it to train, and a CLIP with
    `supervision=sds+clip given.clip=FOLDER "evaluate=('prompt_retrieval',)"`.

    Cameras are the paper's (polar angles 25 to 110 degrees, radius 3.0 to 3.6 in a box of side 3.5, here of side 2) in the
    shares of the released code; so are the weight of the density's differences and the blob. The paper names no weights of
    orientation and smoothness: these are off.
    """
    config, small = pod(), sds()
    config.variant = 'pod_sds'
    config.supervision = 'sds'
    config.given = {'prior': 'shapes:sd21', 'clip': ''}
    config.text.frozen = True
    config.data.update(name='prompts', kind='prompts', prompts='animals', count=0)
    config.cameras = small.cameras
    config.cameras.update(
        elevation=(-0.3491, 1.1345), radius=(1.714, 2.057), fov=(1.2217, 1.3963), even=0.5, sectors=(0.4, 0.2, 0.2, 0.2)
    )
    config.render.update(size=64, random_background=True)
    config.distill = small.distill
    config.distill.update(scale=100.0, high_last=980, anneal=0, words='interpolated', negatives='adaptive')
    config.loss = small.loss
    config.loss.density = (0, 0.25, 0.25, 1)
    config.optimizer.update(learning_rate=2e-4)  # 1e-5 sqrt(batch), as the released code
    config.steps = 10_000
    config.preview = small.preview
    config.preview.update(size=64)
    config.evaluate = ()
    config.saves_memory = small.saves_memory
    return config
