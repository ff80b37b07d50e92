"""The one-file report: everything inside, nothing fetched, numbers right; and the whole of assets.write."""

import base64
import html.parser
import json
import re
import shutil
import subprocess

import analytic_assets
import numpy as np
import pytest

from t3d.export import assets, report

ROWS = [{'step': step, 'loss': 2.0**-step, 'loss/mask': 0.5, 'note': 'x'} for step in range(9)]


class Links(html.parser.HTMLParser):
    """Collects every address a browser would open, and checks that tags close."""

    def __init__(self):
        super().__init__()
        self.addresses, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ('src', 'href', 'poster', 'data')]
        if tag not in ('meta', 'img', 'br', 'line', 'polyline', 'link', 'input'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ('line', 'polyline'):
            assert self.open and self.open.pop() == tag, tag


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """(folder, paths, log lines) of a whole export of the cone on the cube."""
    folder, lines = tmp_path_factory.mktemp('asset'), []
    metrics = folder / 'metrics.jsonl'
    metrics.write_text('\n'.join(json.dumps(row) for row in ROWS) + '\n{"step": 9, "lo')
    info = {'metrics': metrics, 'config': {'render': {'samples': 64}, 'name': '<tiny>'}}
    paths = assets.write(
        analytic_assets.cone_on_cube(),
        folder / 'out',
        formats=('glb', 'obj', 'ply', 'stl'),
        texture=256,
        faces=4000,
        grid=64,
        frames=12,
        size=96,
        render_size=48,
        report_info=info,
        log=lines.append,
    )
    return folder / 'out', paths, lines


def test_write_makes_every_file_and_a_timing_line_for_each_part(written):
    folder, paths, lines = written
    assert set(paths) == {'glb', 'obj', 'ply', 'stl', 'facts', 'sheet', 'mp4', 'cameras', 'report'}
    assert all(path.stat().st_size > 0 and path.parent == folder for path in paths.values())
    for part in ('density grid', 'mesh,', 'texture 256', 'silhouettes', 'sheet', 'turntable', 'report'):
        assert any(line.startswith(f'export: {part}') and line.endswith(' s') for line in lines), part


def test_report_holds_everything_and_fetches_nothing(written):
    _, paths, _ = written
    page = paths['report'].read_text()
    links = Links()
    links.feed(page)
    assert links.open == []
    assert links.addresses and all(address.startswith('data:') for address in links.addresses)
    assert not re.search(r'https?://', page) and '{{' not in page
    assert 'a red cone on top of a blue cube' in page
    embedded = re.search(r'<script id="glb"[^>]*>([^<]*)</script>', page).group(1)
    assert base64.b64decode(embedded) == paths['glb'].read_bytes()
    assert base64.b64encode(paths['mp4'].read_bytes()).decode() in page
    assert base64.b64encode(paths['sheet'].read_bytes()).decode() in page
    assert 'render.samples' in page and '&lt;tiny&gt;' in page and '<tiny>' not in page
    assert '<polyline' in page and 'jax' in page and 'threshold' in page


def test_sheet_shows_the_field_and_the_same_mesh(written):
    from PIL import Image

    _, paths, _ = written
    sheet = np.asarray(Image.open(paths['sheet']).convert('RGB')).astype(int)
    size, margin, head = 96, 44, 18
    top = sheet.shape[0] - 3 * size
    assert sheet.shape == (2 * head + 3 * size, margin + 5 * size, 3)
    for column in range(5):
        cut = slice(margin + column * size, margin + (column + 1) * size)
        field, mesh = sheet[top : top + size, cut], sheet[top + 2 * size :, cut]
        solid = [np.any(image < 128, -1) for image in (field, mesh)]
        assert np.sum(solid[0] & solid[1]) / np.sum(solid[0] | solid[1]) > 0.85
        both = solid[0] & solid[1]
        red = [image[..., 0] > image[..., 2] for image in (field, mesh)]
        assert np.mean(red[0][both] == red[1][both]) > 0.9


def test_plot_is_logarithmic_in_the_right_place():
    plot = report.loss_plot(ROWS)
    lines = re.findall(r'points="([^"]+)"', plot)
    assert len(lines) == 2
    ys = [float(pair.split(',')[1]) for pair in lines[0].split()]
    np.testing.assert_allclose(np.diff(ys), np.diff(ys)[0], atol=0.11)  # halving is a straight line
    assert ys[0] < ys[-1]
    assert report.loss_plot([{'step': 1, 'loss': 1.0}]) == '' and report.loss_plot([{'step': 0}, {'step': 1}]) == ''
    bad = [{'step': 0, 'loss': -1.0}, {'step': 5, 'loss': 2.0}, {'step': 6, 'loss': float('nan')}]
    assert '<polyline' in report.loss_plot(bad)


def test_metrics_survive_a_cut_line_and_thinning_keeps_the_end(tmp_path):
    path = tmp_path / 'm.jsonl'
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert report.read_metrics(path) == [{'step': 1, 'loss': 2.0}]
    curve = [(step, 1.0) for step in range(12345)]
    assert len(report._thin(curve)) <= 2100 and report._thin(curve)[-1] == curve[-1]


def test_prompts_are_escaped_and_parts_are_optional(tmp_path):
    page = report.write(tmp_path / 'r.html', prompt='<script>alert(1)</script> & "x" {{sections}}').read_text()
    assert '<script>alert' not in page and '&lt;script&gt;' in page
    assert page.count('</html>') == 1 and '<canvas' not in page


@pytest.mark.skipif(shutil.which('chromium') is None, reason='needs a browser: apt-get install chromium')
def test_the_3d_pane_draws_the_textured_mesh_in_a_browser_offline(written, tmp_path):
    from PIL import Image

    _, paths, _ = written
    shot = tmp_path / 'shot.png'
    flags = [
        '--headless',
        '--no-sandbox',
        '--enable-unsafe-swiftshader',
        '--use-angle=swiftshader',
        '--hide-scrollbars',
        '--disable-background-networking',
        '--host-resolver-rules=MAP * ~NOTFOUND',
        '--window-size=1280,900',
        f'--user-data-dir={tmp_path / "profile"}',
        '--virtual-time-budget=3000',
        f'--screenshot={shot}',
    ]
    subprocess.run(['chromium', *flags, paths['report'].as_uri()], capture_output=True, check=True, timeout=120)
    pane = np.asarray(Image.open(shot).convert('RGB')).astype(int)[150:600, 60:620]
    red = (pane[..., 0] > 90) & (pane[..., 1] < 60) & (pane[..., 2] < 60)
    blue = (pane[..., 2] > 90) & (pane[..., 0] < 60)
    assert red.sum() > 3000 and blue.sum() > 3000
    assert np.argwhere(red)[:, 0].mean() < np.argwhere(blue)[:, 0].mean() - 50  # the cone above the cube
