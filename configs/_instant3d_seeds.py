"""Variants of configs/instant3d.py in which seeds choose among the objects of a caption: docs/seeds.md."""


def toy_imle(config):
    """Of `scenes_rays`: single objects, captions that leave the shape or the colour open.

    An object has a caption of each kind, and the noise that is nearest under one is any under the other: chosen at every step.
    """
    config.variant = 'toy_imle'
    config.supervision = 'imle'
    config.steps = 4800
    config.batch = 16
    config.text.length = 6
    config.decoder.update(channels=(32, 24, 16), heads=(4, 4, 0), groups=(8, 8, 8), mid_heads=4, base_channels=16)
    config.decoder.update(style_width=8, style_channels=32, out_channels=24, out_groups=4)
    config.field.update(hidden=32)
    config.render.update(importance=0, samples_shown=64)
    config.noise = 2.0
    config.loss.update(rays=48)
    config.optimizer.update(learning_rate=2e-3, warmup=100, final=0.02, kernels='adam')
    config.ema_decay = 0.99
    config.seeds = dict(draws=8, every=1, rays=16)
    config.data.update(name='toy_open', kind='object_rays', split='all', scenes='singles', views=2, poses=64, count=32)
    config.preview.update(rows=8, views=3, size=64)
    config.preview_every = 800
    config.evaluate = ('toy_seeds',)
    config.export.prompts = ('a red object', 'a cube')
    return config


def toy_codes(config):
    """The same by a code for each object."""
    config = toy_imle(config)
    config.variant = 'toy_codes'
    config.supervision = 'codes'
    config.codes = dict(prior=1e-4)
    return config


def toy_places(config):
    """The same with places: a caption gives each of its objects noises of its own."""
    config = toy_imle(config)
    config.variant = 'toy_places'
    config.supervision = 'places'
    config.places = dict(count=64)
    config.data.update(kind='object_places')
    return config


def toy_mean(config):
    """The control: a fresh noise at every step, which the squared error teaches to be ignored."""
    config = toy_imle(config)
    config.variant = 'toy_mean'
    config.supervision = 'rays'
    config.data.kind = 'rays'
    return config


def furniture_seeds(config):
    """Of `furniture`: pictures of 128 pixels by rays, larger planes, and places: a seed is an object of its caption."""
    config.variant = 'furniture_seeds'
    config.supervision = 'places'
    config.steps = 28_000
    config.batch = 8
    config.decoder.update(channels=(128, 96, 64, 48), heads=(8, 6, 0, 0), groups=(8, 8, 8, 8))
    config.field.update(alpha=1.0)
    config.noise = 1.0
    config.places = dict(count=64)
    config.render.update(samples=16, importance=0, samples_shown=96)
    config.rays = dict(truth='pixels', samples=8, spread=0.1, pixel=0.006)
    config.loss.update(rays=128, edges=0.0, mask=0.2, depth=0.1, solid=0.05, surface=0.2, thickness=0.02, skin=0.02)
    config.optimizer.update(kernels='muon', final=0.02)
    config.data.update(kind='object_places', size=128, views=4, count=0)
    config.evaluate = ('object_views', 'object_seeds')
    config.preview.size = 128
    config.preview_every = 2000
    config.checkpoint.update(every=1000)
    config.saves_memory = ('batch', 'loss.rays', 'data.views', 'render.samples', 'decoder.remat')
    return config
