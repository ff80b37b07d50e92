"""`python -m launch.sds_table --out DIR`: what each part of Instant3D's score distillation is worth, on the toy prompts.

Every variant of configs/instant3d.py:sds is trained with each seed and measured on the way: renders of the 32 large objects,
from six cameras, against the true ones that nobody learned from. Written to DIR: `curves.jsonl` (one line a measurement; a
command that was stopped goes on behind the runs that are whole), `table.md`, `mechanisms.png` and `outputs.png`.

| group | variants |
|---|---|
| mechanisms | all; without cross attention, style injection, token to plane, each alone |
| output for the albedo | scaled sigmoid from 0.5 or 0.7, plain sigmoid, linear, ReLU, leaky ReLU, swish |
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from launch import kept
from t3d.core import config as configs
from t3d.core import parsing
from t3d.core.errors import UsageError
from t3d.core.rules import Whole
from t3d.parallel import devices

BASE = 'configs/instant3d.py:sds'
VARIANTS = {
    'all': (),  # scaled sigmoid from 0.7
    'no cross attention': ('decoder.cross_attention=False',),
    'no style injection': ('decoder.style_injection=False',),
    'no token to plane': ('decoder.token_to_plane=False',),
    'scaled sigmoid from 0.5': ('field.alpha=0.5',),
    'plain sigmoid': ('field.alpha=1.0',),
    'linear': ('field.albedo=linear',),
    'relu': ('field.albedo=relu',),
    'leaky relu': ('field.albedo=leaky_relu',),
    'swish': ('field.albedo=swish',),
}
PLOTS = {
    'mechanisms': ('all', 'no cross attention', 'no style injection', 'no token to plane'),
    'outputs': ('all', 'plain sigmoid', 'linear', 'relu', 'swish'),
}
RANGES = {name: Whole(1, 10**6, name) for name in ('steps', 'every', 'seeds')}
ERROR = 0.01  # mean squared error of seen prompts, at which views per prompt are compared


def main(argv: list[str] | None = None) -> None:
    parser = parsing.Parser(prog='python -m launch.sds_table', description=__doc__.partition('\n')[0])
    parser.add_argument('--out', required=True, help='folder for curves and table')
    parser.add_argument('--every', type=int, default=50, help='steps between measurements (default: 50)')
    kept.variant_flags(parser, VARIANTS, steps=800)
    args = parser.parse_args(argv)
    devices.compilation_cache()
    with parsing.refusing(parser):
        parsing.held(args, RANGES)
        if args.steps % args.every:
            raise UsageError(f'--steps {args.steps} is no multiple of --every {args.every}.')
        names = kept.chosen(args, BASE, VARIANTS)  # before a folder is made
        parsing.writable(args.out)
        rows = run(pathlib.Path(args.out), names, args.steps, args.every, args.seeds, args.overrides)
    text = table(rows, names)
    (pathlib.Path(args.out) / 'table.md').write_text(text)
    draw(rows, pathlib.Path(args.out))
    print(text)


def run(out: pathlib.Path, names: list[str], steps: int, every: int, seeds: int, overrides=()) -> list[dict]:
    """All measurements, {'variant', 'seed', 'step', 'views', 'seen', 'held_out', 'nearest'}, those on disk included."""
    measured = kept.Kept(out / 'curves.jsonl', {'steps': steps, 'every': every, 'overrides': list(overrides)})
    for name in names:
        trainer = None
        for seed in range(seeds):
            if sum((row['variant'], row['seed']) == (name, seed) for row in measured.rows) == steps // every:
                continue
            trainer = trainer or Trainer([*overrides, *VARIANTS[name], f'steps={steps}'])
            made = [{'variant': name, 'seed': seed, **row} for row in trainer.curve(seed, every)]
            measured.add(*made)
            last = made[-1]
            print(f'{name}, seed {seed}: seen {last["seen"]:.4f}, held out {last["held_out"]:.4f}', flush=True)
    return measured.rows


class Trainer:
    """One variant: its compiled step, and what its renders are compared with.

    Args:
      given: `config -> {name: Given}`; None: the models that the config names.
    """

    def __init__(self, overrides: list[str], given=None):
        from t3d import systems
        from t3d.core.system import params_of
        from t3d.data import sources
        from t3d.data.sets import oracle, shapes, toy
        from t3d.evaluate.toy_objects import AZIMUTH, ELEVATION
        from t3d.geom import cameras
        from t3d.inference import loading

        self.config = config = sources.resolve(configs.load(BASE, [*overrides, 'evaluate=()']))
        given = (given or loading.open_given)(config)
        self.system, self.given = systems.make(config, given), params_of(given)
        self.source, self.transform = sources.make(config, None, self.system.batch_spec)
        self.step = jax.jit(self.system.train_step, donate_argnums=0)
        things = [scene for scene in shapes.singles('all') if scene.attributes['size'] == 'large']
        size = config.render.size
        records = [toy.record(scene, AZIMUTH, ELEVATION, size, 3) for scene in things]
        self.truth = np.stack([oracle.composite(record['image'], config.render.background) for record in records])
        held = [shapes.is_held_out(scene.attributes['shape'], scene.attributes['colour']) for scene in things]
        self.held_out = np.array(held)
        views = cameras.Cameras(*toy.camera_arrays(AZIMUTH, ELEVATION, shapes.RADIUS, shapes.FOV))
        self.render = self.renderer([scene.captions[0] for scene in things], views)

    def renderer(self, prompts: list[str], views):
        """`(params) -> images [N, V, S, S, 3]` of N prompts from cameras [V], with no style noise."""
        from t3d.fields.text_field import TextField
        from t3d.geom import cameras

        model, size = TextField(self.config), self.config.render.size
        ids = jnp.asarray(model.text.tokenize(prompts))
        rays = jax.tree.map(lambda leaf: leaf[None], cameras.rays(views, size, size))

        def render(params):
            def one(row):
                scene = model.scene_from_noise(params, row[None], jnp.zeros((1, model.decoder.style_width)))
                return jnp.clip(model.render_scene(scene, rays).features[0], 0.0, 1.0)

            return jax.lax.map(one, ids)

        return jax.jit(render)

    def curve(self, seed: int, every: int):
        """A measurement each `every` steps of a run with this seed."""
        for step, state in self.states(seed, every):
            yield {'step': step, 'views': self._views(step), **self.measure(state.ema)}

    def states(self, seed: int, every: int):
        """(step, state) each `every` steps of a run with this seed; batches and draws follow the seed alone."""
        from t3d.core import prng

        config, random = self.config, np.random.default_rng(seed)
        order = np.concatenate([random.permutation(len(self.source)) for _ in range(self._epochs())])
        rows = order[: config.steps * config.batch].reshape(config.steps, config.batch)
        key_init, key_steps = jax.random.split(prng.key(seed))
        batch = self._batch(rows[0])
        state = jax.jit(self.system.init)(key_init, batch, self.given)
        for step, places in enumerate(rows):
            state, _ = self.step(state, self._batch(places), jax.random.fold_in(key_steps, step), self.given)
            if (step + 1) % every == 0:
                yield step + 1, state

    def measure(self, params) -> dict[str, float]:
        """Mean squared errors of seen and held-out prompts, and the share of held-out views nearest to their own object."""
        images = np.asarray(self.render(params))
        each = np.square(images - self.truth).mean((2, 3, 4))  # [32, 6]
        others = np.square(images[:, None] - self.truth[None]).mean((3, 4, 5))  # [32, 32, 6]
        nearest = others.argmin(1) == np.arange(len(images))[:, None]
        held = self.held_out
        values = {'seen': each[~held].mean(), 'held_out': each[held].mean(), 'nearest': nearest[held].mean()}
        return {name: float(value) for name, value in values.items()}

    def _batch(self, places) -> dict[str, np.ndarray]:
        records = [self.transform(self.source[int(place)], None) for place in places]
        return {name: np.stack([record[name] for record in records]) for name in records[0]}

    def _epochs(self) -> int:
        return -(-self.config.steps * self.config.batch // len(self.source))

    def _views(self, step: int) -> float:
        return step * self.config.batch * self.config.cameras.views / len(self.source)


def table(rows: list[dict], names: list[str]) -> str:
    """Markdown: views per prompt until the error of seen prompts is ERROR, and how variants end; mean and range of seeds."""
    lines = [
        f'| variant | seeds | views per prompt to a seen error of {ERROR} | seen error at the end | held-out error '
        '| held-out views nearest to their own of 32 (chance 3 %) |',
        '|---|---|---|---|---|---|',
    ]
    for name in names:
        runs = {}
        for row in rows:
            if row['variant'] == name:
                runs.setdefault(row['seed'], []).append(row)
        if not runs:
            continue
        reached = [views_to(one, ERROR) for one in runs.values()]
        ends = [one[-1] for one in runs.values()]
        cells = [spread(reached, '{:.0f}'), *(spread([end[part] for end in ends], '{:.4f}') for part in ('seen', 'held_out'))]
        nearest = spread([100.0 * end['nearest'] for end in ends], '{:.0f} %')
        lines.append(f'| {name} | {len(runs)} | {" | ".join(cells)} | {nearest} |')
    return '\n'.join(lines) + '\n'


def views_to(rows: list[dict], error: float) -> float:
    """Views per prompt at which the seen error of one run falls to `error`, between measurements by a line through the
    logarithms of errors; inf where it never does."""
    for before, row in zip([None, *rows], rows):
        if row['seen'] <= error:
            if before is None:
                return row['views']
            share = np.log(before['seen'] / error) / np.log(before['seen'] / row['seen'])
            return float(before['views'] + share * (row['views'] - before['views']))
    return np.inf


def draw(rows: list[dict], out: pathlib.Path) -> None:
    """The error of seen prompts over views per prompt, the mean of all seeds, as `mechanisms.png` and `outputs.png`."""
    from PIL import Image

    from t3d.export import plots

    for plot, names in PLOTS.items():
        series = {}
        for name in names:
            own = [row for row in rows if row['variant'] == name]
            views = sorted({row['views'] for row in own})
            series[name] = (views, [float(np.mean([row['seen'] for row in own if row['views'] == at])) for at in views])
        if series := {name: line for name, line in series.items() if line[0]}:
            title = 'mean squared error of seen prompts'
            high = min(0.1, 0.02 * np.ceil(50.0 * max(max(line[1]) for line in series.values())))
            image = plots.lines(series, title, 'views per prompt', high=float(high))
            Image.fromarray(image).save(out / f'{plot}.png', optimize=True)


def spread(values: list[float], form: str) -> str:
    """'mean [lowest, highest]'; never for what no seed reached."""
    shown = [form.format(value) if np.isfinite(value) else 'never' for value in (np.mean(values), min(values), max(values))]
    return shown[0] if len(values) == 1 else f'{shown[0]} [{shown[1]}, {shown[2]}]'


if __name__ == '__main__':
    main()
