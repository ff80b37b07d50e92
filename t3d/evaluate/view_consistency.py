"""Multi-view consistency of a text-to-multi-view system on the toy set: do its views show one object that stands still?

The numbers are those of metrics/multiview.py: the error of views against renders of their own reconstruction (MVC), and the
agreement of reconstructions from two halves of the views. Each stands between two references made of the same captions:

- `floor/...`: true renders from the same cameras, which leave what the reconstruction itself loses;
- `control/independent/...`: view v of an object is taken from the v-th next of four samples of the same caption, so that every
  view is right and no four neighbours were drawn together;
- `control/...`: from another caption's object.

On toy a caption leaves nothing of an object open, so that samples of one caption are alike and `independent` is hardly worse.
Where a network has learned without text too (`drop_text`), the empty text leaves everything open: `open/...` are views of such
objects, with the share of them whose views show one shape and colour; `control/open/...` has each view of another sample. They
are all there is of a network that learned without any text (`drop_text=1`).
"""

import jax
import numpy as np

from t3d.core import prng, rules
from t3d.data.sets import pattern_oracle, shapes
from t3d.evaluate import drawing, toy_objects, view_reading
from t3d.geom.cameras import Cameras
from t3d.inference.loading import Loaded
from t3d.metrics import multiview

NAME = 'view_consistency'
PAIRED = True
CAPTIONED = True
CAPTIONS, SAMPLES = 8, 4  # of the 32 large objects, evenly spread; of each caption
LABELS = ('shape', 'colour')  # in which views of an object without a caption are to agree
LIMIT = rules.Whole(2, 32, 'captions; a control needs another one of each')


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """MVC and agreement of 4 samples of each caption, with floor and controls.

    Args:
      limit: captions; None for 8.
    """
    toy_objects.refuse_split(split)
    chosen = view_reading.some_objects(CAPTIONS if limit is None else rules.held('--limit', limit, LIMIT))
    dropped = loaded.config.get('drop_text', 0.0)
    found = scores(*samples(loaded, chosen, log)[:3], log) if dropped < 1.0 else {}
    if not dropped:
        return found
    log(f'drawing {SAMPLES * len(chosen)} objects without a text')
    drawn = view_reading.draw(loaded, [''] * (SAMPLES * len(chosen)), log, evaluator=NAME)
    return {**found, **open_scores(*drawn, view_reading.appearance(loaded), log)}


def pictures(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> drawing.Pictures:
    """The samples that are scored, with the true renders from the same cameras."""
    toy_objects.refuse_split(split)
    chosen = view_reading.some_objects(CAPTIONS if limit is None else rules.held('--limit', limit, LIMIT))
    images, _, truth, prompts = samples(loaded, chosen, log)
    return drawing.Pictures(prompts, images, truth, True)


def samples(loaded: Loaded, things: list[shapes.Scene], log) -> tuple[np.ndarray, Cameras, np.ndarray, list[str]]:
    """(images [N, V, S, S, 3], cameras [N, V], true renders, prompts [N]), the samples of each thing side by side."""
    each = [thing for thing in things for _ in range(SAMPLES)]
    prompts = [thing.captions[0] for thing in each]
    log(f'drawing {len(prompts)} objects')
    images, cameras = view_reading.draw(loaded, prompts, log, evaluator=NAME)
    return images, cameras, view_reading.true_views(each, cameras, images.shape[2], **view_reading.appearance(loaded)), prompts


def scores(images: np.ndarray, cameras: Cameras, truth: np.ndarray, log=lambda line: None) -> dict[str, float]:
    """The scores of images [N, V, S, S, 3] in runs of samples of one caption."""
    key, found, first = prng.key(0), {}, slice(None, None, SAMPLES)
    sets = {
        '': (images, cameras),
        'floor/': (truth, cameras),
        'control/independent/': apart(images, cameras, SAMPLES),
        'control/': multiview.shuffled(images[first], jax.tree.map(lambda leaf: leaf[first], cameras)),
    }
    for prefix, (shown, posed) in sets.items():
        log(f'reconstructing {len(shown)} objects{f" ({prefix[:-1]})" if prefix else ""}')
        for name, values in multiview.consistency(shown, posed, key)._asdict().items():
            found[f'{prefix}mvc_{name}'] = float(np.mean(values))
    for prefix in ('', 'floor/', 'control/independent/') if images.shape[1] >= multiview.LEAST_HALVES else ():
        for name, values in multiview.agreement(*sets[prefix], key)._asdict().items():
            found[f'{prefix}agreement_{name}'] = float(np.mean(values))
    return {**found, 'mvc_n': len(images), 'control/mvc_n': len(images) // SAMPLES}


def open_scores(images: np.ndarray, cameras: Cameras, appearance: dict, log=lambda line: None) -> dict[str, float]:
    """MVC and agreement in words of images [N, V, S, S, 3] that no caption tells, and of the same views from N samples."""
    found = {}
    for prefix, (shown, posed) in {'open/': (images, cameras), 'control/open/': apart(images, cameras, len(images))}.items():
        log(f'reconstructing {len(shown)} objects ({prefix[:-1]})')
        for name, values in multiview.consistency(shown, posed, prng.key(0))._asdict().items():
            found[f'{prefix}mvc_{name}'] = float(np.mean(values))
        readings = view_reading.read(shown, posed, **appearance)
        found[f'{prefix}agree'] = float(np.mean([pattern_oracle.agree(views, LABELS) for views in readings]))
    return {**found, 'open/n': len(images)}


def apart(images: np.ndarray, cameras: Cameras, run: int) -> tuple[np.ndarray, Cameras]:
    """View v of each object from the v-th next object of its run of `run`: nothing was drawn together."""
    rows, columns = np.indices(images.shape[:2])
    source = rows // run * run + (rows + columns) % run
    return images[source, columns], jax.tree.map(lambda leaf: np.asarray(leaf)[source, columns], cameras)
