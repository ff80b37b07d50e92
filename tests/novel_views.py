"""Novel views of real objects: PSNR of what the first 12 views say of the other 4. `python -m tests.novel_views BUILD`

BUILD is what `t3d data build furniture --source FILE --size 128 --limit 8 --out DIR` prints.
"""

import sys

import jax
import numpy as np

from t3d import systems
from t3d.core import config as configs
from t3d.core import prng
from t3d.core.outputs import Request, Views
from t3d.data.sets import furniture_source
from t3d.geom import cameras

FITTED = 12


def main(build: str) -> None:
    source, system = furniture_source.FurnitureSource(build, 'train'), systems.make(configs.load('configs/reconstruct.py:tiny'))
    render = jax.jit(lambda field, scene, rays: field(scene, rays).features, static_argnums=0)
    rows = []
    for index in range(len(source)):
        record = source[index]
        images = np.asarray(record['image'], np.float32) / 255.0
        poses, lenses = np.asarray(record['world_from_cam']), np.asarray(record['intrinsics'])
        views = Views(record['captions'][0], images[:FITTED], poses[:FITTED], lenses[:FITTED])
        (field,) = system.generate({}, [Request(views=views)], prng.each(prng.key(0), 1), {})
        made = np.clip(
            render(field.render, field.scene, cameras.rays(cameras.Cameras(poses, lenses), *images.shape[1:3])), 0, 1
        )
        over_white = images[..., :3] * images[..., 3:] + 1.0 - images[..., 3:]
        psnr = -10.0 * np.log10(np.square(np.asarray(made) - over_white).mean((1, 2, 3)))
        rows.append((psnr[FITTED:].mean(), psnr[:FITTED].mean()))
        print(f'{views.prompt:<30} held out {rows[-1][0]:.2f} dB, fitted {rows[-1][1]:.2f} dB', flush=True)
    held_out, fitted = np.mean(rows, 0)
    print(f'{len(rows)} objects, {len(images) - FITTED} held-out views each: {held_out:.2f} dB; fitted {fitted:.2f} dB')


if __name__ == '__main__':
    main(*sys.argv[1:])
