"""The ranges of the keys of configs that optimise a field for each prompt: sections `scene`, `shading`, `occupancy`.

A part of the table of `t3d.core.limits`, which takes it whole as soon as a config has these keys (`LIMITS | SCENES`): every key
of that table is one of a config. The names of `scene` are those of `fields/scene_fields.py`'s Options.
"""

from t3d.core.rules import Choice, Real, Several, Whole

SIZE = 2**16
COUNT = 2**31 - 1
STEPS = Whole(0, COUNT, 'steps')
SHARE = Real(0.0, 1.0, 'a share')
DISTANCES = Several(Real(0.0, 1e3), 2, 2, 'scene units, low and high', rising=True)

SCENES = {
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
    'shading.light': Choice(('dreamfusion', 'magic3d'), 'how lights are drawn'),
    'shading.light_distance': DISTANCES,
    'shading.normals': Choice(('autodiff', 'fd'), 'of the density'),
    'shading.offset': Real(0.0, 1.0, 'of finite differences, units of the cube', above=True),
    'occupancy.cells': Whole(4, 512, 'per side of the grid of what is occupied'),
    'occupancy.every': Whole(1, COUNT, 'steps between looks'),
    'occupancy.decay': Real(0.0, 1.0, 'of the grid at each look'),
    'occupancy.threshold': Real(0.0, 1e3, 'optical thickness of an occupied cell'),
    'occupancy.warmup': Whole(0, COUNT, 'steps in which nothing is left out'),
}
