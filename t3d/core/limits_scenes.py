"""The ranges of the keys of configs that learn scenes from a prior: a part of the table of `t3d.core.limits`.

The names of `scene`, `cameras` and `distill` are those of the options of `fields/scene_fields.py`, `geom/camera_draws.py` and
`diffusion/guide.py`.
"""

from t3d.core.rules import Choice, Flag, Real, Several, Text, Whole

SIZE = 2**16
COUNT = 2**31 - 1
STEPS = Whole(0, COUNT, 'steps')
SHARE = Real(0.0, 1.0, 'a share')
ENDS = Several(Real(0.0, 1e3, above=True), 2, 2, 'low and high')
RAMP = Several(Real(0.0, COUNT), 4, 4, 'from step, weight there, weight at the end, the step of that end')
THOUSANDTHS = Whole(0, 1000, 'thousandths of the noise schedule')
DISTANCES = Several(Real(0.0, 1e3), 2, 2, 'scene units, low and high', rising=True)

SCENES = {
    'prompts': Several(Text(), 0, 2**16, 'texts, an object each'),
    'scene.kind': Choice(('hash', 'dense', 'triplane', 'mlp'), 'of the field', (('hashgrid', 'hash'), ('nerf', 'mlp'))),
    'scene.features': Whole(3, 1024, 'raw outputs beside the density; the first three are the colour'),
    'scene.hidden': Whole(1, SIZE, 'channels'),
    'scene.layers': Whole(0, 64, 'layers of the MLP'),
    'scene.channels': Whole(1, 1024, 'of a row of the table, a cell or a texel'),
    'scene.levels': Whole(1, 32, 'of the hash grid'),
    'scene.log2_rows': Whole(3, 24, 'logarithm of the rows of a level'),
    'scene.base': Whole(2, 1024, 'grid points per side of the first level'),
    'scene.growth': Real(1.0, 4.0, 'of a level over the one before'),
    'scene.first_levels': Whole(1, 32, 'levels that are read at first'),
    'scene.start': STEPS,
    'scene.every': Whole(1, COUNT, 'steps between levels'),
    'scene.resolution': Whole(2, 4096, 'grid points or texels per side'),
    'scene.octaves': Whole(0, 24, 'of the Fourier features'),
    'scene.activation': Choice(('softplus', 'exp'), 'of the density'),
    'scene.blob': Choice(('none', 'cone', 'gaussian'), 'in the middle'),
    'scene.blob_height': Real(-1e4, 1e4, 'raw density in the middle'),
    'scene.blob_width': Real(0.0, 1e3, 'units of the cube', above=True),
    'scene.bias': Real(-1e4, 1e4, 'added to the raw density'),
    'shading.start': Whole(0, COUNT, 'steps before which the albedo is shown'),
    'shading.shaded': SHARE,
    'shading.textureless': SHARE,
    'shading.ambient': SHARE,
    'shading.light': Choice(('camera', 'cone'), 'how lights are drawn'),
    'shading.light_distance': DISTANCES,
    'shading.normals': Choice(('autodiff', 'fd'), 'of the density'),
    'shading.offset': Real(0.0, 1.0, 'of finite differences, units of the cube', above=True),
    'occupancy.cells': Whole(4, 512, 'per side of the grid of what is occupied; 0: none', also=(0,)),
    'occupancy.every': Whole(1, COUNT, 'steps between looks'),
    'occupancy.decay': Real(0.0, 1.0, 'of the grid at each look'),
    'occupancy.threshold': Real(0.0, 1e3, 'optical thickness of an occupied cell'),
    'occupancy.warmup': Whole(0, COUNT, 'steps in which nothing is left out'),
    'cameras.views': Whole(1, 1024, 'of each prompt at a step'),
    'cameras.elevation': Several(Real(-1.5707963, 1.5707963), 2, 2, 'radians, low and high'),
    'cameras.radius': ENDS,
    'cameras.fov': ENDS,
    'cameras.even': SHARE,
    'cameras.shift': Real(0.0, 10.0, 'scene units'),
    'cameras.target': Real(0.0, 10.0, 'scene units'),
    'cameras.up': Real(0.0, 10.0, 'deviation of the upright'),
    'cameras.turned': Flag('rings that start anywhere'),
    'cameras.sectors': Several(SHARE, 0, 4, 'of front, right, back and left; none: even all around'),
    'render.chunks': Whole(1, 4096, 'bands of rows that an image is rendered in, one after the other'),
    'render.random_background': Flag('a colour drawn for each view'),
    'distill.method': Choice(('sds', 'reconstruction')),
    'distill.weighting': Choice(('sds', 'uniform', 'fantasia3d'), 'of the times'),
    'distill.scale': Real(0.0, 1e4, 'of guidance; 1: the conditional model alone'),
    'distill.rescale': SHARE,
    'distill.low': THOUSANDTHS,
    'distill.high': THOUSANDTHS,
    'distill.high_last': THOUSANDTHS,
    'distill.anneal': Whole(0, COUNT, 'steps until distill.high_last; 0: distill.high stays'),
    'distill.words': Choice(('none', 'nearest', 'interpolated'), 'for the side of a view'),
    'distill.negatives': Choice(('none', 'fixed', 'adaptive'), 'Perp-Neg'),
    'distill.least': Real(0.0, 1e3, 'factor of negatives where the object looks different from its last visit'),
    'distill.more': Real(0.0, 1e3, 'added to distill.least where it looks alike from the opposite side'),
    'loss.opacity': RAMP,
    'loss.orientation': RAMP,
    'loss.clip': RAMP,
    'loss.density': RAMP,
    'loss.smoothness': RAMP,
    'loss.offset': Real(0.0, 1.0, 'of differences for normals, scene units', above=True),
    'optimizer.parts.grid': Real(0.0, 1e6, 'factor of the learning rate'),
    'optimizer.parts.mlp': Real(0.0, 1e6, 'factor of the learning rate'),
    'preview.size': Whole(4, 2048, 'pixels per side'),
}
