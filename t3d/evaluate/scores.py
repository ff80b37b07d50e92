"""`t3d eval RUN --metrics psnr,ssim,fid ...`: chosen scores of a run's pictures, each with n, extractor and control.

    psnr, ssim          renders against the true views from the same cameras
    fid, kid            distance of the two sets of pictures over Inception-v3, with the user's weights
    fid_tiny, kid_tiny  the same over random convolutions: for small runs of this project, needs no files
    fd_effnet, kd_effnet  the same over EfficientNet-Lite0, from an installed package
    fd_mobilenet, kd_mobilenet  the same over MobileNetV2, from another
    clip                CLIP similarity and R-precision, with the user's weights
    align               retrieval of the caption, and of its colour where the data know it exactly, by offline judges from
                        installed packages; with --align-head DIR by a head that `python -m launch.align_head` trained
    align_mobilenet     retrieval of the caption by the second judge, MobileNetV2, which has no head: for what was chosen or
                        ranked by EfficientNet's features

The shuffled control of a score of pairs (psnr, ssim, clip, align) takes the truth or the caption of another object; that of a
distance between sets mixes their members, which gives its value where there is no difference, at the same n. Renders of the
same scenes from the same cameras as the truth can lie below that: two independent draws differ more.
"""

import difflib

import numpy as np

from t3d.core.errors import UsageError
from t3d.evaluate import drawing, extractors, table
from t3d.inference.loading import Loaded
from t3d.metrics import fid, image
from t3d.metrics import scores as reports

PAIRED = {'psnr': image.psnr, 'ssim': image.ssim}
# Fréchet distances, and the kernel distance over the same features
FRECHET = {'fid': 'kid', 'fid_tiny': 'kid_tiny', 'fd_effnet': 'kd_effnet', 'fd_mobilenet': 'kd_mobilenet'}
EXTRACTOR = {'fid': 'inception', 'fid_tiny': 'tiny', 'fd_effnet': 'effnet', 'fd_mobilenet': 'mobilenet'}
EXTRACTOR |= {FRECHET[name]: features for name, features in EXTRACTOR.items()}
WORDED = (extractors.CLIP, *extractors.ALIGNED)
NAMES = (*PAIRED, *EXTRACTOR, *WORDED)


def evaluate(
    loaded: Loaded,
    names: list[str],
    log=lambda line: None,
    *,
    inception_weights: str | None = None,
    clip_weights: str | None = None,
    align_head: str | None = None,
    limit: int | None = None,
    split: str | None = None,
) -> dict[str, float | int | str]:
    """The named scores; what they need is looked for before anything is rendered.

    Returns:
      `<score>`, `control/<score>_shuffled`, and `<score>_n` and `<score>_extractor`, for each; `log` gets one line for each.
    Raises:
      UsageError: an unknown name, or weights or a package that a score needs; the message says what to give.
    """
    names = check(names, loaded)
    evaluator = table.fitting(loaded, loaded.config.evaluate[0])
    if align_head is not None and 'align' not in names:
        raise UsageError(f'--align-head {align_head} is for align, which is not among the metrics: add it, or drop the head.')
    kinds = dict.fromkeys(EXTRACTOR.get(name, name) for name in names if name not in PAIRED)
    config = table.data_config(loaded, evaluator)
    judges = {kind: extractors.find(kind, config, inception_weights, clip_weights, align_head) for kind in kinds}
    if limit is not None and limit < 1:
        raise UsageError(f'--limit {limit}: wanted at least 1.')
    pictures = evaluator.pictures(loaded, log, limit=limit, split=split)
    scores, features = {}, {}
    for name in names:
        if name in PAIRED:
            made = [_of_pairs(name, pictures)]
        elif name in EXTRACTOR:
            kind = EXTRACTOR[name]
            if kind not in features:
                log(f'features of {pictures.shown[..., 0, 0, 0].size} images and as many true ones: {judges[kind].name}')
                features[kind] = [_features(judges[kind], some) for some in (pictures.shown, pictures.true)]
            made = [distance(name, judges[kind], *features[kind], log=log)]
        else:
            made = judges[name](pictures)
        for report in made:
            for line in report.lines() if name in WORDED else _lines(report):
                log(line)
            scores.update(_flat(report))
    return scores


def check(names: list[str], loaded: Loaded | None = None) -> list[str]:
    """The names without repetition; UsageError for one that is unknown, or that this run cannot have."""
    for name in names:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, 1)
            hint = f' Did you mean {near[0]}?' if near else ''
            raise UsageError(f'unknown metric {name!r}: choose from {", ".join(NAMES)}.{hint}')
        if loaded is None:
            continue
        evaluator = table.first(loaded.config)
        if not callable(getattr(evaluator, 'pictures', None)):
            raise UsageError(
                f'{name} compares pictures, and the evaluator {loaded.config.evaluate[0]!r} has no function `pictures`: leave '
                '--metrics out, or name another with --evaluate.'
            )
        if name in WORDED and not getattr(evaluator, 'CAPTIONED', False):
            raise UsageError(f'{name} compares with captions, and {loaded.config.system} reads none: choose fid_tiny or fid.')
        if name in PAIRED and not getattr(evaluator, 'PAIRED', False):
            raise UsageError(
                f'{name} compares with the true view of the object shown, and what {loaded.config.system} makes has none: '
                'choose a distance between sets, for example fid_tiny, or clip.'
            )
    return list(dict.fromkeys(names))


# ------------------------------------------------------------------------------------------------------------- scores


def _of_pairs(name: str, pictures: drawing.Pictures) -> reports.Report:
    """PSNR or SSIM over all views; the control compares with the true views of another object."""
    other = reports.derangement(len(pictures.true))
    value, control = (float(np.mean(PAIRED[name](pictures.shown, true))) for true in (pictures.true, pictures.true[other]))
    count = int(np.prod(pictures.true.shape[:2]))
    return reports.Report({name: value}, {name: control}, count, count, 'pixels')


def distance(name: str, extractor: fid.Extractor, drawn: np.ndarray, true: np.ndarray, log=lambda line: None) -> reports.Report:
    """A distance between two sets of features [N, D]; a Fréchet distance that n forbids becomes the kernel distance."""
    if name in FRECHET and min(len(drawn), len(true)) <= extractor.dim:
        log(
            f'warning: {name} of {min(len(drawn), len(true))} images over {extractor.dim} features would be mostly bias; '
            f'{FRECHET[name]}, which is unbiased, stands in its place.'
        )
        name = FRECHET[name]

    def measure(a, b):
        return fid.frechet(fid.moments(a), fid.moments(b)) if name in FRECHET else fid.kernel_distance(a, b)[0]

    value, control = measure(drawn, true), measure(*fid.shuffled(drawn, true))
    return reports.Report({name: value}, {name: control}, len(drawn), len(true), extractor.name)


def _features(extractor: fid.Extractor, images: np.ndarray) -> np.ndarray:
    return fid.extract(extractor, images.reshape(-1, *images.shape[2:]))


def _lines(report: reports.Report) -> list[str]:
    """Report.lines for scores that choose among no prompts."""
    tail = f'n={report.n} against {report.candidates} true, {report.extractor}'
    return [f'{name} {value:.4g} (shuffled {report.shuffled[name]:.4g}; {tail})' for name, value in report.values.items()]


def _flat(report: reports.Report) -> dict[str, float | int | str]:
    metrics = {}
    for name, value in report.values.items():
        metrics |= {name: value, f'control/{name}_shuffled': report.shuffled[name]}
        metrics |= {f'{name}_n': report.n, f'{name}_candidates': report.candidates, f'{name}_extractor': report.extractor}
    return metrics
