"""A prompt to an object by score distillation: DreamFusion, one or many prompts at once.

    t3d generate "a green cylinder" --system dreamfusion
    t3d generate --prompts prompts.txt --config configs/dreamfusion.py:tiny

| variant | prior | field | where |
|---|---|---|---|
| `tiny` | image_diffusion-toy, 32 px | dense grid, 32^3 | two CPU cores, minutes |
| `sd` | a Stable Diffusion folder, `--given prior=FOLDER` | hash grid, 6.3 M rows | one large GPU; not run yet |
| `pod` | the same, prompts of a file over devices | hash grid, 4 views of each | v5e-64 or 32 x H100 class; not run yet |
"""

import ml_collections

from configs import common


def get_config(variant: str = 'tiny') -> ml_collections.ConfigDict:
    """The config of a variant; every number a run depends on."""
    variants = {'tiny': tiny, 'sd': sd, 'pod': pod}
    if variant not in variants:
        raise ValueError(f'unknown variant {variant!r} of dreamfusion: there are {", ".join(variants)}')
    return variants[variant]().lock()


def tiny() -> ml_collections.ConfigDict:
    config = common.defaults()
    config.system = 'dreamfusion'
    config.variant = 'tiny'
    config.prompts = ()
    config.given = {'prior': 'image_diffusion-toy'}
    config.steps = 600
    config.scene = dict(
        kind='dense',
        features=3,
        hidden=32,
        layers=1,
        channels=8,
        levels=8,
        log2_rows=14,
        base=8,
        growth=1.5,
        first_levels=8,
        start=0,
        every=1,
        resolution=32,
        octaves=6,
        activation='softplus',
        blob='cone',
        blob_height=10.0,
        blob_width=0.5,
        bias=0.0,
    )
    config.cameras = dict(
        views=2,
        elevation=(-0.2, 0.9),
        radius=(3.2, 3.2),
        fov=(0.7027699, 0.7027699),
        even=1.0,
        shift=0.0,
        target=0.0,
        up=0.0,
        turned=True,
        sectors=(),
    )
    config.render = dict(size=32, samples=32, importance=0, samples_shown=64, background=1.0, random_background=False, chunks=1)
    config.occupancy = dict(cells=32, every=16, decay=0.95, threshold=0.01, warmup=256)
    config.shading = dict(
        start=600,  # `steps`: never; the pictures of the toy prior have their light painted on
        shaded=0.75,
        textureless=0.5,
        ambient=0.1,
        light='camera',
        light_distance=(2.0, 3.0),
        normals='autodiff',
        offset=0.01,
    )
    config.distill = dict(
        method='sds',
        weighting='sds',
        scale=4.0,
        rescale=0.0,
        low=20,
        high=980,
        high_last=500,
        anneal=500,
        words='none',
        negatives='none',
    )
    config.loss = dict(opacity=(0, 0.0, 0.0, 1), orientation=(0, 0.0, 0.0, 1))  # from step, first and last weight, to step
    config.saves_memory = ('render.chunks', 'cameras.views')
    config.optimizer = dict(learning_rate=0.01, warmup=20, final=0.1, b1=0.9, b2=0.99, eps=1e-15, parts=dict(grid=1.0, mlp=1.0))
    config.preview = dict(size=64, elevation=0.3)
    config.preview_every = 200
    config.checkpoint.every = 200
    config.log_every = 25
    config.evaluate = ()  # asked_objects reads objects of the toy set: t3d eval RUN --evaluate asked_objects
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


def sd() -> ml_collections.ConfigDict:
    """threestudio's recipe for Stable Diffusion, with two passes of samples instead of 512 (distances and lights are its)."""
    config = tiny()
    config.variant = 'sd'
    config.given = {'prior': 'configs/image_diffusion.py:pod'}  # only its shapes: give a folder
    config.steps = 5_000
    config.scene.update(kind='hash', hidden=64, channels=2, levels=16, log2_rows=19, base=16, growth=1.4472692)
    config.scene.update(first_levels=8, start=1000, every=250)
    config.cameras.update(views=4, elevation=(-0.1745, 0.7854), radius=(1.5, 2.0), fov=(0.6981, 1.2217), even=0.5)
    config.cameras.update(shift=0.1, target=0.2, up=0.02)
    config.render.update(size=64, samples=64, importance=64, samples_shown=128, chunks=4)
    config.shading.update(start=1000, light_distance=(0.8, 1.5))
    config.distill.update(scale=101.0, high_last=980, anneal=0, words='interpolated', negatives='fixed')
    config.loss = dict(opacity=(1000, 1e-3, 1e-3, 1001), orientation=(1000, 1e-4, 1e-2, 5000))
    config.optimizer.update(learning_rate=0.01, warmup=100)
    config.preview.size = 128
    config.preview_every = 500
    config.checkpoint.every = 500
    config.export.update(texture=1024, faces=40_000, grid=256, render_size=256)
    return config


def pod() -> ml_collections.ConfigDict:
    """A population: as many prompts as the file has, a multiple of the devices, none of which sees another."""
    config = sd()
    config.variant = 'pod'
    config.steps = 2_500
    config.scene.update(start=500, every=125)
    config.shading.start = 500
    config.loss = dict(opacity=(500, 1e-3, 1e-3, 501), orientation=(500, 1e-4, 1e-2, 2500))
    config.mesh.update(data=-1)
    return config
