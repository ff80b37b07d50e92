"""Posed views to a textured mesh: a triplane field fitted to them. Nothing is trained beforehand.

    t3d generate --views FOLDER --config configs/reconstruct.py:tiny --out out/object

| variant | planes | rays x samples, steps | where |
|---|---|---|---|
| `tiny` | 128 x 128 x 8 | 1,024 x 32, 600 | two CPU cores: 20 s of processor time for a fit, 12 s once to compile |
| `base` | 256 x 256 x 32 | 16,384 x 64, 4,000 | one GPU; not run yet |
"""

import ml_collections

from configs import common


def get_config(variant: str = 'tiny') -> ml_collections.ConfigDict:
    """The config of a variant; every number a fit depends on."""
    variants = {'tiny': tiny, 'base': base}
    if variant not in variants:
        raise ValueError(f'unknown variant {variant!r} of reconstruct: there are {", ".join(variants)}')
    return variants[variant]().lock()


def tiny() -> ml_collections.ConfigDict:
    config = common.defaults()
    config.system = 'reconstruct'
    config.variant = 'tiny'
    config.untrained = True  # `t3d generate` makes it of this config: there are no weights to read
    config.steps = 600
    config.fit = dict(
        resolution=128,
        channels=8,
        hidden=32,
        levels=4,  # of the pyramid of planes: 16, 32, 64, 128
        cells=64,
        samples=32,
        rays=1024,
        stages=6,
        learning_rate=0.06,
        decoder_rate=0.01,
        huber=0.1,
        mask=0.5,
        tv=0.003,
        entropy=0.002,
        density=25.0,
    )
    config.render = dict(
        samples_shown=64,
        bound=0.0,  # 0: the sphere about the origin that the cameras show
        tolerance=0.04,  # of the background of pictures without alpha
    )
    config.export = dict(
        formats=('glb',),
        texture=512,
        faces=10_000,
        grid=128,
        frames=120,
        size=512,
        render_size=128,
    )
    return config


def base() -> ml_collections.ConfigDict:
    config = tiny()
    config.variant = 'base'
    config.steps = 4_000
    config.fit.update(resolution=256, channels=32, hidden=64, levels=5, cells=128, samples=64, rays=16_384, stages=10)
    config.fit.update(learning_rate=0.02, decoder_rate=0.002)
    config.render.samples_shown = 128
    config.export.update(texture=2048, faces=40_000, grid=256, render_size=256)
    return config
