"""`python -m launch.make_triplanes --run RUN --out DIR --pairs 1000 --captioner toy`: captioned triplanes for stage 2.

The same command again goes on where it stopped; a larger --pairs adds to the folder. Many processes: the same command with
`--share 0/4` to `--share 3/4` on each, then once without, which puts together what they made, and makes what is missing.
"""

import numpy as np

from t3d.build import captioners, make_triplanes
from t3d.core import parsing, shares
from t3d.core.rules import Real, Whole
from t3d.data.adapters import triplanes
from t3d.parallel import devices

RANGES = {
    'pairs': Whole(1, 2**32, 'pairs in all'),
    'psi': Real(-2.0, 2.0, 'truncation; 1: none'),
    'views': Whole(1, 256, 'pictures of each object'),
    'batch': Whole(1, 2**16, 'objects at a time'),
    'seed0': Whole(0, 2**32 - 1, 'the first seed'),
}


def main(argv: list[str] | None = None) -> None:
    parser = parsing.Parser(prog='python -m launch.make_triplanes', description=__doc__)
    parser.add_argument('--run', required=True, help='run folder or weights folder of ganfusion_gan')
    parser.add_argument('--out', required=True, help='the folder to write, or to go on with')
    parser.add_argument('--pairs', type=int, default=1000, help='in all (default: 1000)')
    parser.add_argument('--captioner', default='toy', help=f'one of {", ".join(captioners.NAMES)} (default: toy)')
    parser.add_argument('--captioner-weights', metavar='DIR', help='local folder of BLIP, for blip and blip-vqa')
    parser.add_argument('--template', default='objects', help='of blip-vqa: people, faces, objects (default: objects)')
    parser.add_argument('--psi', type=float, default=1.0, help='truncation; 1 for none (default: 1)')
    parser.add_argument('--views', type=int, default=1, help='pictures of each object that the captioner sees (default: 1)')
    parser.add_argument('--batch', type=int, default=16, help='objects at a time (default: 16)')
    parser.add_argument('--seed0', type=int, default=0, help='the first seed (default: 0)')
    parser.add_argument('--share', metavar='I/N', help='make the part of process I of N, from 0')
    args = parser.parse_args(argv)
    devices.compilation_cache()
    names = ('pairs', 'captioner', 'template', 'psi', 'views', 'batch', 'seed0')
    with parsing.refusing(parser):
        parsing.held(args, RANGES)
        parsing.writable(args.out)
        options = {name: getattr(args, name) for name in names}
        share = shares.parse(args.share) if args.share is not None else None
        out = make_triplanes.run(args.run, args.out, weights=args.captioner_weights, share=share, **options)
    if share is None:
        print(f'wrote {out}: set data.path={out} of configs/ganfusion_diffusion.py{how_far(triplanes.Pairs(out).records)}')


def how_far(records: list[dict]) -> str:
    """How far pictures of pairs are from what their words say, where the captioner tells: stage 2 leaves the furthest out."""
    far = [record['slots']['distance'] for record in records if 'distance' in record['slots']]
    if not far:
        return ''
    low, middle, high = np.percentile(far, (10, 50, 90))
    return (
        f'\nfrom pictures to their words: distance {middle:.2f}, of a tenth of the pairs below {low:.2f}, of a tenth above '
        f'{high:.2f}; stage 2 leaves out those above its data.max_distance'
    )


if __name__ == '__main__':
    main()
