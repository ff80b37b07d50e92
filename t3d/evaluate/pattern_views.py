"""Scores of patterned multi-view samples: is there a pattern in each view, the same in all, and in the right places?

Asked for "a striped red cube" and its like, each of the 32 large toy objects in turn striped, checked and dotted. Views are
read by data.sets.pattern_oracle.ViewsOracle: all patterns in four phases are candidates from the same camera.
"""

import functools

import numpy as np

from t3d.core import rules
from t3d.data.sets import pattern_oracle, patterns, shapes
from t3d.data.sets.pattern_oracle import LABELS, Reading
from t3d.evaluate import drawing, pixel_features, toy_objects, view_reading
from t3d.inference.loading import Loaded

SAMPLES = 4  # of each object
WORN = patterns.PATTERNS[1:]
NAME = 'pattern_views'
PAIRED = True
CAPTIONED = True


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """Scores named `patterns/...`, over held-out and seen pairs together.

    `with_pattern`: views with any pattern; `right_pattern`: views with the caption's; `same`: objects whose views all show one
    and the same pattern; `same_phase`: all in one phase, so that they fit each other; `in_place`: in the set's own phase;
    `shape`, `colour`, `size`, `agree`, `psnr` as in view_sets; `frechet_pixels`: Fréchet distance of pixels to the true views
    of the same objects from the same cameras, where there are more than 64 views. Controls: all of these for the true renders,
    for their plain fellows (no pattern, the Fréchet distance that having none costs), and for true renders whose views come
    from four phases at random (`scattered`: each view patterned, the object not).

    Args:
      limit: samples of each object; None for 4. Sample k of object i is asked for pattern (i + k) mod 3.
    """
    toy_objects.refuse_split(split)
    samples = SAMPLES if limit is None else rules.held('--limit', limit, view_reading.LIMIT)
    scenes = prompted(samples)
    log(f'drawing {len(scenes)} patterned objects')
    images, cameras = view_reading.draw(loaded, [scene.captions[0] for scene in scenes], log, evaluator=NAME)
    look = view_reading.appearance(loaded)

    def true(these, phase=0.0):
        albedo = functools.partial(patterns.albedo, phase=phase)
        return view_reading.true_views(these, cameras, images.shape[2], albedo=albedo, **look)

    phases = np.stack([true(scenes, phase) for phase in pattern_oracle.PHASES])
    truth, unpatterned = phases[0], true(plain(scenes))
    drawn = np.random.default_rng(5).integers(len(phases), size=images.shape[:2])
    scattered = np.take_along_axis(phases, drawn[None, :, :, None, None, None], 0)[0]
    scores = {}
    for name, views in (
        ('patterns', images),
        ('control/patterns/true_renders', truth),
        ('control/patterns/plain', unpatterned),
        ('control/patterns/scattered', scattered),
    ):
        readings = view_reading.read(views, cameras, patterns.PATTERNS, **look)
        values = {**shares(readings, scenes), 'psnr': view_reading.psnr(views, truth)}
        if views[..., 0, 0, 0].size > pixel_features.COMPONENTS:
            flat = (part.reshape(-1, *part.shape[2:]) for part in (views, truth))
            values['frechet_pixels'] = pixel_features.frechet(*flat, look['background'])
        scores.update({f'{name}/{label}': value for label, value in values.items()})
    return {**scores, 'patterns/n': len(scenes), 'patterns/views_n': images.shape[0] * images.shape[1]}


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """`limit` (1) samples of each of the 32 large objects with a pattern, with the true renders from the same cameras."""
    toy_objects.refuse_split(split)
    scenes = prompted(1 if limit is None else rules.held('--limit', limit, view_reading.LIMIT))
    prompts = [scene.captions[0] for scene in scenes]
    images, cameras = view_reading.draw(loaded, prompts, log, evaluator=NAME)
    truth = view_reading.true_views(scenes, cameras, images.shape[2], albedo=patterns.albedo, **view_reading.appearance(loaded))
    return drawing.Pictures(prompts, images, truth, True)


def prompted(samples: int) -> list[shapes.Scene]:
    """`samples` of each of the 32 large objects, side by side; sample k of object i wears pattern (i + k) mod 3."""
    things, _ = view_reading.objects()
    return [patterns.patterned(scene, WORN[(i + k) % 3]) for i, scene in enumerate(things) for k in range(samples)]


def shares(readings: list[list[Reading]], scenes: list[shapes.Scene]) -> dict[str, float]:
    """Shares of views and of objects, as `evaluate` names them, of readings [N][V] of N scenes."""
    pairs = [(view.labels, scene.attributes) for views, scene in zip(readings, scenes, strict=True) for view in views]
    values = {
        'with_pattern': [labels['pattern'] != 'plain' for labels, _ in pairs],
        'right_pattern': [labels['pattern'] == asked['pattern'] for labels, asked in pairs],
        **{name: [labels[name] == asked[name] for labels, asked in pairs] for name in LABELS},
        'agree': [pattern_oracle.agree(views) for views in readings],
        'same': [pattern_oracle.same_pattern(views) for views in readings],
        'same_phase': [pattern_oracle.same_phase(views) for views in readings],
        'in_place': [pattern_oracle.in_place(views) for views in readings],
    }
    return {name: float(np.mean(hits)) for name, hits in values.items()}


def plain(scenes: list[shapes.Scene]) -> list[shapes.Scene]:
    """The same objects without their pattern."""
    return [patterns.patterned(bare(scene), 'plain') for scene in scenes]


def bare(scene: shapes.Scene) -> shapes.Scene:
    """The object of toy under a pattern."""
    return shapes.single(*(scene.attributes[name] for name in ('shape', 'colour', 'size')))
