"""The measured tables of docs/benchmarks.md: cells written by hand, the committed page, benchmarks without figures."""

import json
import pathlib

import pytest

from launch import bench_page
from t3d.bench import sections, series
from t3d.core.errors import UsageError

ROOT = pathlib.Path(__file__).parent.parent


def line(benchmark, figures, asked, **about):
    """A line of a series, as it stands in the file."""
    machine = {
        'python': '3.11',
        'packages': {'jax': '0.10.2'},
        'commit': 'abcdef0123456789+',
        'devices': ['cpu 0'],
        **about.pop('machine', {}),
    }
    whole = {'when': '2026-12-01T10:00:00+00:00', 'cores': 2, 'load': 1.26, 'processor': 'A CPU', 'peers': {'torch': '2.13.0'}}
    words = {'repeats': 7, 'sizes': ['tiny']}
    return {'benchmark': benchmark, 'words': words, **whole, 'machine': machine, 'figures': figures, 'asked': asked, **about}


TINY = {
    'pass': 'both',
    'shapes': {'planes': [4, 3, 32], 'rest/0': [2], 'rest/1/uv': [5, 6], 'view': [1, 0]},
    'dtype': 'float32',
    't3d_ms': [53.14, 51.76, 58.38],
    'peer_ms': [74.2, 69.2, 80.3],
    'ratio': [1.379, 1.254, 1.47],
    'gflop': 1673.5,
    'tflop_per_s': 0.03151,
    'mfu': 0.123,
    'gbyte': 1.817,
    'compile_s': 1.82,
    'temp_mib': 29.5,
    'peak_mib': 1628.7,
    'rss_mib': 37.9,
    'peer_rss_mib': -0.2,
    'images_per_s': 75.31,
    'rays_per_s': 77108.9,
    'difference': [2.2e-7, 1.04e-6],
}
LEAST = {'pass': 'forward', 't3d_ms': [5.0, 4.0, 6.0], 'peer_ms': None, 'ratio': None}
ASKED = ['render', '--sizes', 'tiny']
RENDER = line('render', {'tiny': [LEAST, TINY]}, ASKED)
START = line('start', {'cold': [16.0, 14.0, 15.5], 'data': 'toy'}, ['start'])


def table(text):
    """Rows of cells of the first table in a text."""
    lines = [row for row in text.splitlines() if row.startswith('|')]
    return [[cell.strip() for cell in row.strip('|').split('|')] for row in lines]


def test_a_row_has_what_its_line_holds():
    text = sections.section('rendering', [RENDER])
    names, _, forward, both = table(text)
    assert dict(zip(names, both, strict=True)) == {
        'what': 'tiny, forward + backward',
        'shapes; type': 'planes 4 x 3 x 32, t 2, uv 5 x 6; float32',
        't3d, ms: median [min, max]': '53.1 [51.8, 58.4]',
        'peer, ms': '74.2 [69.2, 80.3]',
        'ratio, turn by turn': '1.38 [1.25, 1.47]',
        'a second': '75.3 images, 77,109 rays',
        'compile, s': '1.8',
        'GFLOP': '1,673.5',
        'TFLOP/s': '0.032 (12 % of the peak)',
        'GB moved': '1.82',
        'temporaries, MiB': '30',
        'peak, MiB: t3d; peer': '1,629; -',
        'memory rises, MiB: t3d; peer': '38; 0',
        'largest difference: output, gradient': '2.2e-07, 1.0e-06',
    }
    assert forward == ['tiny, forward', '-', '5.0 [4.0, 6.0]', *['-'] * 11]
    assert text.endswith(
        '\n\nAll rows: command `t3d bench render --sizes tiny`; turns 7; device A CPU, 2 cores; '
        'versions jax 0.10.2, torch 2.13.0; load at the end 1.3; commit abcdef01+; date 2026-12-01.'
    )


def test_the_newest_of_a_command_on_a_machine_counts():
    newer = line('render', {'tiny': [{**LEAST, 't3d_ms': [2.0, 1.0, 3.0]}]}, ASKED, when='2026-12-02T10:00:00+00:00')
    names, _, *rows = table(sections.section('rendering', [RENDER, newer]))
    assert [(row[names.index('what')], row[names.index('date')]) for row in rows] == [
        ('tiny, forward', '2026-12-02'),
        ('tiny, forward + backward', '2026-12-01'),  # which the newer one lacks
    ]
    assert rows[0][2] == '2.0 [1.0, 3.0]' and 'command' not in names
    twice = line('render', {'tiny': [LEAST]}, ASKED, machine={'devices': ['cpu 0', 'cpu 1']})
    gpu = line('render', {'tiny': [LEAST]}, None, machine={'devices': ['NVIDIA H200 0']})
    names, _, *rows = table(sections.section('rendering', [RENDER, twice, gpu]))
    where = [row[names.index('device')] for row in rows]
    assert where == ['A CPU, 2 cores'] * 2 + ['A CPU, 2 cores as 2 devices', '1 x NVIDIA H200']
    asked = [row[names.index('command')] for row in rows]
    assert asked == ['`t3d bench render --sizes tiny`'] * 3 + ['`t3d bench render --repeats 7 --sizes tiny`']


def test_names_of_rows():
    assert sections.title(('dense', 'peer', 'dense', 'both'), {}) == 'dense, forward + backward'
    assert sections.title(('phases', 'r1'), {}) == 'r1' and sections.title(('row',), {}) == '-'
    curve = {'rays': {'unit': 'rays', 'points': [{'value': 256, 'per_s': 9.0, 'row': LEAST}]}}
    assert [sections.title(path, {}) for path, _ in sections.rows(curve)] == ['rays, 256']


def test_seconds_of_processes():
    text = sections.section('training-step', [START])
    assert text.startswith('`t3d bench train`: not measured.\n\n')
    assert table(text)[2] == ['cold', '15.50 [14.00, 16.00]'] and len(table(text)) == 3 and 'turns 3;' in text


def test_what_was_not_measured_is_told():
    assert sections.section('unet', [RENDER]) == '`t3d bench unet`: not measured.'
    failed = {'benchmark': 'gan', 'words': ['--size', '128'], 'failed': 'status 1', 'asked': None}
    assert sections.section('gan', [failed]) == '`t3d bench gan --size 128`: not measured: status 1.'
    there = line('gan', {'phases': {'r1': LEAST}}, ['gan'])
    assert sections.section('gan', [there, failed]).endswith('`t3d bench gan --size 128`: not measured: status 1.')
    mended = line('gan', {'phases': {'r1': LEAST}}, ['gan', '--size', '128'])
    assert 'not measured' not in sections.section('gan', [there, failed, mended])


def test_the_page_of_benchmarks_is_written_between_its_marks(tmp_path):
    file, goals, page = (tmp_path / name for name in ('goals.jsonl', 'goals.md', 'benchmarks.md'))
    file.write_text(''.join(json.dumps(one) + '\n' for one in (RENDER, START)))
    goals.write_text(f'{bench_page.BEGIN}\n{bench_page.END}\n')
    page.write_text(''.join(f'before {name}\n{"".join(sections.marks(name))}\n' for name in sections.SECTIONS) + 'after\n')
    bench_page.main(['--figures', str(file), '--page', str(goals)])
    text = page.read_text()
    assert all(f'before {name}\n<!--' in text for name in sections.SECTIONS) and text.endswith('-->\nafter\n')
    assert '| tiny, forward + backward |' in text and '`t3d bench unet`: not measured.' in text
    assert sections.filled(text, [RENDER, START]) == text
    with pytest.raises(UsageError, match='no place for the figures of unet'):
        sections.filled(text.replace(sections.marks('unet')[1], ''), [RENDER])


def test_the_committed_page_is_made_of_the_committed_figures():
    page, lines = (ROOT / 'docs/benchmarks.md').read_text(), series.read(ROOT / 'docs/figures/goals.jsonl')
    assert sections.filled(page, lines) == page, 'run python -m launch.bench_page'
