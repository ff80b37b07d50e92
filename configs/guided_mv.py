"""Guided multi-view diffusion: a multi-view and a text-to-image model sampled together; nothing is trained.

    t3d generate "a red cube" --config configs/guided_mv.py:tiny

| variant | models | where |
|---|---|---|
| `tiny` | the weights that come with t3d | two CPU cores, a minute |
| `base` | a run of mvdiffusion:base, with itself as the 2D model | one large GPU |
| `pod` | MVDream's and Stable Diffusion's weights of yours: --given views=RUN pictures=FOLDER | one large GPU |
"""

import ml_collections


def get_config(variant: str = 'tiny') -> ml_collections.ConfigDict:
    """The config of a variant; every number a sample depends on."""
    variants = {'tiny': tiny, 'base': base, 'pod': pod}
    if variant not in variants:
        raise ValueError(f'unknown variant {variant!r} of guided_mv: there are {", ".join(variants)}')
    return variants[variant]().lock()


def tiny() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.system, config.variant, config.seed = 'guided_mv', 'tiny', 0
    config.untrained = True  # `t3d generate` makes it of this config: there are no weights to read
    config.given = {'views': 'mvdiffusion-toy', 'pictures': 'image_diffusion-toy'}
    config.mixing = dict(
        branch='sd',  # 'self2d': the multi-view model without cameras; 'sd'; 'sd_hires': at the size of given.pictures
        form='mix',  # or 'consistency'
        schedule='linear',  # 'constant' (last), 'linear', 'power', 'step'
        first=0.5,  # lambda at the noisiest time: the weight of the multi-view model
        last=1.0,
        power=1.0,
        at=0.5,
    )
    config.sample = dict(sampler='ddim', steps=25, guidance=1.0, flat_guidance=1.0, blob=False)
    config.suffixes = False  # ', front view' and so on for the 2D model: for models that know these words
    config.unknown_words = ()  # left out of the multi-view model's prompt, which would refuse them
    config.evaluate = ()
    config.export = dict(prompts=('a red cube', 'a purple sphere'), lift='configs/reconstruct.py:tiny')
    return config


def base() -> ml_collections.ConfigDict:
    config = tiny()
    config.variant = 'base'
    config.given = {'views': '', 'pictures': ''}
    config.mixing.branch = 'self2d'
    config.sample.update(steps=50, guidance=5.0, flat_guidance=5.0)
    config.export.lift = 'configs/reconstruct.py:base'
    return config


def pod() -> ml_collections.ConfigDict:
    config = base()
    config.variant = 'pod'
    config.mixing.branch = 'sd'
    config.sample.update(guidance=7.5, flat_guidance=7.5)
    config.suffixes = True
    return config
