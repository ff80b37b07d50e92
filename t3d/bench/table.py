"""The table of benchmarks: the word of `t3d bench WORD` -> module. Each has `flags()` and `main(argv) -> exit status`."""

from t3d.core import parsing, tables

BENCHMARKS = {
    'render': 't3d.bench.render',
    'train': 't3d.bench.train',
    'start': 't3d.bench.start',
    'unet': 't3d.bench.unet',
    'gan': 't3d.bench.gan',
    'mv': 't3d.bench.mv',
    'sds': 't3d.bench.sds',
    'decoder': 't3d.bench.decoder',
    'hash': 't3d.bench.hashgrid',
    'roof': 't3d.bench.roof',
    'scale': 't3d.bench.scale',
    'goals': 't3d.bench.goals',
    'gpu': 't3d.bench.gpu',
}


def main(argv=None) -> int:
    """`t3d bench WORD ...`: one of the table, or a module of your own with `main(argv)`."""
    parser = parsing.Parser(prog='t3d bench', description='Speed of this machine.', add_help=False)
    parser.add_argument('benchmark', help=f'{", ".join(BENCHMARKS)}, or a module of your own')
    args, rest = parser.parse_known_args(argv)
    return tables.find(args.benchmark, BENCHMARKS, 'benchmark', 'main').main(rest)
