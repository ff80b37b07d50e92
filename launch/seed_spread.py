"""`python -m launch.seed_spread RUN "a red cube" "a blue cone" --seeds 4`: how much a seed changes an object, beside a prompt.

Four views of each object over white; the PSNR between the same views of two objects, over all pairs of seeds of a prompt and
over all pairs of prompts of a seed. A high PSNR is little change.
"""

import itertools

import numpy as np

from t3d.core import parsing
from t3d.core.errors import UsageError
from t3d.core.outputs import Field, Picture, Views, kind_of
from t3d.core.rules import Whole
from t3d.parallel import devices

RANGES = {'seeds': Whole(2, 1000, 'to compare'), 'size': Whole(4, 4096, 'pixels of a view')}


def main(argv: list[str] | None = None) -> None:
    parser = parsing.Parser(prog='python -m launch.seed_spread', description=__doc__)
    parser.add_argument('run', help='run folder, weights folder, or the name of shipped weights')
    parser.add_argument('prompt', nargs='+', help='two or more, in quotes')
    parser.add_argument('--seeds', type=int, default=4, help='how many, two at least (default: 4)')
    parser.add_argument('--size', type=int, default=64, help='pixels of a view (default: 64)')
    args = parser.parse_args(argv)
    devices.compilation_cache()
    with parsing.refusing(parser):
        parsing.held(args, RANGES)
        prompts = list(dict.fromkeys(args.prompt))
        if len(prompts) < 2:
            raise UsageError(f'one prompt, {prompts[0]!r}: pairs want two, in quotes.')
        pictures = views(args.run, prompts, args.seeds, args.size)
    for name, (mean, low, count) in {'seeds': spread(pictures), 'prompts': spread(pictures.swapaxes(0, 1))}.items():
        print(f'other {name}: PSNR {mean:.1f} dB (mean of {count} pairs of objects, lowest {low:.1f})')


def views(run, prompts: list[str], seeds: int, size: int) -> np.ndarray:
    """float [P, S, pixels, 3] in [0, 1]: what four cameras around the object of each prompt and seed see, or its pictures."""
    from t3d.export import renders, video
    from t3d.inference import loading

    loaded, rows = loading.load(run), {}
    for seed, made in loading.generate(loaded, prompts, list(range(seeds))):
        if isinstance(made, Picture):
            image = made.image
        elif isinstance(made, Views):
            image = np.asarray(made.images)[..., :3]
        elif isinstance(made, Field):
            image = renders.smooth_views(made, video.orbit(made, 4), size).rgb
        else:
            raise UsageError(f'{loaded.name} makes {kind_of(made)}: pictures, views and fields are compared.')
        rows[made.prompt, seed] = np.asarray(image, np.float64).reshape(-1, 3)
    return np.stack([[rows[prompt, seed] for seed in range(seeds)] for prompt in prompts])


def spread(pictures: np.ndarray) -> tuple[float, float, int]:
    """(mean, lowest, number) of the PSNR in dB over the pairs along the second axis of [A, B, pixels, 3]."""
    values = []
    for row in pictures:
        values += [-10.0 * np.log10(max(np.mean((a - b) ** 2), 1e-10)) for a, b in itertools.combinations(row, 2)]
    return float(np.mean(values)), float(np.min(values)), len(values)


if __name__ == '__main__':
    main()
