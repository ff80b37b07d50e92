"""What `generate`, `export` and `render` share: flags of prompts, seeds, meshes and turntables, and their checks."""

import sys

from t3d.core import parsing
from t3d.core.rules import Real, Whole

RANGES = {
    'texture': Whole(16, 8192, 'texels per side, 0 for vertex colours', also=(0,)),
    'faces': Whole(4, 10**8, 'triangles at most'),
    'grid': Whole(8, 1024, 'cells per side of the density grid'),
    'threshold': Real(0.0, 1e6, 'density of the surface', above=True),
    'height': Real(0.0, 1e6, 'metres', above=True),
    'frames': Whole(0, 10**5, 'of the turntable; 0: none'),
    'size': Whole(16, 8192, 'pixels of the turntable'),
    'render_size': Whole(8, 4096, 'pixels rendered before scaling to --size'),
}
MOST = 10_000  # seeds of one command
FORMATS = 'glb, obj, ply, stl'


def prompts(command) -> None:
    command.add_argument('prompt', nargs='*', help='one prompt each, in quotes')
    command.add_argument('--prompts', metavar='FILE', help='a text file, one prompt a line')
    command.add_argument('--seeds', default='0', help='a number, a list 0,4 or a range 0-3')


def places(command) -> None:
    command.add_argument('--out', default='out', help='folder to write (default: out/)')
    command.add_argument('--grid', type=int, help='cells per side of the density grid')
    command.add_argument('--dry-run', action='store_true', help='print what would be made, make nothing')


def meshes(command) -> None:
    command.add_argument('--format', dest='formats', nargs='+', metavar='F', help=FORMATS)
    command.add_argument('--texture', type=int, help='texels per side, 0 for vertex colours')
    command.add_argument('--faces', type=int, help='triangles at most')
    command.add_argument('--threshold', type=float, help='density of the surface (default: the one that fits the renders)')
    command.add_argument(
        '--origin', choices=('scene', 'floor'), help="y = 0 of the files: the scene's middle, or the mesh's base"
    )
    command.add_argument('--height', type=float, metavar='METRES', help='of the mesh in the files, from its base to its top')
    command.add_argument(
        '--light', choices=('baked', 'removed'), help="in the colours, or divided out where the data's is known"
    )


def views(command) -> None:
    command.add_argument('--frames', type=int, help='of the turntable, 0 for none')
    command.add_argument('--size', type=int, help='pixels of the turntable')
    command.add_argument('--render-size', type=int, help='pixels rendered before scaling to --size')
    command.add_argument('--gif', action='store_true', default=None, help='also a gif')
    command.add_argument(
        '--images', action='store_true', default=None, help='also the frames as images/*.png, which cameras.json then names'
    )


def parse_seeds(text: str) -> list[int]:
    """[0, 1, 2, 3, 7] from '0-3,7'."""
    from t3d.core.errors import UsageError

    seeds, count = [], 0
    for part in text.split(','):
        first, dash, last = part.strip().partition('-')
        good = all(number.isascii() and number.isdigit() and int(number) < 2**32 for number in (first, last if dash else first))
        if not good or (dash and int(last) < int(first)):
            raise UsageError(f'seeds {text!r}: wanted a number below 2^32, a list 0,4 or a range 0-3.')
        count += int(last if dash else first) - int(first) + 1
        if count > MOST:
            raise UsageError(f'seeds {text!r}: {count} of them, wanted at most {MOST}: give a shorter range.')
        seeds += range(int(first), int(last if dash else first) + 1)
    return list(dict.fromkeys(seeds))


def all_prompts(args, config) -> list[str]:
    """The prompts given as words and in the file of --prompts; without any, those of the config."""
    from t3d.core.errors import UsageError

    prompts = given_prompts(args) or prompts_of(config)
    if not prompts:
        raise UsageError('no prompt: give one in quotes, or a file with --prompts FILE.')
    return prompts


def prompts_of(config) -> list[str]:
    """The prompts that a run was trained for, if it was, else those that its config wants to see."""
    return list(config.get('prompts') or config.get('export', {}).get('prompts', ()))


def given_prompts(args) -> list[str]:
    """The prompts given as words and in the file of --prompts."""
    from t3d.core import prompts

    return [*args.prompt, *(prompts.read(args.prompts) if args.prompts else ())]


def check(args) -> None:
    """Raises UsageError for what can be known to be wrong before the weights are read."""
    from t3d.core.errors import UsageError
    from t3d.export import meshes, writers

    known = {name for names in writers.FORMATS.values() for name in names}
    unknown = [word for word in getattr(args, 'formats', None) or () if word not in known]
    if unknown:
        hint = ' Put prompts before --format.' if ' ' in unknown[0] else ''
        raise UsageError(f'unknown mesh format {unknown[0]!r}: choose from {", ".join(meshes.FORMATS)}.{hint}')
    parsing.held(args, RANGES)
    parsing.writable(args.out)
    words = args.prompt
    numbers = [word for word in words if word.isdecimal()]
    if numbers and args.seeds != '0':
        several = ','.join([args.seeds, *numbers])
        raise UsageError(f'the prompt "{numbers[0]}" is a number: several seeds are one word, --seeds {several}.')
    if len(words) > 1 and not any(' ' in word for word in words):
        print(
            f'note: {len(words)} prompts of one word each: {", ".join(words)}. One prompt of several words goes in quotes: '
            f'"{" ".join(words)}".',
            file=sys.stderr,
        )
