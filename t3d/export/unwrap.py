"""xatlas in a process of its own: `python unwrap.py in.npz out.npz`.

xatlas holds Python's lock while it works, so that the caller could neither show progress nor be interrupted. This file is
run by path and imports numpy and xatlas only: starting it takes a fraction of a second.
"""

import sys

import numpy as np

PADDING = 4  # texels between charts


def main(source: str, target: str) -> None:
    import xatlas

    mesh = np.load(source)
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh['vertices'], mesh['faces'], mesh['normals'])
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bilinear = int(mesh['size']), PADDING, True
    charts = xatlas.ChartOptions()
    charts.normal_seam_weight = 0.0  # a chart may go on over a crease: fewer charts, fewer seams
    atlas.generate(charts, packing)
    index, faces, uv = atlas[0]
    np.savez(target, index=index, faces=faces, uv=uv, charts=atlas.chart_count)


if __name__ == '__main__':
    main(*sys.argv[1:])
