"""`python -m launch.fronts_table --out DIR`: one front or several, of Instant3D taught by a prior that prefers fronts.

Eight prompts of the marked toy objects, whose front is painted (t3d.data.sets.marked); a prior in closed form that says "front"
of a share of the pictures of other sides; and Perp-Neg against it. Each variant of configs/instant3d.py:sds is trained with
each seed and read by t3d.evaluate.marked_fronts. Written to DIR: `fronts.jsonl` (one line a run; a stopped command goes on
behind those that are there), `table.md`, and a sheet of 12 views of each object for each variant.

| variant | share of fronts in the prior | negatives |
|---|---|---|
| no preference | 0 | none |
| none, fixed | 0.7 | none; threestudio's weights |
| half, quarter | 0.7 | a half and a quarter of these |
| adaptive | 0.7 | these times 0.25 to 0.5, by Instant3D's severity |
| milder, milder with a quarter | 0.4 | none; a quarter |
"""

import pathlib

import numpy as np

from launch import kept, sds_table
from t3d.core import config as configs
from t3d.core import parsing
from t3d.core.rules import Whole
from t3d.parallel import devices

PRIOR, SIZE = 'toy_marked', 16
VARIANTS = {  # name: (share of fronts among the pictures of other sides, overrides)
    'no preference': (0.0, ()),
    'none': (None, ()),
    'fixed': (None, ('distill.negatives=fixed',)),
    'half': (None, ('distill.negatives=adaptive', 'distill.least=0.5', 'distill.more=0.0')),
    'quarter': (None, ('distill.negatives=adaptive', 'distill.least=0.25', 'distill.more=0.0')),
    'adaptive': (None, ('distill.negatives=adaptive', 'distill.least=0.25', 'distill.more=0.25')),
    'milder': (0.4, ()),
    'milder with a quarter': (0.4, ('distill.negatives=adaptive', 'distill.least=0.25', 'distill.more=0.0')),
}
SCORES = {
    'janus': 'sides and backs that look like the front',
    'front': 'fronts that do',
    'one_front': 'objects with one front in all 12 views',
}
RANGES = {name: Whole(1, 10**6, name) for name in ('steps', 'seeds')}


def main(argv: list[str] | None = None) -> None:
    parser = parsing.Parser(prog='python -m launch.fronts_table', description=__doc__.partition('\n')[0])
    parser.add_argument('--out', required=True, help='folder for scores, table and sheets')
    kept.variant_flags(parser, VARIANTS, steps=600)
    args = parser.parse_args(argv)
    devices.compilation_cache()
    with parsing.refusing(parser):
        parsing.held(args, RANGES)
        of_each = {name: overrides for name, (_, overrides) in VARIANTS.items()}
        names = kept.chosen(args, sds_table.BASE, of_each)  # before a folder is made
        parsing.writable(args.out)
        rows = run(pathlib.Path(args.out), names, args.steps, args.seeds, args.overrides)
    text = table(rows, names)
    (pathlib.Path(args.out) / 'table.md').write_text(text)
    print(text)


def run(out: pathlib.Path, names: list[str], steps: int, seeds: int, overrides=()) -> list[dict]:
    """All scores, {'variant', 'seed', 'janus', 'front', 'one_front', 'error'}, those on disk included."""
    read = kept.Kept(out / 'fronts.jsonl', {'steps': steps, 'overrides': list(overrides)})
    for name in names:
        missing = set(range(seeds)) - {row['seed'] for row in read.rows if row['variant'] == name}
        trainer = Fronts(name, [*overrides, f'steps={steps}'], out) if missing else None
        for seed in sorted(missing):
            row = {'variant': name, 'seed': seed, **trainer.scores(seed)}
            read.add(row)
            print(f'{name}, seed {seed}: {", ".join(f"{score} {row[score]:.2f}" for score in SCORES)}', flush=True)
    return read.rows


class Fronts:
    """One variant: its trainer, and the renders that are read."""

    def __init__(self, name: str, overrides: list[str], out: pathlib.Path):
        from t3d.data import sources
        from t3d.evaluate import marked_fronts, view_reading

        bias, own = VARIANTS[name]
        self.name, self.out, self.scenes = name, out, view_reading.some_objects(marked_fronts.OBJECTS)
        self.prompts = [scene.captions[0] for scene in self.scenes]
        file = out / 'prompts.txt'
        file.write_text('\n'.join(self.prompts) + '\n')
        words = tuple(sources.resolve(configs.load(sds_table.BASE)).text.words)  # the grammar's, which the prior has
        data = (f'data.path={file}', 'data.split=all', f'text.words={words}')
        given = (f'given.prior={PRIOR}:{SIZE}', f'render.size={SIZE}')
        self.trainer = sds_table.Trainer([*given, *data, *overrides, *own], lambda config: prior(bias))
        self.render = self.trainer.renderer(self.prompts, marked_fronts.views_of())

    def scores(self, seed: int) -> dict[str, float]:
        """The scores of a whole run with this seed; the sheet of the first seed is written."""
        from t3d.evaluate import marked_fronts
        from t3d.export import sheets

        *_, (_, state) = self.trainer.states(seed, self.trainer.config.steps)
        section = self.trainer.config.render
        images, truth = np.asarray(self.render(state.ema)), marked_fronts.true_views(self.scenes, section)
        if seed == 0:
            rows = np.stack([images, truth], 1).reshape(-1, *images.shape[1:])  # ours over the true one
            tiles = np.concatenate([np.concatenate(list(row), 1) for row in rows])
            large = np.round(255.0 * np.kron(tiles, np.ones((4, 4, 1)))).astype(np.uint8)
            sheets.write(self.out / f'{self.name.replace(" ", "_")}.png', large)
        error = float(np.square(images - truth).mean())
        return {**marked_fronts.fronts(self.scenes, images, section), 'error': error}


def prior(bias: float | None):
    """{'prior'}: that of the marked objects with another share of fronts; None: its own."""
    from t3d.inference import toy_pictures

    return {'prior': toy_pictures.open_marked(SIZE, toy_pictures.BIAS if bias is None else bias)}


def table(rows: list[dict], names: list[str]) -> str:
    """Markdown: how variants end; mean and range of the seeds."""
    lines = [
        f'| variant | seeds | {" | ".join(SCORES.values())} | squared error to the true views |',
        f'|---|---|{"---|" * (len(SCORES) + 1)}',
    ]
    for name in names:
        ends = [row for row in rows if row['variant'] == name]
        if ends:
            cells = [sds_table.spread([100.0 * end[score] for end in ends], '{:.0f} %') for score in SCORES]
            error = sds_table.spread([end['error'] for end in ends], '{:.4f}')
            lines.append(f'| {name} | {len(ends)} | {" | ".join(cells)} | {error} |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    main()
