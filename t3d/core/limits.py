"""The range of every key of the configs, by its dotted name: what is checked before a run makes anything.

What depends on several keys at once (heads that divide a width, sizes that fit each other) each system checks itself when it
is made. Keys that are not in the table belong to a system that is not t3d's own: they only have to be plain data.
"""

from collections.abc import Mapping

from t3d.core.rules import Choice, Either, Flag, Plain, Real, Several, Text, Whole, held

SIZE = 2**16  # of a layer, a picture, a batch on one device: beyond, nothing fits any machine
COUNT = 2**31 - 1  # the step counter is an int32
WEIGHT = Real(0.0, 1e6, 'weight of a loss; 0: none')
SHARE = Real(0.0, 1.0, 'a share')
WIDTH = Whole(1, SIZE, 'channels')
WIDTHS = Several(Whole(1, SIZE), 1, 12, 'channels of each level')
DECAY = Real(0.0, 1.0, 'decay of a moving average', below=True)
RATE = Real(0.0, 1e3, 'learning rate')
IMAGES = Whole(0, COUNT, 'images shown')
ANGLES = Several(Real(-6.3, 6.3), 2, 2, 'radians, low and high', rising=True)
PATH = Text('a path')
DTYPES = ('float32', 'bfloat16', 'float16')
MEANT = (('fp32', 'float32'), ('f32', 'float32'), ('single', 'float32'), ('32', 'float32'), ('fp64', 'float32'))
MEANT += (('float64', 'float32'), ('double', 'float32'), ('fp16', 'float16'), ('f16', 'float16'), ('half', 'float16'))
MEANT += (('16', 'float16'), ('bf16', 'bfloat16'), ('mixed', 'bfloat16'), ('amp', 'bfloat16'))

LIMITS = {
    # every config: configs/common.py
    'system': Text('t3d.systems lists them'),
    'variant': Text('a name'),
    'seed': Whole(0, 2**32 - 1, 'of every random draw'),
    'steps': Whole(1, COUNT, 'optimizer steps in all'),
    'batch': Whole(1, 2**20, 'examples at each step'),
    'dtype': Choice(DTYPES, 'of the computation', MEANT),
    'mesh.data': Whole(1, SIZE, 'devices along an axis, -1 for the rest', also=(-1,)),
    'mesh.fsdp': Whole(1, SIZE, 'devices along an axis, -1 for the rest', also=(-1,)),
    'mesh.tensor': Whole(1, SIZE, 'devices along an axis, -1 for the rest', also=(-1,)),
    'fsdp_floor': Whole(0, 2**50, 'bytes'),
    'log_every': Whole(1, COUNT, 'steps between lines of the log'),
    'preview_every': Whole(0, COUNT, 'steps between previews; 0: only at the end'),
    'checkpoint.every': Whole(1, COUNT, 'steps between checkpoints; as many as `steps` for one at the end'),
    'checkpoint.keep': Whole(1, 2**20, 'newest checkpoints that stay'),
    'checkpoint.keep_every': Whole(0, COUNT, 'multiples of this step stay for good; 0: none'),
    'checkpoint.best': Text('the metric whose best checkpoint stays'),
    'loader.threads': Whole(1, 256, 'that make batches'),
    'loader.prefetch': Whole(1, 4096, 'batches made ahead'),
    'evaluate': Several(Text(), 0, 64, 'evaluators of t3d.evaluate.table'),
    'must_match': Several(Text(), 0, 64, 'keys of a config'),
    'saves_memory': Several(Text(), 0, 64, 'keys of a config'),
    'ema_decay': Real(0.0, 1.0, 'decay of the averaged weights'),
    # data
    'data.name': Text('of the data set'),
    'data.kind': Text('of the batch: an adapter of t3d.data.sources'),
    'data.mode': Text('what is known of the cameras'),
    'data.split': Text('of the data set'),
    'data.path': PATH,
    'data.scenes': Text('of toy: singles, pairs, both'),
    'data.size': Whole(4, 8192, 'pixels per side'),
    'given.generator': Text('a triplane GAN: a run, a weights folder, or a config for its shapes'),
    'data.views': Whole(1, 1024, 'views of an object at each step'),
    'data.poses': Whole(1, 2**20, 'records of each scene'),
    'data.seed': Whole(0, 2**32 - 1, 'of the poses'),
    'data.supersample': Whole(1, 31, 'rays for each side of a pixel, odd'),
    'data.train_views': Whole(0, 4096, 'views of a record to train on; 0: all'),
    'data.variants': Whole(0, 7, 'recoloured variants of each object'),
    'data.mirror': Flag(),
    'data.max_distance': Real(0.0, 1e6, 'of pairs that are kept; 0: all'),
    'data.yaw': ANGLES,
    'data.pitch': ANGLES,
    'data.radius': Real(0.0, 1e3, 'scene units', above=True),
    'data.fov': Real(0.0, 3.14, 'radians', above=True),
    # text towers
    'text.words': Several(Text(), 0, 2**20, 'the vocabulary; empty: that of the data'),
    'text.length': Whole(3, 4096, 'tokens, with the marks of start and end'),
    'text.open_vocabulary': Flag(),
    'text.folder': PATH,
    'text.vocabulary_size': Whole(0, 2**22, 'with text.folder: of its tokenizer'),
    'text.width': WIDTH,
    'text.layers': Whole(1, 256, 'layers'),
    'text.heads': Whole(1, 1024, 'heads of attention'),
    'text.activation': Choice(('quick_gelu', 'gelu')),
    'text.embedding_scale': Real(0.0, 1e3, 'deviation', above=True),
    'text.frozen': Flag(),
    'text.mask': Flag(),
    # denoisers
    'unet.block_out_channels': WIDTHS,
    'unet.layers_per_block': Whole(1, 64, 'layers'),
    'unet.attention_head_dim': Either((Whole(1, 1024), Several(Whole(1, 1024), 1, 12)), 'heads, one number or one each level'),
    'unet.cross_attention_dim': Whole(1, SIZE, 'width of the text: text.width'),
    'unet.norm_num_groups': Whole(1, 1024, 'groups of each norm; divides the channels'),
    'unet.use_linear_projection': Flag(),
    'unet.attention_levels': Several(Flag(), 1, 12, 'of each level'),
    'patch': Whole(1, 64, 'pixels or texels per side that are one position'),
    'layout': Text('of the planes'),
    'cross_plane': Flag(),
    'camera_embedding': Flag(),
    'remat': Flag(),
    'diffusion.schedule': Choice(('cosine', 'linear', 'scaled_linear')),
    'diffusion.timesteps': Whole(2, 10**5, 'times of the schedule'),
    'diffusion.prediction': Choice(('eps', 'x0', 'v'), '', (('epsilon', 'eps'), ('sample', 'x0'), ('v_prediction', 'v'))),
    'diffusion.shift': Real(-20.0, 20.0, 'of log SNR'),
    'diffusion.clip': Real(0.0, 1e4, 'deviations', above=True),
    'diffusion.min_snr': Real(0.0, 1e6, 'gamma; 0: all weights 1'),
    'drop_text': SHARE,
    'sample.steps': Whole(1, 10**5, 'of the sampler'),
    'sample.guidance': Real(0.0, 1e3, 'scale of guidance; 1: none'),
    'sample.elevation': Real(-1.6, 1.6, 'radians'),
    'aux.weight': WEIGHT,
    'aux.size': Whole(1, 4096, 'rays per side'),
    'aux.elevation': ANGLES,
    'planes.mean': Several(Real(-1e6, 1e6), 0, SIZE, 'of each channel; empty: those of the data'),
    'planes.std': Several(Real(0.0, 1e6), 0, SIZE, 'of each channel; empty: those of the data'),
    'psi': Real(-2.0, 2.0, 'truncation'),
    'sr_style': Text('what the upsampler is modulated by'),
    # the triplane GAN
    'generator.z': WIDTH,
    'generator.w': WIDTH,
    'generator.mapping_layers': Whole(1, 256, 'layers'),
    'generator.pose_conditioning': Flag(),
    'generator.plane_resolution': Whole(4, 4096, 'texels per side, a power of two'),
    'generator.plane_channels': WIDTH,
    'generator.channel_base': Whole(1, 2**22, 'channels times resolution'),
    'generator.channel_max': WIDTH,
    'generator.hidden': WIDTH,
    'generator.features': Whole(3, SIZE, 'channels of a rendered feature; the first three are the raw colour'),
    'generator.sr.input_size': Whole(4, 4096, 'pixels per side'),
    'generator.sr.channels': Several(Whole(1, SIZE), 2, 2, 'of the two blocks of the upsampler'),
    'generator.sr.ups': Several(Flag(), 2, 2, 'which of the two blocks double the size'),
    'generator.sr_style': Text('what the upsampler is modulated by'),
    'generator.clamp': Real(0.0, 1e6, 'bound of activations; 0: none'),
    'discriminator.channel_base': Whole(1, 2**22, 'channels times resolution'),
    'discriminator.channel_max': WIDTH,
    'discriminator.mapping_layers': Whole(1, 256, 'layers'),
    'discriminator.group': Whole(1, 2**20, 'samples whose deviation is taken'),
    'discriminator.pose': Flag(),
    'discriminator.label_noise': Real(0.0, 1e3, 'deviation'),
    'discriminator.clamp': Real(0.0, 1e6, 'bound of activations; 0: none'),
    'micro_batch': Whole(1, 2**20, 'samples that share statistics'),
    'ladder': Several(Several(Whole(0, COUNT), 2, 2), 0, 64, '(images shown, neural resolution) pairs'),
    'r1.gamma': Real(0.0, 1e6, 'weight; 0: by the rule of batch and pixels'),
    'r1.every': Whole(1, 2**20, 'steps'),
    'density.weight': WEIGHT,
    'density.every': Whole(1, 2**20, 'steps'),
    'opacity.weight': WEIGHT,
    'opacity.images': Several(IMAGES, 2, 2, 'images shown: where it begins, where it is whole', rising=True),
    'blur.sigma': Real(0.0, 100.0, 'pixels'),
    'blur.images': IMAGES,
    'swap.p': SHARE,
    'swap.images': IMAGES,
    'augment.on': Flag(),
    'augment.p': SHARE,
    'augment.images': Whole(1, COUNT, 'images shown'),
    # rendering
    'render.size': Whole(1, 4096, 'rays per side'),
    'render.samples': Whole(2, 4096, 'samples on a ray'),
    'render.importance': Whole(0, 4096, 'further samples on a ray'),
    'render.samples_shown': Whole(2, 4096, 'samples on a ray of previews and assets'),
    'render.limits': Text('box or fixed'),
    'render.near': Real(0.0, 1e3, 'scene units'),
    'render.far': Real(0.0, 1e3, 'scene units'),
    'render.box_warp': Real(0.0, 1e3, 'side of the box of the planes, scene units', above=True),
    'render.plane_axes': Choice(('orthogonal', 'legacy')),
    'render.background': Real(0.0, 1.0, 'grey'),
    'render.radius': Real(0.0, 1e3, 'distance of the cameras, scene units', above=True),
    'render.fov': Real(0.0, 3.14, 'radians', above=True),
    'planes.resolution': Whole(2, 4096, 'texels per side'),
    'planes.channels': WIDTH,
    'planes.hidden': WIDTH,
    # Instant3D's decoder and field
    'decoder.channels': WIDTHS,
    'decoder.heads': Several(Whole(0, 1024), 1, 12, 'of each level; 0: no attention'),
    'decoder.groups': Several(Whole(1, 1024), 1, 12, 'of each level; divide the channels'),
    'decoder.layers': Whole(1, 256, 'layers'),
    'decoder.mid_heads': Whole(1, 1024, 'heads of attention'),
    'decoder.base_size': Whole(1, 1024, 'texels per side of the first map'),
    'decoder.base_channels': WIDTH,
    'decoder.mixer_width': WIDTH,
    'decoder.mixer_heads': Whole(1, 1024, 'heads of attention'),
    'decoder.style_width': WIDTH,
    'decoder.style_channels': WIDTH,
    'decoder.out_channels': Whole(3, SIZE, 'of three planes together, a multiple of 3'),
    'decoder.out_groups': Whole(1, 1024, 'groups of the last norm'),
    'decoder.cross_attention': Flag(),
    'decoder.style_injection': Flag(),
    'decoder.token_to_plane': Flag(),
    'decoder.remat': Flag(),
    'field.hidden': WIDTH,
    'field.alpha': Real(0.0, 1e3, 'coefficient of the scaled sigmoid', above=True),
    'field.blob': Real(-1e4, 1e4, 'density added in the middle'),
    'field.density_bias': Real(-1e4, 1e4, 'added to the raw density'),
    'field.density_scale': Real(0.0, 1e6, 'of the density', above=True),
    'noise': Real(0.0, 1e3, 'deviation of the style noise'),
    # fits of posed views
    'untrained': Flag('a system without weights of its own'),
    'fit.resolution': Whole(2, 4096, 'texels per side of the planes'),
    'fit.channels': WIDTH,
    'fit.hidden': WIDTH,
    'fit.levels': Whole(1, 12, 'of the pyramid of planes'),
    'fit.cells': Whole(4, 512, 'per side of the grid of what is occupied'),
    'fit.samples': Whole(2, 4096, 'samples on a ray'),
    'fit.rays': Whole(1, 2**22, 'of each step'),
    'fit.stages': Whole(1, 10**4, 'times that the grid is made anew; divides the steps'),
    'fit.learning_rate': RATE,
    'fit.decoder_rate': RATE,
    'fit.huber': Real(0.0, 1e3, 'colour error from which it counts linearly; 0: squared throughout'),
    'fit.mask': WEIGHT,
    'fit.tv': WEIGHT,
    'fit.entropy': WEIGHT,
    'fit.density': Real(0.0, 1e6, 'per unit of a raw output of 1', above=True),
    'render.bound': Real(0.0, 1e6, 'half the side of the cube of the object; 0: what the cameras show'),
    'render.tolerance': Real(0.0, 1.0, 'of the colour of a plain background'),
    # losses and optimizers
    'loss.rays': Whole(1, 2**20, 'rays of each view'),
    'loss.foreground': SHARE,
    'loss.mask': WEIGHT,
    'loss.depth': WEIGHT,
    'loss.stride': Whole(1, 64, 'one of stride x stride pixels is rendered'),
    'optimizer.learning_rate': RATE,
    'optimizer.warmup': Whole(0, COUNT, 'steps'),
    'optimizer.final': Real(0.0, 1.0, 'share of the learning rate that is left at the end'),
    'optimizer.b1': DECAY,
    'optimizer.b2': DECAY,
    'optimizer.eps': Real(0.0, 1.0, 'added to the deviation', above=True),
    'optimizer.weight_decay': Real(0.0, 1e3, 'weight decay'),
    'optimizer.clip': Real(0.0, 1e12, 'bound of the norm of the gradients', above=True),
    'optimizer.generator.learning_rate': RATE,
    'optimizer.generator.b1': DECAY,
    'optimizer.generator.b2': DECAY,
    'optimizer.discriminator.learning_rate': RATE,
    'optimizer.discriminator.b1': DECAY,
    'optimizer.discriminator.b2': DECAY,
    # what is shown and written
    'preview.rows': Whole(1, 1024, 'rows of the contact sheet'),
    'preview.views': Whole(1, 256, 'views in a row'),
    'preview.elevation': Real(-1.6, 1.6, 'radians'),
    'preview.columns': Text('title'),
    'export.prompts': Several(Text(), 0, 2**16, 'texts'),
    'export.formats': Several(Choice(('glb', 'obj', 'ply', 'stl')), 0, 4, 'mesh formats'),
    'export.texture': Whole(16, 8192, 'texels per side, 0 for vertex colours', also=(0,)),
    'export.faces': Whole(4, 10**8, 'triangles at most'),
    'export.grid': Whole(8, 1024, 'cells per side of the density grid'),
    'export.frames': Whole(0, 10**5, 'of the turntable; 0: none'),
    'export.size': Whole(16, 8192, 'pixels of the turntable'),
    'export.render_size': Whole(8, 4096, 'pixels rendered before scaling to export.size'),
}


def rule(name: str):
    """The rule of a key."""
    return LIMITS.get(name, Plain())


def check(flat: Mapping[str, object]) -> dict[str, object]:
    """The values of a flat config {dotted name: value}, each as its rule reads it.

    Raises:
      UsageError: the first that is out of range, with what is wanted and the nearest value.
    """
    return {name: held(name, value, rule(name)) for name, value in flat.items()}
