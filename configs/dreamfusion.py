"""A prompt to an object by score distillation: DreamFusion, one or many prompts at once.

    t3d generate "a green cylinder" --system dreamfusion
    t3d generate --prompts prompts.txt --config configs/dreamfusion.py:tiny

| variant | prior | field | where |
|---|---|---|---|
| `tiny` | image_diffusion-toy, 32 px | dense grid, 32^3 | two CPU cores, minutes |
"""

import ml_collections

from configs import common


def get_config(variant: str = 'tiny') -> ml_collections.ConfigDict:
    """The config of a variant; every number a run depends on."""
    variants = {'tiny': tiny}
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
    )
    config.render = dict(size=32, samples=32, importance=0, samples_shown=64, background=1.0, random_background=False)
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
