"""`python -m launch.gpu_page figures.jsonl`: Markdown tables of what `t3d bench gpu` wrote into a file; nothing is measured.

Shares of roofs are of those in the same file (`t3d bench roof`, the best of its lines): products of the same type, streams that
the kernels read and write, rows that the renderer's lookups gather.
"""

import pathlib
import statistics

from t3d.bench import gpu, sections, series, verdicts
from t3d.bench.sections import number, three
from t3d.core import parsing

TRAIN = ('train step', 'step, ms', 'images/s', 'TFLOP/s', 'MFU', 'peak, MiB', 'attentions by cuDNN', 'first step, s', 'data')
RENDER = ('renderer', 'ms', 'rays/s', 'products', 'streams', 'rows', 'rows, by the lookups alone')
OTHERS = ('network', 'type', 'ms', 'TFLOP/s', 'MFU', 'temporaries, MiB', 'peak, MiB')
PEERS = ('beside a peer', 'type', 't3d, ms', 'peer, ms', 'ratio: median [min, max]', 'difference', 'peer')
START = ('first step', 's: median [min, max]')


def page(lines: list[dict]) -> str:
    """All tables, Markdown."""
    measured = newest(lines)
    parts = [origin(measured), table(TRAIN, train(measured)), table(RENDER, render(measured)), table(OTHERS, others(measured))]
    parts += [table(START, start(measured)), table(PEERS, peers(measured)), missing(lines, measured)]
    return '\n\n'.join(part for part in parts if part)


def newest(lines: list[dict]) -> list[dict]:
    """The lines with figures, of each command on each device the last."""
    return list({(sections.command(line), sections.device(line)): line for line in lines if 'figures' in line}.values())


def table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """A Markdown table, or a line that says that nothing of it was measured."""
    if not rows:
        return f'{head[0]}: not measured.'
    return sections.markdown(head, rows)


def origin(lines: list[dict]) -> str:
    """What the lines are from, and the roofs."""
    if not lines:
        return 'Nothing was measured.'
    devices = ', '.join(sorted({sections.device(line) for line in lines}))
    commits = ', '.join(sorted({verdicts.short(line['machine']['commit']) for line in lines}))
    packages = {'jax': lines[-1]['machine']['packages'].get('jax'), **(lines[-1].get('peers') or {})}
    versions = ', '.join(f'{name} {version}' for name, version in packages.items() if version)
    text = f'{devices}; {versions}; commit {commits}; {lines[-1]["when"][:10]}.'
    for dtype, roof in roofs(lines).items():
        text += f' Roofs: products {roof["gflop_per_s"] / 1e3:,.1f} TFLOP/s ({dtype}), streams '
        text += f'{roof["copy_gb_per_s"]:,.0f} GB/s, rows of 32 numbers {roof["rows_gb_per_s"]:,.0f} GB/s.'
    return text


def roofs(lines: list[dict]) -> dict[str, dict[str, float]]:
    """{type of the products: roofs}; streams and rows, which have no type, are the best of all lines."""
    best = verdicts.roofs(lines)
    types = {line['figures']['dtype'] for line in lines if line['benchmark'] == 'roof'}
    own = {kind: [line for line in lines if line['benchmark'] == 'roof' and line['figures']['dtype'] == kind] for kind in types}
    return {kind: {**best, 'gflop_per_s': verdicts.roofs(own[kind])['gflop_per_s']} for kind in sorted(types)}


def shares(row: dict, lines: list[dict]) -> dict[str, float]:
    """What a row reaches of the roofs; of products only where they were measured in its type."""
    known = roofs(lines)
    roof = known.get(row.get('dtype', 'float32')) or {**verdicts.roofs(lines), 'gflop_per_s': None}
    return verdicts.shares(row, roof)


def train(lines: list[dict]) -> list[list[str]]:
    """A row for each kind of step of each config."""
    rows = []
    for line in lines:
        if line['benchmark'] != 'train':
            continue
        whole = line['figures']
        name = ' '.join([whole['config'], *line['words'].get('overrides', [])])
        for kind, part in {'': whole, **whole.get('other steps', {})}.items():
            row, counted = part['row'], part.get('attentions by cuDNN')
            cells = [', '.join(filter(None, (name, kind))), three(row['t3d_ms']), number(row.get('images_per_s'), ',.1f')]
            cells += [*products(row), number(row.get('peak_mib')), number(counted)]
            rows.append([*cells, number(whole.get('first step s'), '.1f'), whole.get('data', '-')])
    return rows


def render(lines: list[dict]) -> list[list[str]]:
    """A row for each pass of each size."""
    rows = []
    for line in lines:
        for path, row in sections.rows(line['figures']) if line['benchmark'] == 'render' else ():
            share = shares(row, lines)
            alone = shares({**row, 't3d_ms': row['lookup_ms']}, lines).get('rows') if row.get('lookup_ms') else None
            cells = [sections.title(path, row), three(row['t3d_ms']), number(row.get('rays_per_s'))]
            rows.append([*cells, *(percent(share.get(name)) for name in verdicts.ROOFS), percent(alone)])
    return rows


def others(lines: list[dict]) -> list[list[str]]:
    """A row for each program of the other benchmarks."""
    rows = []
    for line in lines:
        if line['benchmark'] in ('train', 'render') or line['words'].get('check'):
            continue
        for path, row in sections.rows(line['figures']):
            cells = [f'{line["benchmark"]}, {sections.title(path, row)}', row.get('dtype', '-'), three(row['t3d_ms'])]
            rows.append([*cells, *products(row), number(row.get('temp_mib')), number(row.get('peak_mib'))])
    return rows


def start(lines: list[dict]) -> list[list[str]]:
    """Seconds of first steps, with a cold and with a warm cache."""
    figures = [(line['words']['config'], line['figures']) for line in lines if line['benchmark'] == 'start']
    return [
        [f'{config}, {name}', three((statistics.median(taken), min(taken), max(taken)), 2)]
        for config, parts in figures
        for name, taken in parts.items()
        if isinstance(taken, list) and taken
    ]


def peers(lines: list[dict]) -> list[list[str]]:
    """A row for each program that ran beside a peer; of those without, one that says why."""
    rows = []
    for line in lines:
        if line.get('no peer'):
            rows.append([f'`{sections.command(line)}`', *['-'] * 5, f'no peer: {line["no peer"]}'])
        for path, row in sections.rows(line['figures']):
            if row.get('peer_ms'):
                name, apart = f'{line["benchmark"]}, {sections.title(path, row)}', row.get('difference')
                apart = apart if isinstance(apart, list) else [apart] if apart is not None else []
                cells = [name + ', one pass' * bool(line['words'].get('check')), row.get('dtype', '-')]
                cells += [three(row['t3d_ms']), three(row['peer_ms']), three(row['ratio'], 2)]
                rows.append([*cells, ', '.join(f'{one:.1e}' for one in apart) or '-', what(line, row)])
    return rows


def what(line: dict, row: dict) -> str:
    """What the peer of a row is."""
    told = row.get('peer') or line['figures'].get('peer')
    return told.replace('|', '/') if isinstance(told, str) else line['words'].get('vs', 'torch')


def missing(lines: list[dict], measured: list[dict]) -> str:
    """What failed, with the reason, and what of the plan the file does not have."""
    have, failed = {sections.command(line) for line in measured}, {}
    for line in lines:
        if 'failed' in line and sections.command(line) not in have:
            failed[sections.command(line)] = ' '.join(line['failed'].split()).replace('|', '/')
    known = {*have, *failed}
    small = [command for command in map(planned, gpu.plan(True)) if command in known]
    left = [command for command in map(planned, gpu.plan(bool(small))) if command not in known]
    said = [f'- `{command}` failed: {why}' for command, why in failed.items()]
    return '\n'.join([*said, *(f'- `{command}`: not reached' for command in left)]) or 'Nothing failed, nothing is missing.'


def planned(words: list[str]) -> str:
    return sections.command({'asked': words})


# ------------------------------------------------------------------------------------------------------------------- cells


def percent(value: float | None) -> str:
    return '-' if value is None else f'{100 * value:.0f} %'


def products(row: dict) -> list[str]:
    """TFLOP/s and MFU."""
    return [number(row.get('tflop_per_s'), ',.2f'), percent(row.get('mfu'))]


def main(argv: list[str] | None = None) -> None:
    parser = parsing.Parser(prog='python -m launch.gpu_page', description=__doc__)
    parser.add_argument('figures', type=pathlib.Path, help='the file of t3d bench gpu')
    args = parser.parse_args(argv)
    with parsing.refusing(parser):
        print(page(series.read(args.figures)))


if __name__ == '__main__':
    main()
