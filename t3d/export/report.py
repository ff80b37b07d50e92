"""One HTML file that holds a whole result: prompt, sheet, turntable, 3D view, metrics, config, environment.

Everything is embedded (base64), nothing is fetched: it opens from disk, offline, and survives being mailed.
"""

import base64
import html
import json
import math
import pathlib
import re

from t3d.core import files
from t3d.core.config import flatten

HERE = pathlib.Path(__file__).parent
COLORS = ('#1f6feb', '#d1495b', '#2a9d5c', '#e08e00', '#7b4fc9', '#2b9eb3')


def write(
    path,
    *,
    prompt: str,
    sheet=None,
    beside=None,
    video=None,
    glb=None,
    metrics=None,
    config=None,
    environment=None,
    facts=None,
    title: str | None = None,
    subtitle: str = '',
) -> pathlib.Path:
    """Writes the report; parts that are None are left out.

    Args:
      sheet, beside, video, glb: paths of a PNG, another of the views that the object was made of, an mp4 or gif, and a GLB.
      metrics: path of a metrics.jsonl, or its rows as dicts with 'step' and scalars.
      config, environment, facts: dicts shown as tables; nested keys are joined with dots.
    """
    sections, scripts = [], ''
    if glb is not None:
        sections.append(_section('3D', _pane()))
        viewer = (HERE / 'report_viewer.js').read_text(encoding='utf-8')
        scripts = f'<script id="glb" type="application/octet-stream">{_base64(glb)}</script>\n<script>\n{viewer}</script>'
    if facts:
        sections.append(_section('Mesh', _table(facts)))
    if beside is not None:
        sections.append(_section('Views, field and mesh from the same cameras', _picture(beside), True))
    if video is not None:
        sections.append(_section('Turntable: colour, normal, depth', _video(pathlib.Path(video)), True))
    if sheet is not None:
        sections.append(_section('Views', _picture(sheet), True))
    rows = read_metrics(metrics) if metrics is not None else []
    if rows:
        sections.append(_section('Training', loss_plot(rows) + _metrics_table(rows[-1]), True))
    if environment:
        sections.append(_section('Environment', _table(environment), True))
    if config:
        sections.append(f'<section class="wide"><details><summary>Config</summary>{_table(config)}</details></section>')
    page = (HERE / 'report.html').read_text(encoding='utf-8')
    filled = {
        'title': html.escape(title or f't3d: {prompt}'),
        'heading': html.escape(prompt),
        'subtitle': html.escape(subtitle),
        'sections': '\n'.join(sections),
        'scripts': scripts,
    }
    # In one pass: a prompt may hold the marks of the template.
    page = re.sub(r'\{\{(\w+)\}\}', lambda mark: filled[mark.group(1)], page)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, page)
    return path


def _base64(path) -> str:
    return base64.b64encode(pathlib.Path(path).read_bytes()).decode()


def _section(name: str, body: str, wide: bool = False) -> str:
    return f'<section{" class=wide" if wide else ""}><h2>{html.escape(name)}</h2>{body}</section>'


def _pane() -> str:
    buttons = ''.join(
        f'<button data-mode="{mode}" aria-pressed="{str(mode == 0).lower()}">{name}</button>'
        for mode, name in enumerate(('lit', 'texture', 'normals'))
    )
    return f'<div id="pane"><canvas></canvas>{buttons}<span id="hint">loading ...</span></div>'


def _picture(path) -> str:
    return f'<img alt="views of the result" src="data:image/png;base64,{_base64(path)}">'


def _video(path: pathlib.Path) -> str:
    if path.suffix == '.gif':
        return f'<img alt="turntable" src="data:image/gif;base64,{_base64(path)}">'
    return f'<video autoplay loop muted playsinline controls src="data:video/mp4;base64,{_base64(path)}"></video>'


# --------------------------------------------------------------------------------------------------------------- numbers


def read_metrics(source) -> list[dict]:
    """Rows of a metrics.jsonl or of an iterable of dicts; a last line cut short by a crash is skipped."""
    if not isinstance(source, (str, pathlib.Path)):
        return [dict(row) for row in source]
    rows = []
    for line in pathlib.Path(source).read_bytes().decode('utf-8', 'replace').splitlines():
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [row for row in rows if isinstance(row, dict)]


def _shown(value) -> str:
    return f'{value:.5g}' if isinstance(value, float) else str(value)


def _table(values) -> str:
    flat = flatten(dict(values))
    rows = ''.join(f'<tr><td>{html.escape(key)}</td><td>{html.escape(_shown(value))}</td></tr>' for key, value in flat.items())
    return f'<div class="scroll"><table>{rows}</table></div>'


def _metrics_table(row: dict) -> str:
    pairs = [(key, value) for key, value in row.items() if isinstance(value, (int, float))]
    cells = ''.join(f'<tr><td>{html.escape(key)}</td><td class="n">{_shown(value)}</td></tr>' for key, value in pairs)
    return f'<div class="scroll"><table><tr><th>last row</th><th></th></tr>{cells}</table></div>'


def loss_plot(rows: list[dict], width: int = 1080, height: int = 260) -> str:
    """Inline SVG of every metric named loss or loss/... over the step; logarithmic where all values are positive."""
    names = sorted({key for row in rows for key in row if key == 'loss' or key.startswith('loss/')})
    rows = [row for row in rows if _number(row.get('step'))]
    curves = {name: [(row['step'], row[name]) for row in rows if _number(row.get(name))] for name in names}
    curves = dict(sorted(((k, v) for k, v in curves.items() if len(v) > 1), key=lambda pair: pair[0])[: len(COLORS)])
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return ''
    logarithmic = min(value for _, value in points) > 0.0
    scale = math.log10 if logarithmic else float
    steps, values = [step for step, _ in points], [scale(value) for _, value in points]
    left, right, top, bottom = 64, 150, 12, 26
    x0, x1, y0, y1 = min(steps), max(max(steps), min(steps) + 1), min(values), max(values)
    y1 = y1 if y1 > y0 else y0 + 1.0

    def at(step, value):
        x = left + (step - x0) / (x1 - x0) * (width - left - right)
        return x, top + (y1 - value) / (y1 - y0) * (height - top - bottom)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="loss over steps">']
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        level = y0 + fraction * (y1 - y0)
        y = at(x0, level)[1]
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e7eb"/>')
        tick = 10**level if logarithmic else level
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.3g}</text>')
        step = x0 + fraction * (x1 - x0)
        parts.append(f'<text x="{at(step, y0)[0]:.1f}" y="{height - 8}" text-anchor="middle">{step:.0f}</text>')
    for index, (name, curve) in enumerate(curves.items()):
        path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in (at(step, scale(value)) for step, value in _thin(curve)))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLORS[index]}" stroke-width="1.6"/>')
        label = f'x="{width - right + 10}" y="{top + 12 + 17 * index}" style="fill:{COLORS[index]}"'
        parts.append(f'<text {label}>{html.escape(name)}</text>')
    return ''.join(parts) + '</svg>'


def _number(value) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e300  # neither NaN nor infinity


def _thin(curve: list, most: int = 1000) -> list:
    """At most about `most` points, the last one kept."""
    stride = max(1, len(curve) // most)
    return curve[::stride] + ([curve[-1]] if (len(curve) - 1) % stride else [])
