"""The measured tables of docs/benchmarks.md: what lines of figures hold, section by section, as Markdown.

Everything here reads lines of JSON (t3d/bench/figures.py) and measures nothing. A section is a place between two marks of the
page; `filled` writes all of them anew. A row is the newest of its command on its machine. A column that no row of a table fills
is left out, what all rows share of how they were measured stands once below it. A benchmark without figures is `not measured`.
"""

import shlex
import statistics
from collections.abc import Iterator

from t3d.bench import verdicts
from t3d.core.errors import UsageError

SECTIONS = {  # name in the marks: benchmarks, by their words after `t3d bench`
    'rendering': ('render',),
    'curves': ('scale',),
    'unet': ('unet',),
    'multi-view': ('mv',),
    'decoder': ('decoder',),
    'training-step': ('train', 'start'),
    'gan': ('gan',),
}
SECONDS = ('start',)  # benchmarks of whole processes, whose figures are lists of seconds
GROUPS = ('phases', 'points', 'row', 'other steps')  # of figures: say nothing about a row that its other words do not
PASSES = {'both': verdicts.BOTH}
ORIGIN = ('command', 'turns', 'device', 'versions', 'load at the end', 'commit', 'date')
INPUTS = {'0': 't', '1': 'text'}  # arguments of the multi-view network behind its latents, which have numbers for names


def marks(name: str) -> tuple[str, str]:
    """The lines of the page around a section."""
    made = f'<!-- made by python -m launch.bench_page, {name}: '
    return f'{made}begin -->', f'{made}end -->'


def filled(page: str, lines: list[dict]) -> str:
    """The page with each of SECTIONS written anew; UsageError where it has no place for one."""
    for name in SECTIONS:
        begin, end = marks(name)
        before, opened, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not opened or not closed:
            raise UsageError(f'the page has no place for the figures of {name}: add the lines {begin} and {end}.')
        page = before + f'{begin}\n\n{section(name, lines)}\n\n{end}' + after
    return page


def section(name: str, lines: list[dict]) -> str:
    """The Markdown of one section: its tables, what failed and what was not measured."""
    parts = []
    for benchmark in SECTIONS[name]:
        own = [line for line in lines if line['benchmark'] == benchmark]
        measured = [line for line in own if 'figures' in line]
        table = (_seconds if benchmark in SECONDS else _table)(measured)
        parts += [table] if table else []
        failed = [
            f'`{command(line)}`: not measured: {line["failed"]}.'
            for number, line in enumerate(own)
            if _stands(line, own[number + 1 :])
        ]
        if not measured and not failed:
            failed = [f'`t3d bench {benchmark}`: not measured.']
        parts += failed
    return '\n\n'.join(parts)


def command(line: dict) -> str:
    """The command of a line, as it was asked for where a series asked, else from its words."""
    if line.get('asked'):
        return f't3d bench {shlex.join(line["asked"])}'
    words = [line['benchmark']]
    if isinstance(line['words'], list):  # of one that failed
        return f't3d bench {shlex.join([*words, *line["words"]])}'
    for name, value in line['words'].items():
        if name == 'overrides':
            words += value
        elif value is True:
            words.append(f'--{name.replace("_", "-")}')
        elif value not in (None, False):
            words += [f'--{name.replace("_", "-")}', ','.join(value) if isinstance(value, list) else str(value)]
    return f't3d bench {shlex.join(words)}'


def device(line: dict) -> str:
    """What the figures of a line were measured on."""
    devices = line['machine'].get('devices') or ['cpu 0']
    kinds = sorted({name.rpartition(' ')[0] for name in devices})
    if kinds != ['cpu']:
        return f'{len(devices)} x {", ".join(kinds)}'
    return f'{line["processor"]}, {line["cores"]} cores' + (f' as {len(devices)} devices' if len(devices) > 1 else '')


def rows(figures, path: tuple = ()) -> Iterator[tuple[tuple, dict]]:
    """(words that lead to it, row) of every timed program within the figures of a line."""
    if isinstance(figures, list):
        parts = enumerate(figures)
    elif isinstance(figures, dict):
        if 't3d_ms' in figures:
            yield path, figures
            return
        if 'value' in figures:  # a point of a curve
            path = (*path, str(figures['value']))
        parts = figures.items()
    else:
        return
    for name, part in parts:
        yield from rows(part, (*path, name) if isinstance(name, str) else path)


def title(path: tuple, row: dict) -> str:
    """What a row is of: 'tiny, forward + backward'."""
    if 'peer' in path:  # sizes of both sides stand before it, what is compared behind
        path = path[len(path) - path[::-1].index('peer') :]
    words = [word for word in (*path, row.get('pass', '')) if word and word not in GROUPS]
    return ', '.join(PASSES.get(word, word) for word in words) or '-'


def _stands(line: dict, later: list[dict]) -> bool:
    """Whether a failure is the last that is known of its command."""
    return 'failed' in line and not any(command(line) == command(other) for other in later)


def _newest(lines: list[dict], found) -> dict[tuple, tuple]:
    """{(command, device, title): (line, figures)} of `found(line) -> [(title, figures)]`, the last of each."""
    return {(command(line), device(line), name): (line, figures) for line in lines for name, figures in found(line)}


def _table(lines: list[dict]) -> str:
    """The table of all timed programs, '' without any."""
    found = _newest(lines, lambda line: [(title(path, row), row) for path, row in rows(line['figures'])])
    cells = [
        {'what': name, **{head: text(row) for head, text in COLUMNS.items()}, **_origin(line, line['words']['repeats'])}
        for (_, _, name), (line, row) in found.items()
    ]
    return _markdown(cells)


def _seconds(lines: list[dict]) -> str:
    """The table of what was measured in whole seconds, once in each of several processes; '' without any."""
    lists = lambda line: [(name, value) for name, value in line['figures'].items() if isinstance(value, list) and value]
    cells = [
        {'what': name, 's: median [min, max]': three((statistics.median(taken), min(taken), max(taken)), 2)}
        | _origin(line, len(taken))
        for (_, _, name), (line, taken) in _newest(lines, lists).items()
    ]
    return _markdown(cells)


def _origin(line: dict, turns: int) -> dict[str, str]:
    """How the figures of a line were measured: cells of a table, or a sentence below it."""
    packages = {'jax': line['machine']['packages'].get('jax'), **(line.get('peers') or {})}
    return {
        'command': f'`{command(line)}`',
        'turns': str(turns),
        'device': device(line),
        'versions': ', '.join(f'{name} {version}' for name, version in packages.items() if version) or '-',
        'load at the end': f'{line["load"]:.1f}',
        'commit': verdicts.short(line['machine']['commit']),
        'date': line['when'][:10],
    }


def _markdown(cells: list[dict[str, str]]) -> str:
    """A table of rows {column: text}, '-' for nothing; the columns of `_origin` that do not differ stand in a line below."""
    if not cells:
        return ''
    values = {name: {row[name] for row in cells} for name in cells[0]}
    shared = {name: values[name].pop() for name in ORIGIN if len(values[name]) == 1}
    names = [name for name in values if name not in shared and values[name] != {'-'}]
    below = '; '.join(f'{name} {text}' for name, text in shared.items())
    return markdown(names, [[row[name] for name in names] for row in cells]) + (f'\n\nAll rows: {below}.' if below else '')


def markdown(head, rows) -> str:
    """A Markdown table of cells."""
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, ['---'] * len(head), *rows))


# ---------------------------------------------------------------------------------------------------------- cells of a row


def three(value, digits: int = 1) -> str:
    """A median with its range: '4.7 [4.1, 5.0]'."""
    return '-' if not value else '{:.{d}f} [{:.{d}f}, {:.{d}f}]'.format(*value, d=digits)


def number(value: float | None, form: str = ',.0f') -> str:
    return '-' if value is None else format(value, form)


def _pair(ours: float | None, theirs: float | None) -> str:
    """MiB of both sides: '38; 158'."""
    texts = ['-' if value is None else f'{round(value):,}' for value in (ours, theirs)]
    return '-' if texts == ['-', '-'] else '; '.join(texts)


def _shapes(row: dict) -> str:
    """'x 2 x 4, text 77; float32', arrays without numbers left out."""
    named = {path: path.rpartition('/')[2] for path in row.get('shapes', {})}
    sizes = [
        f'{INPUTS.get(named[path], named[path])} {" x ".join(map(str, shape)) or 1}'
        for path, shape in row.get('shapes', {}).items()
        if 0 not in shape
    ]
    return '; '.join(text for text in (', '.join(sizes), row.get('dtype', '')) if text) or '-'


def _rates(row: dict) -> str:
    made = {unit: row.get(f'{unit}_per_s') for unit in ('images', 'rays')}
    return ', '.join(f'{value:,.{1 if value < 1000 else 0}f} {unit}' for unit, value in made.items() if value) or '-'


def _flops(row: dict) -> str:
    share = f' ({100 * row["mfu"]:.0f} % of the peak)' if row.get('mfu') else ''
    return number(row.get('tflop_per_s'), '.3f') + share


def _difference(row: dict) -> str:
    value = row.get('difference')
    return '-' if value is None else ', '.join(f'{one:.1e}' for one in (value if isinstance(value, list) else [value]))


COLUMNS = {  # heading: cell of a row
    'shapes; type': _shapes,
    't3d, ms: median [min, max]': lambda row: three(row['t3d_ms']),
    'peer, ms': lambda row: three(row.get('peer_ms')),
    'ratio, turn by turn': lambda row: three(row.get('ratio'), 2),
    'a second': _rates,
    'compile, s': lambda row: number(row.get('compile_s'), '.1f'),
    'GFLOP': lambda row: number(row.get('gflop'), ',.1f'),
    'TFLOP/s': _flops,
    'GB moved': lambda row: number(row.get('gbyte'), '.2f'),
    'temporaries, MiB': lambda row: number(row.get('temp_mib')),
    'peak, MiB: t3d; peer': lambda row: _pair(row.get('peak_mib'), row.get('peer_peak_mib')),
    'memory rises, MiB: t3d; peer': lambda row: _pair(row.get('rss_mib'), row.get('peer_rss_mib')),
    'largest difference: output, gradient': _difference,
}
