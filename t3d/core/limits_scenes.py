"""The ranges of the keys of systems that optimise scenes by distillation: part of t3d.core.limits."""

from t3d.core.rules import Choice, Flag, Real, Several, Text, Whole

ENDS = Several(Real(0.0, 1e3, above=True), 2, 2, 'low and high')
RAMP = Several(Real(0.0, 2**31 - 1), 4, 4, 'from step, weight there, weight at the end, the step of that end')
THOUSANDTHS = Whole(0, 1000, 'thousandths of the noise schedule')

LIMITS = {
    'prompts': Several(Text(), 0, 2**16, 'texts, an object each'),
    # the field
    'scene.kind': Choice(('hash', 'dense', 'triplane', 'mlp'), 'of the field'),
    'scene.features': Whole(3, 64, 'outputs beside the density, the first three the colour'),
    'scene.hidden': Whole(1, 2**16, 'channels'),
    'scene.layers': Whole(1, 64, 'of the network'),
    'scene.channels': Whole(1, 1024, 'of a row, a cell or a texel'),
    'scene.levels': Whole(1, 32, 'of the hash grid'),
    'scene.log2_rows': Whole(4, 26, 'rows of a level of the hash grid at most, as a power of two'),
    'scene.base': Whole(1, 4096, 'cells per side of the coarsest level'),
    'scene.growth': Real(1.0, 8.0, 'of the cells per side from level to level'),
    'scene.first_levels': Whole(1, 32, 'levels that are read at first'),
    'scene.start': Whole(0, 2**31 - 1, 'step until which no other level is read'),
    'scene.every': Whole(1, 2**31 - 1, 'steps until one more level is read'),
    'scene.resolution': Whole(2, 1024, 'grid points or texels per side'),
    'scene.octaves': Whole(1, 32, 'of the Fourier features'),
    'scene.activation': Choice(('softplus', 'exp'), 'of the density'),
    'scene.blob': Choice(('none', 'cone', 'gaussian'), 'of density in the middle'),
    'scene.blob_height': Real(0.0, 1e4, 'raw density in the middle'),
    'scene.blob_width': Real(0.0, 10.0, 'scene units', above=True),
    'scene.bias': Real(-1e4, 1e4, 'added to the raw density'),
    # cameras, renders, light
    'cameras.views': Whole(1, 1024, 'of each prompt at a step'),
    'cameras.elevation': Several(Real(-1.5707963, 1.5707963), 2, 2, 'radians, low and high'),
    'cameras.radius': ENDS,
    'cameras.fov': ENDS,
    'cameras.even': Real(0.0, 1.0, 'share of the views with uniform elevations'),
    'cameras.shift': Real(0.0, 10.0, 'scene units'),
    'cameras.target': Real(0.0, 10.0, 'scene units'),
    'cameras.up': Real(0.0, 10.0, 'deviation of the upright'),
    'render.random_background': Flag('a colour drawn for each view'),
    'render.cells': Whole(0, 512, 'per side of the grid of what is occupied; 0: none'),
    'render.every': Whole(1, 2**20, 'steps between looks at what is occupied'),
    'shading.start': Whole(0, 2**31 - 1, 'the first step with light; `steps` for none'),
    'shading.share': Real(0.0, 1.0, 'of the views that are lit'),
    'shading.textureless': Real(0.0, 1.0, 'share of the lit views without colour'),
    'shading.ambient': Real(0.0, 1.0, 'light from everywhere in lit views'),
    'shading.light': Choice(('camera', 'cone'), 'how lights are placed'),
    'shading.distance': ENDS,
    # guidance by the prior
    'distill.method': Choice(('sds', 'reconstruction')),
    'distill.weighting': Choice(('sds', 'uniform', 'fantasia3d'), 'of the times'),
    'distill.scale': Real(0.0, 1e4, 'of guidance; 1: the conditional model alone'),
    'distill.rescale': Real(0.0, 1.0, 'a share'),
    'distill.low': THOUSANDTHS,
    'distill.high': THOUSANDTHS,
    'distill.high_last': THOUSANDTHS,
    'distill.anneal': Whole(0, 2**31 - 1, 'steps until distill.high_last; 0: distill.high stays'),
    'distill.words': Choice(('none', 'nearest', 'interpolated'), 'for the side of a view'),
    'distill.negatives': Choice(('none', 'fixed'), 'Perp-Neg'),
    'loss.opacity': RAMP,
    'loss.orientation': RAMP,
    'optimizer.parts.grid': Real(0.0, 1e6, 'factor of the learning rate'),
    'optimizer.parts.mlp': Real(0.0, 1e6, 'factor of the learning rate'),
    'preview.size': Whole(4, 2048, 'pixels per side'),
}
