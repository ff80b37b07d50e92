"""What the table launchers share: scores kept on disk, so that a stopped command goes on, and their variants."""

import json
import pathlib

from t3d.core import config as configs
from t3d.core.errors import UsageError


class Kept:
    """The lines of a JSON file: the settings of its command, then a row of scores each.

    Attributes:
      rows: those on disk, without the settings.

    Raises:
      UsageError: the file was made with other settings.
    """

    def __init__(self, path: pathlib.Path, settings: dict):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        if lines and lines[0] != settings:
            raise UsageError(f'{path} was made with {lines[0]}, not {settings}: name another --out.')
        if not lines:
            path.write_text(json.dumps(settings) + '\n')
        self.path, self.rows = path, lines[1:]

    def add(self, *rows: dict) -> None:
        """Appends rows, to the file too."""
        self.rows += rows
        with self.path.open('a') as file:
            file.writelines(json.dumps(row) + '\n' for row in rows)


def variant_flags(parser, variants: dict, steps: int) -> None:
    """--steps, --seeds, --variants and overrides of a launcher that trains each of `variants` with several seeds."""
    parser.add_argument('--steps', type=int, default=steps)
    parser.add_argument('--seeds', type=int, default=3, help='how many (default: 3)')
    parser.add_argument('--variants', help=f'some of {", ".join(variants)}; split by commas (default: all)')
    parser.add_argument('overrides', nargs='*', help='key=value of the config, for all variants')


def chosen(args, base: str, variants: dict[str, tuple[str, ...]]) -> list[str]:
    """The variants that are asked for; UsageError for one that is not there, and for overrides that `base` does not take.

    Args:
      variants: name -> overrides.
    """
    names = [name.strip() for name in args.variants.split(',')] if args.variants else list(variants)
    if wrong := [name for name in names if name not in variants]:
        raise UsageError(f'unknown variant {wrong[0]!r}: choose from {", ".join(variants)}.')
    for name in names:
        configs.load(base, [*args.overrides, *variants[name]])
    return names
