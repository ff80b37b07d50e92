"""Variants of configs/instant3d.py that learn scenes of the toy set by rays in closed form, of any resolution."""


def rays(config):
    """Of `tiny`: single objects, as many rays as it has, four cameras a step. What `make run` trains."""
    config.variant = 'rays'
    _by_rays(config)
    config.steps = 2400
    config.render.update(samples_shown=32)
    # Half of the rays go anywhere: space is to be empty.
    config.loss.update(rays=48, edges=0.2, foreground=0.3, mask=0.3, solid=0.2)
    config.preview.size = 64
    config.preview_every = 1200
    return config


def scenes_rays(config):
    """Of `scenes`: larger planes and a larger network. docs/benchmarks.md has the flag that makes it faster on a processor."""
    config.variant = 'scenes_rays'
    _by_rays(config)
    config.steps = 40_000
    config.batch = 8
    config.decoder.update(channels=(128, 96, 48, 32), heads=(8, 6, 0, 0), groups=(8, 8, 8, 8), mid_heads=8)
    config.field.update(hidden=64)
    config.optimizer.update(final=0.02)
    config.preview_every = 4000
    config.checkpoint.update(every=1000)
    return config


def _by_rays(config) -> None:
    """Rays, where their samples stand, and what they are compared by."""
    config.supervision = 'rays'
    config.field.update(alpha=1.0)
    config.render.update(samples=12, samples_shown=64, importance=32)
    config.rays = dict(truth='solids', samples=8, spread=0.1, pixel=0.006)
    config.loss.update(
        rays=128, edges=0.35, foreground=0.4, mask=0.1, depth=0.1, solid=0.1, surface=0.3, thickness=0.02, skin=0.01
    )
    config.data.update(kind='rays', views=4)
    config.preview.size = 96
    config.evaluate = ('toy_objects', 'toy_sharpness')
