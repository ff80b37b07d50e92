"""The tables of a file of `t3d bench gpu`: cells written by hand for figures written by hand."""

import json

import pytest

from launch import gpu_page
from t3d.bench import gpu


def line(benchmark, figures, asked, **about):
    """A line as it stands in the file."""
    machine = {'packages': {'jax': '0.11.2'}, 'commit': 'abcdef0123456789', 'devices': ['NVIDIA H200 0']}
    whole = {'when': '2026-12-01T10:00:00+00:00', 'cores': 16, 'load': 1.0, 'processor': 'A CPU', 'machine': machine}
    words = {'repeats': 7, **about.pop('words', {})}
    asked = [benchmark, *asked.split()]
    return {
        'benchmark': benchmark,
        'words': words,
        **whole,
        'peers': {'torch': '2.11'},
        'figures': figures,
        'asked': asked,
        **about,
    }


def row(ms, **more):
    return {'dtype': 'float32', 't3d_ms': [ms, ms - 1, ms + 1], 'peer_ms': None, 'ratio': None, 'peak_mib': 2000.0, **more}


STEP = row(200.0, dtype='bfloat16', images_per_s=320.04, tflop_per_s=412.345, mfu=0.4169, peak_mib=70123.4)
TRAIN = {
    'config': 'configs/image_diffusion.py:base',
    'data': 'made up',
    'first step s': 41.2,
    'attentions by cuDNN': 32,
    'row': STEP,
    'other steps': {'r1': {'attentions by cuDNN': 0, 'row': row(50.0, tflop_per_s=1.0, mfu=None)}},
}
# 100 ms, 50 GB of rows: 500 GB/s of the 1,000; in 60 ms of lookups alone 833 GB/s. 3,000 GFLOP in .1 s: 30 of 60 TFLOP/s.
FORWARD = row(100.0, gflop=3000.0, gbyte=80.0, gathered_gbyte=50.0, lookup_ms=[60.0, 59.0, 61.0], rays_per_s=1234567.8)
FORWARD |= {'pass': 'forward', 'peer_ms': [175.0, 170.0, 180.0], 'ratio': [1.75, 1.7, 1.8]}
UNET = row(
    10.0, dtype='bfloat16', tflop_per_s=400.0, mfu=0.404, temp_mib=123.0, peer_ms=[12.0, 11.0, 13.0], ratio=[1.2, 1.1, 1.3]
)
UNET |= {'difference': [0.5, 2e-3], 'peer': 'PlainUNet by torch.compile in 70 s, torch 2.11, bfloat16'}
LINES = [
    line('train', TRAIN, '--config configs/image_diffusion.py:base', words={'overrides': ['unet.attention=plain']}),
    line(
        'roof', {'dtype': 'bfloat16', 'gflop_per_s': 780e3, 'copy_gb_per_s': 4000.0, 'rows_gb_per_s': 900.0}, '--dtype bfloat16'
    ),
    line('roof', {'dtype': 'float32', 'gflop_per_s': 60e3, 'copy_gb_per_s': 3900.0, 'rows_gb_per_s': 1000.0}, ''),
    line('render', {'64': [FORWARD, {**row(300.0, gbyte=240.0), 'pass': 'both'}]}, '--sizes tiny,64,128'),
    line('unet', {'sd21': UNET}, '--sizes sd21 --dtype bfloat16 --vs compiled', words={'vs': 'compiled'}),
    line('sds', {'sd21': row(400.0)}, '--sizes sd21 --repeats 3', **{'no peer': 'diffusers is not installed'}),
    line('start', {'the step alone, cold': [9.0, 8.0, 9.5], 'data': 'made up'}, '', words={'config': 'c.py:tiny'}),
    {'benchmark': 'gan', 'words': ['--size', '128'], 'failed': 'status 1: out of\n memory | gone', 'asked': None},
    {'benchmark': 'roof', 'words': [], 'failed': 'mended since', 'asked': None},
]


def tables(text):
    """{first word of the heading: {first cell: other cells}} of each table."""
    made, cells = {}, lambda row: [cell.strip() for cell in row.strip('|').split('|')]
    for part in text.split('\n\n'):
        if part.startswith('|'):
            head, _, *rows = map(cells, part.splitlines())
            made[head[0]] = {name: values for name, *values in rows}
    return made


def test_cells_are_those_of_the_figures():
    text = gpu_page.page(LINES)
    made = tables(text)
    assert made['train step'] == {
        'configs/image_diffusion.py:base unet.attention=plain': [
            *('200.0 [199.0, 201.0]', '320.0', '412.35', '42 %', '70,123', '32', '41.2', 'made up')
        ],
        'configs/image_diffusion.py:base unet.attention=plain, r1': [
            *('50.0 [49.0, 51.0]', '-', '1.00', '-', '2,000', '0', '41.2', 'made up')
        ],
    }
    assert made['renderer'] == {
        '64, forward': ['100.0 [99.0, 101.0]', '1,234,568', '50 %', '20 %', '50 %', '83 %'],
        '64, forward + backward': ['300.0 [299.0, 301.0]', '-', '-', '20 %', '-', '-'],
    }
    assert made['network']['unet, sd21'] == ['bfloat16', '10.0 [9.0, 11.0]', '400.00', '40 %', '123', '2,000']
    assert made['first step'] == {'c.py:tiny, the step alone, cold': ['9.00 [8.00, 9.50]']}
    assert made['beside a peer'] == {
        'render, 64, forward': ['float32', '100.0 [99.0, 101.0]', '175.0 [170.0, 180.0]', '1.75 [1.70, 1.80]', '-', 'torch'],
        'unet, sd21': [
            *('bfloat16', '10.0 [9.0, 11.0]', '12.0 [11.0, 13.0]', '1.20 [1.10, 1.30]', '5.0e-01, 2.0e-03', UNET['peer'])
        ],
        '`t3d bench sds --sizes sd21 --repeats 3`': [*['-'] * 5, 'no peer: diffusers is not installed'],
    }
    assert text.startswith(
        '1 x NVIDIA H200; jax 0.11.2, torch 2.11; commit abcdef01; 2026-12-01. Roofs: products 780.0 TFLOP/s'
    )
    assert 'products 60.0 TFLOP/s (float32), streams 4,000 GB/s, rows of 32 numbers 1,000 GB/s.' in text


def test_what_failed_and_what_is_missing_is_told():
    text = gpu_page.page(LINES)
    assert '- `t3d bench gan --size 128` failed: status 1: out of memory / gone\n' in text and 'mended since' not in text
    assert '- `t3d bench hash`: not reached' in text and '`t3d bench roof`: not' not in text
    everything = [line(words[0], {}, ' '.join(words[1:])) for words in gpu.plan(False)]
    assert gpu_page.missing(everything, everything) == 'Nothing failed, nothing is missing.'
    few = [line(words[0], {}, ' '.join(words[1:])) for words in gpu.plan(True)[1:]]
    assert gpu_page.missing(few, few) == f'- `{gpu_page.planned(gpu.plan(True)[0])}`: not reached'


def test_products_are_compared_with_a_roof_of_their_type_alone():
    half = [LINES[1]]
    assert set(gpu_page.shares(FORWARD, half)) == {'streams', 'rows'}
    assert gpu_page.shares({**FORWARD, 'dtype': 'bfloat16'}, half)['products'] == pytest.approx(30 / 780)


def test_an_empty_file_and_the_command(tmp_path, capsys):
    assert gpu_page.page([]).startswith('Nothing was measured.\n\ntrain step: not measured.\n\n')
    file = tmp_path / 'gpu.jsonl'
    file.write_text(''.join(json.dumps(one) + '\n' for one in LINES))
    gpu_page.main([str(file)])
    assert '| 64, forward | 100.0 [99.0, 101.0] | 1,234,568 | 50 % | 20 % | 50 % | 83 % |' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu_page.main([str(tmp_path / 'none.jsonl')])
