"""Scores of a trained text-to-3D system on views it has not seen, each with its n and its control."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from t3d.core import prng, rules
from t3d.core.errors import UsageError
from t3d.data import oracle, shapes, sources, toy
from t3d.geom import cameras
from t3d.metrics import image, retrieval
from t3d.metrics.scores import derangement
from t3d.train import evaluate_gan, evaluate_pictures, evaluate_triplanes
from t3d.train.inference import Loaded

AZIMUTH = np.arange(6) * (np.pi / 3) + 0.2  # the views every toy score is taken from
ELEVATION = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 0.3])
EVERY = 3.0  # seconds between lines of progress
SHARED = (1, 4, 7, 10)  # views of furniture at azimuths 30, 120, 210, 300 degrees, elevation 15, the same for every object


def render_views(
    loaded: Loaded,
    prompts: list[str],
    views: cameras.Cameras,
    size: int,
    *,
    params=None,
    batch: int = 32,
    seed: int = 0,
    progress=lambda done, total: None,
) -> np.ndarray:
    """Renders of each prompt: [N, V, size, size, 3] in [0, 1] over the config's background.

    Args:
      views: leading shape [V] (the same for all) or [N, V].
      params: other weights than `loaded.params`, for controls.
    """
    shared = views.world_from_cam.ndim == 3
    draw = None
    found = []
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        some = some + [some[-1]] * (batch - len(some))  # one shape, one compilation
        assets = loaded.system.generate(
            loaded.params if params is None else params, some, jax.random.fold_in(prng.key(seed), start)
        )
        draw = draw or _renderer(assets[0].render, size)
        for k, asset in enumerate(assets[: len(prompts) - start]):
            own = views if shared else jax.tree.map(lambda leaf, n=start + k: leaf[n], views)
            found.append(np.asarray(draw(asset.scene, own)))
        progress(len(found), len(prompts))
    return np.stack(found)


def progress(log, what: str):
    """A `progress` of `render_views` that tells `log` how far `what` is, every few seconds, and when it will be done."""
    began, told = time.perf_counter(), 0.0

    def tell(done: int, total: int) -> None:
        nonlocal told
        passed = time.perf_counter() - began
        if passed > told + EVERY or (told and done == total):
            log(f'{what}: {done}/{total} prompts  {passed:.0f} s  eta {passed / done * (total - done):.0f} s')
            told = passed

    return tell


def _renderer(render, size):
    @jax.jit
    def draw(scene, views):
        rays = cameras.rays(views, size, size)
        return jax.lax.map(lambda ray: jnp.clip(render(scene, ray).features, 0.0, 1.0), rays)

    return draw


def evaluate(loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None) -> dict[str, float]:
    """All scores of a run: those of its data set. Keys are `<score>` with `<score>_n` beside, and `control/<score>`.

    `split` chooses the objects of a built data set (None: those trained on); the toy set always gives both of its own. Systems
    that make pictures are scored by `evaluate_pictures`, those that learn from single views by `evaluate_gan` and
    `evaluate_triplanes`; `limit` is then the number of samples of a caption, or of pictures of a GAN.
    """
    if makes_pictures(loaded) or learns_from_single_views(loaded):
        if split is not None:
            raise UsageError(f'split {split!r}: pictures are scored on held-out and on seen captions at once: leave it out.')
        if makes_pictures(loaded):
            return evaluate_pictures.evaluate(loaded, log, samples=limit)
        judge = evaluate_gan if loaded.config.system == evaluate_gan.SYSTEM else evaluate_triplanes
        return judge.evaluate(loaded, log, samples=limit)
    if limit is not None:
        rules.held('--limit', limit, rules.Whole(2, 2**31 - 1, 'objects or scenes; a control needs another one of each'))
    if loaded.config.data.name == 'toy':
        if split is not None:
            raise UsageError(f'split {split!r}: toy is scored on held-out and on seen captions at once: leave it out.')
        scores = singles(loaded)
        if loaded.config.data.scenes != 'singles':
            scores.update(relations(loaded, log, limit=limit))
        return scores
    return views_of_objects(loaded, log, limit=limit, split=split)


def makes_pictures(loaded: Loaded) -> bool:
    """Whether a system makes single pictures, which no camera looks at."""
    return loaded.config.system == 'image_diffusion'


def learns_from_single_views(loaded: Loaded) -> bool:
    """Whether a system knows one picture of an object, so that its renders have no true views to stand beside."""
    return loaded.config.system in (evaluate_gan.SYSTEM, *evaluate_triplanes.SYSTEMS)


def single_views(loaded: Loaded) -> tuple[list[shapes.Scene], np.ndarray, np.ndarray]:
    """(the 32 large single toy objects, renders [32, 6, S, S, 3], true views of the same shape)."""
    size, background = loaded.config.data.size, loaded.config.render.background
    things = [scene for scene in shapes.singles('all') if scene.attributes['size'] == 'large']
    records = [toy.record(scene, AZIMUTH, ELEVATION, size, loaded.config.data.supersample) for scene in things]
    targets = np.stack([oracle.composite(record['image'], background) for record in records])
    views = cameras.Cameras(*toy.camera_arrays(AZIMUTH, ELEVATION, shapes.RADIUS, shapes.FOV))
    return things, render_views(loaded, [scene.captions[0] for scene in things], views, size), targets


def singles(loaded: Loaded) -> dict[str, float]:
    """Single toy objects: PSNR and nearest-target share over (pair, view), held-out and seen pairs apart.

    A render counts as right if its own target is the nearest, among the 32 shape-colour pairs, from the same view; chance is
    1/32. Controls: the prompts of the group shuffled so that none keeps its own (a model that follows them gets 0, not
    chance), for PSNR the true views of those other objects and the mean picture of all.
    """
    things, renders, targets = single_views(loaded)
    held_out = np.array([shapes.is_held_out(scene.attributes['shape'], scene.attributes['colour']) for scene in things])
    quality = np.asarray(image.psnr(renders, targets))
    scores = {}
    for name, chosen in (('held_out', np.flatnonzero(held_out)), ('seen', np.flatnonzero(~held_out))):
        other = derangement(len(chosen))
        scores[f'{name}/psnr'] = float(quality[chosen].mean())
        scores[f'{name}/nearest'] = _nearest(renders, targets, chosen, chosen)
        scores[f'control/{name}/nearest_shuffled_prompts'] = _nearest(renders, targets, chosen, chosen[other])
        scores[f'{name}/n'] = int(len(chosen) * len(AZIMUTH))
        others = {
            'shuffled_prompts': targets[chosen[other]],
            'mean_picture': np.broadcast_to(targets.mean(0), targets[chosen].shape),
        }
        for control, shown in others.items():
            scores[f'control/{name}/psnr_{control}'] = float(np.asarray(image.psnr(shown, targets[chosen])).mean())
    return scores


def _nearest(renders, targets, chosen, own) -> float:
    """Share of (render, view) of `chosen` whose nearest target of that view is `own`."""
    hits = [retrieval.ranks(retrieval.distances(renders[chosen, v], targets[:, v]), own) == 0 for v in range(renders.shape[1])]
    return float(np.mean(hits))


def relations(loaded: Loaded, log=lambda line: None, *, limit: int | None = None) -> dict[str, float]:
    """Two-object toy scenes by the exact oracle among all 3,072: shapes, colours, relation, and all of them at once.

    Control: the prompts shuffled, which leaves the luck of each attribute: some 1/4 of shapes, 1/8 of colours, 1/3 of
    relations.
    """
    size, background = loaded.config.data.size, loaded.config.render.background
    azimuth, elevation = AZIMUTH[:4], ELEVATION[:4]
    judge = oracle.Oracle(shapes.pairs('all'), azimuth, elevation, size, background, loaded.config.data.supersample)
    views = cameras.Cameras(*toy.camera_arrays(azimuth, elevation, shapes.RADIUS, shapes.FOV))
    scores, most = {}, 256 if limit is None else limit
    for split in ('test', 'train'):
        scenes = shapes.pairs(split)
        scenes = [scenes[place] for place in np.sort(np.random.default_rng(0).permutation(len(scenes))[:most])]
        log(f'oracle: {len(scenes)} {split} scenes')
        prompts = [scene.captions[0] for scene in scenes]
        renders = render_views(loaded, prompts, views, size, progress=progress(log, f'{split} scenes'))
        name = {'test': 'held_out', 'train': 'seen'}[split]
        scores.update({f'{name}_pairs/{label}': value for label, value in judge.score(renders, scenes).items()})
        shuffled = judge.score(renders[derangement(len(scenes))], scenes)
        scores.update({f'control/{name}_pairs/{label}_shuffled_prompts': value for label, value in shuffled.items()})
        scores[f'{name}_pairs/n'] = len(scenes)
    return scores


def views_of_objects(
    loaded: Loaded, log=lambda line: None, *, limit: int | None = None, split: str | None = None
) -> dict[str, float]:
    """Real objects: PSNR of held-out views, and retrieval of the object among all by its renders.

    The objects are those of training, or of another `split`, none of whose views were seen.

    The caption given is the longest of the object's. Retrieval compares renders from the four `SHARED` cameras, the same for
    all objects, with every object's true views; they are among the training cameras (the held-out ones differ from object to
    object), so it measures which object was understood, not new views. Objects whose captions are the same text cannot be told
    apart by any method that reads only the caption: `r1_ceiling` is the best such a method could reach. Controls: untrained
    weights, captions of other objects, and the mean picture of all objects.
    """
    config = loaded.config
    prompts, held_out, shared = object_views(config, limit=limit, split=split)
    log(f'rendering {len(prompts)} objects x {held_out[1].shape[1]} held-out and {len(SHARED)} shared views')
    untrained = loaded.system.init(prng.key(1), _zeros(loaded.system.batch_spec)).params
    scores = _object_scores(loaded, prompts, held_out, shared, None, log)
    control = _object_scores(loaded, prompts, held_out, shared, untrained, log)
    scores.update({f'control/{name}_untrained': value for name, value in control.items() if 'shuffled' not in name})
    counts = {prompt: prompts.count(prompt) for prompt in set(prompts)}
    scores['r1_ceiling'] = float(np.mean([1.0 / counts[prompt] for prompt in prompts]))
    mean = np.broadcast_to(held_out[1].mean(0, keepdims=True), held_out[1].shape)
    scores['control/psnr_of_the_mean_picture'] = float(np.asarray(image.psnr(mean, held_out[1])).mean())
    scores['n_objects'], scores['n_views'] = len(prompts), int(held_out[1].shape[0] * held_out[1].shape[1])
    return scores


def object_views(config, *, limit: int | None = None, split: str | None = None):
    """(prompts [N], held-out views, `SHARED` views) of a split; views are (cameras [N, V], images [N, V, H, W, 3])."""
    source = sources.open_source(config.data, split or config.data.split)
    chosen = np.arange(len(source)) if limit is None else np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int)
    records = [source[int(k)] for k in chosen]
    prompts = [max(record['captions'], key=len) for record in records]
    held_out, shared = (
        _views(records, which, config.render.background)
        for which in (range(config.data.train_views, len(records[0]['image'])), SHARED)
    )
    return prompts, held_out, shared


def _views(records, which, background):
    """(cameras [N, V], images [N, V, H, W, 3]) of chosen views of records."""
    which = list(which)
    matrices, intrinsics = (np.stack([record[name][which] for record in records]) for name in ('world_from_cam', 'intrinsics'))
    images = np.stack([oracle.composite(record['image'][which], background) for record in records])
    return cameras.Cameras(matrices, intrinsics), images


def _object_scores(loaded, prompts, held_out, shared, params, log):
    size, of = held_out[1].shape[2], '' if params is None else ', untrained weights (control)'
    told = progress(log, f'held-out views{of}')
    renders = render_views(loaded, prompts, held_out[0], size, params=params, progress=told)
    scores = {'psnr': float(np.asarray(image.psnr(renders, held_out[1])).mean())}
    told = progress(log, f'shared views{of}')
    renders = render_views(loaded, prompts, shared[0], size, params=params, progress=told)
    own = np.arange(len(prompts))
    rank = retrieval.ranks(retrieval.distances(renders, shared[1]), own)
    shuffled = retrieval.ranks(retrieval.distances(renders[derangement(len(renders))], shared[1]), own)
    return {
        **scores,
        'training_cameras/r1': retrieval.recall(rank, 1),
        'training_cameras/r10': retrieval.recall(rank, 10),
        'control/training_cameras/r1_shuffled_prompts': retrieval.recall(shuffled, 1),
        'control/training_cameras/r10_shuffled_prompts': retrieval.recall(shuffled, 10),
    }


def _zeros(spec):
    return {name: jnp.zeros(item.shape, item.dtype) for name, item in spec.items()}
