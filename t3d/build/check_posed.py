"""`t3d data check`: what a folder of posed pictures holds, what is wrong with what, and a sheet with the axes drawn in."""

import math
import pathlib
import textwrap
from typing import NamedTuple

import numpy as np

from t3d.core.errors import UsageError
from t3d.data import layouts
from t3d.data.sets import posed_images
from t3d.data.sets.archives import Damaged
from t3d.data.sets.posed import Posed, PosedSource, check, kept
from t3d.export import sheets

SIDE = 192  # px of a view in the sheet
COLUMNS, ROWS = 6, 8  # views of an object, objects
VIEWS = 24  # of an object, whose pictures are looked at
NAMED = 20  # faults that are printed
SOLID = 128  # alpha from which a pixel is the object
FULL = 1.05  # half-size of a silhouette beyond which an object leaves the box
APART = 1.02  # ratio of fields of view that differ
UPRIGHT = 0.3  # by this the cameras' mean upright may prefer another axis than the one stated
COLOURS = {'x': (220, 30, 30), 'y': (20, 150, 30), 'z': (30, 60, 230)}
BOX = (120, 120, 120)
AXIS = 1.0  # length of the axes drawn


class Looked(NamedTuple):
    """An object whose pictures were looked at."""

    known: Posed
    images: list[np.ndarray]  # uint8 [SIDE, SIDE, 4]
    which: list[int]  # views that these are
    faults: list[str]


def run(path: str, *, layout: str, split: str, fit: str, objects: int, out: str | None) -> str:
    """The report of a folder, in lines; writes `out`/sheet.png, where `out` is given.

    Raises:
      UsageError: nothing in it can be used.
    """
    source = PosedSource(path, split, size=SIDE, layout=layout, fit=fit)
    chosen = kept(len(source), min(objects, len(source)))
    seen, wrong = [], []
    for index in chosen.tolist():
        try:
            one = look(source.posed(index))
        except Damaged as error:
            wrong.append(str(error))
            continue
        seen.append(one)
        wrong += [*one.faults, *complaints(one, str(source.folder))]
    if not seen:
        raise UsageError(f'{source.folder} has no object that can be used. {wrong[0]}')
    lines = [*_contents(source, split, len(chosen)), *_measured(seen), *_captions(source)]
    lines += _wrong([*_differing(seen), *wrong])
    if out:
        target = pathlib.Path(out) / 'sheet.png'
        sheets.write(target, sheet(seen[:ROWS]))
        lines.append(f'sheet: {target} (axes: x red, y green, z blue; grey: the box [-1, 1]^3)')
    return '\n'.join(lines)


def look(known: Posed) -> Looked:
    """Reads up to `VIEWS` pictures of an object, evenly spread."""
    images, which, faults = [], [], list(known.faults)
    for k in kept(len(known.views), min(VIEWS, len(known.views))).tolist():
        try:
            images.append(posed_images.load(known.views[k], known.geometry[k], SIDE))
            which.append(k)
        except Damaged as error:
            faults.append(str(error))
    if not images:
        raise Damaged(f'{known.name}: no picture can be read. {faults[0]}')
    return Looked(known, images, which, faults)


# ------------------------------------------------------------------------------------------------- what is wrong with what


def complaints(one: Looked, where: str) -> list[str]:
    """What is wrong with the cameras and pictures of an object, in sentences."""
    known, said = one.known, []
    try:
        check(known, where)
    except Damaged as error:
        said.append(str(error))
    alpha = [image[..., 3] >= SOLID for image in one.images]
    name = [f'{known.name}: {known.views[k].image.name}' for k in one.which]
    said += [f'{text}: nothing of the object is in the picture.' for text, solid in zip(name, alpha) if not solid.any()]
    opaque = not any(known.geometry[k].transparent for k in one.which)
    if not opaque:
        cut = [text for text, solid in zip(name, alpha) if _on_border(solid) and not solid.all()]
        if cut:
            said.append(f'{known.name}: the frame cuts the object in {len(cut)} of {len(alpha)} pictures, first {cut[0]}.')
        reach = silhouettes(one)
        if reach > FULL:
            said.append(
                f'{known.name}: it reaches to {reach:.2f}, out of [-1, 1]^3: set data.fit={known.fit.smaller(reach)}, --fit.'
            )
    if not said and (axis := other_axis(known)):
        said.append(
            f'{known.name}: the cameras stand upright along {axis} of the world, but up is {known.fit.up}: the object may lie '
            'on its side; turn the poses, or write "up" into cameras.json.'
        )
    return said


def other_axis(known: Posed) -> str:
    """An axis of the set's world along which the cameras stand clearly better than along the stated one; '' for none."""
    cosines, stated = known.fit.uprightness, known.fit.up[:2]
    best = max(cosines, key=cosines.get)
    return best if stated in cosines and cosines[best] > cosines[stated] + UPRIGHT else ''


def silhouettes(one: Looked) -> float:
    """How far the silhouettes reach at the depth of the origin, in scene units: median over the views of the largest."""
    reach = []
    for k, image in zip(one.which, one.images):
        rows, columns = np.nonzero(image[..., 3] >= SOLID)
        if not len(rows):
            continue
        intrinsics, distance = one.known.geometry[k].intrinsics, np.linalg.norm(one.known.fit.world_from_cam[k, :3, 3])
        ends = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]) / SIDE
        centre, focal = intrinsics[:2, 2], np.diag(intrinsics)[:2]
        reach.append(np.abs((ends - centre) / focal).max() * distance)
    return float(np.median(reach)) if reach else 0.0


def _on_border(solid: np.ndarray) -> bool:
    return bool(solid[0].any() or solid[-1].any() or solid[:, 0].any() or solid[:, -1].any())


def _differing(seen: list[Looked]) -> list[str]:
    angles = np.degrees(np.concatenate([fields(one.known) for one in seen]))
    if angles.max() > APART * angles.min():
        return [
            f'fields of view differ: {angles.min():.1f} to {angles.max():.1f} degrees; only crops and zooms make that right.'
        ]
    return []


def fields(known: Posed) -> np.ndarray:
    """[V] fields of view across the square pictures, radians."""
    return np.array([2.0 * math.atan(0.5 / geometry.intrinsics[0, 0]) for geometry in known.geometry])


# ------------------------------------------------------------------------------------------------------------ what is there


def _contents(source: PosedSource, split: str, looked_at: int) -> list[str]:
    counts = {}
    for name in ('train', 'val', 'test'):
        try:
            counts[name] = len(layouts.find(source.folder, source.layout, name)[1].entries)
        except UsageError:
            counts[name] = 0
    listed = ', '.join(f'{name} {count}' for name, count in counts.items())
    return [
        f'{source.folder}: layout {source.layout} ({layouts.SIGNS[source.layout]})',
        f'  objects   {len(source)} of split {split}; {listed}: {source.rule}; {looked_at} looked at',
    ]


def _measured(seen: list[Looked]) -> list[str]:
    views = [len(one.known.views) for one in seen]
    sizes = sorted({geometry.size for one in seen for geometry in one.known.geometry})
    radius = np.concatenate([np.linalg.norm(one.known.fit.world_from_cam[:, :3, 3], axis=1) for one in seen])
    angles = np.degrees(np.concatenate([fields(one.known) for one in seen]))
    solid = np.array([(image[..., 3] >= SOLID).mean() for one in seen for image in one.images])
    opaque = all(not geometry.transparent for one in seen for geometry in one.known.geometry)
    listed = ', '.join(f'{width} x {height}' for width, height in sizes[:6]) + (', ...' if len(sizes) > 6 else '')
    share = 'pictures without transparency or mask: the background counts as object'
    if not opaque:
        reach = np.median([silhouettes(one) for one in seen])
        share = f'{_range(100.0 * solid, ".0f")} % of the picture; silhouettes reach to {reach:.2f} of the box'
    return [
        f'  views     {_range(np.array(views), "d")} of an object',
        f'  sizes     {listed}{"" if all(w == h for w, h in sizes) else "; made square, the intrinsics follow"}',
        f'  up        {"; ".join(dict.fromkeys(one.known.fit.up for one in seen[:3]))}, turned to +y',
        f'  placed    {"; ".join(dict.fromkeys(one.known.fit.place for one in seen[:3]))}',
        f'  radius    {_range(radius, ".3g")} scene units, from the cameras to the origin',
        f'  field     {_range(angles, ".1f")} degrees across',
        f'  in frame  {share}',
    ]


def _range(values: np.ndarray, form: str) -> str:
    low, high = f'{values.min():{form}}', f'{values.max():{form}}'
    return low if low == high else f'{low} to {high}'


def _captions(source: PosedSource) -> list[str]:
    texts = [source.text(index) for index in range(len(source))]
    made, told = source.made_captions(), texts[0]['captions'][0]
    note = f"; {len(made)} of {len(texts)} made of the folder's name" if made else ''
    return [f'  captions  {sum(len(text["captions"]) for text in texts)}, first {textwrap.shorten(told, 60)!r}{note}']


def _wrong(faults: list[str]) -> list[str]:
    if not faults:
        return ['nothing wrong was found.']
    more = [f'  ... and {len(faults) - NAMED} more'] if len(faults) > NAMED else []
    return [f'wrong, {len(faults)}:', *(f'  {fault}' for fault in faults[:NAMED]), *more]


# ------------------------------------------------------------------------------------------------------------------- sheet


def sheet(seen: list[Looked]) -> np.ndarray:
    """uint8 [height, width, 3]: a row of views for each object, the box and the axes of our world drawn in."""
    rows, labels = [], []
    for one in seen:
        chosen = kept(len(one.images), COLUMNS)
        rows.append(np.stack([drawn(one.images[k], one.known, one.which[k]) for k in chosen.tolist()]))
        labels.append(f'{one.known.name}: {one.known.captions[0]}')
    return sheets.sheet(np.stack(rows), labels, title='x red, y green (up), z blue (front); grey: the box from -1 to 1')


def drawn(image: np.ndarray, known: Posed, view: int) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3]: a view over white with the box and the axes of our world."""
    from PIL import Image, ImageDraw

    alpha = image[..., 3:].astype(np.float32) / 255.0
    canvas = Image.fromarray(np.round(image[..., :3] * alpha + 255.0 * (1.0 - alpha)).astype(np.uint8))
    draw, pose, lens = ImageDraw.Draw(canvas), known.fit.world_from_cam[view], known.geometry[view].intrinsics
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
    edges = [(a, b) for a in corners for b in corners if (b - a).sum() == 2.0 and np.count_nonzero(b - a) == 1]
    for ends in edges:
        _line(draw, np.stack(ends), pose, lens, BOX, 1)
    for k, colour in enumerate(COLOURS.values()):
        _line(draw, np.stack([np.zeros(3), AXIS * np.eye(3)[k]]), pose, lens, colour, 3)
    return np.array(canvas)


def _line(draw, ends: np.ndarray, pose: np.ndarray, lens: np.ndarray, colour, width: int) -> None:
    """The part of a segment [2, 3] that is in front of the camera."""
    local = (ends - pose[:3, 3]) @ pose[:3, :3]
    near = 0.05
    if (local[:, 2] <= near).all():
        return
    behind = local[:, 2] < near
    if behind.any():
        back, front = (1, 0) if behind[1] else (0, 1)
        share = (near - local[back, 2]) / (local[front, 2] - local[back, 2])
        local[back] += share * (local[front] - local[back])
    pixel = local @ lens.T
    pixel = np.clip(SIDE * pixel[:, :2] / pixel[:, 2:], -1e5, 1e5)
    draw.line([tuple(point) for point in pixel.tolist()], fill=colour, width=width)
