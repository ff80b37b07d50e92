"""t3d from Python: `t3d.load(...)`, `model.generate(...)`, `asset.save(...)`, and what is in an asset as arrays.

    import t3d

    model = t3d.load('instant3d-scenes')
    asset = model.generate('a red cone on top of a blue cube', seed=3)
    pictures = asset.render(size=128, views=8)
    asset.save('out/cone')

These are the calls behind `t3d generate`; the same prompt and seed give the same asset.
"""

import pathlib
from collections.abc import Mapping

import numpy as np

from t3d.core.errors import UsageError


def load(folder=None, *, system: str | None = None, given: Mapping[str, str] | None = None) -> 'Model':
    """A trained model.

    Args:
      folder: a run folder, a weights folder, or the name of shipped weights; None for those of `system`, or the default ones.
      given: other models to use than those the config names, by name.
    Raises:
      FileNotFoundError, UsageError: nothing there, or it does not fit; the message says what was looked for.
    """
    from t3d.inference import loading

    return Model(loading.load(folder, system, given=given))


class Model:
    """A trained model; `loaded` has its config, system and weights."""

    def __init__(self, loaded):
        self.loaded, self.config, self.name = loaded, loaded.config, loaded.name

    def generate(self, prompt='', *, seed: int = 0, image=None, views=None):
        """The asset of a prompt, or a list of those of several prompts.

        Args:
          prompt: a text, or a list of texts.
          seed: the same seed gives the same asset.
          image: for systems that read one: a path, or an array [H, W, 3 or 4], uint8 or float in [0, 1].
          views: for systems that read them: a folder, or a core.outputs.Views.
        """
        from t3d.inference import loading, requests

        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        asked = requests.make(prompts, _pixels(image), str(views) if isinstance(views, pathlib.Path) else views)
        made = loading.generate(self.loaded, asked, [seed])
        assets = [Asset(output, self.loaded, one, seed) for one, (_, output) in zip(asked, made, strict=True)]
        return assets[0] if isinstance(prompt, str) else assets

    def save(self, folder, dtype: str | None = None) -> None:
        """Writes the weights as a folder that `load` reads; floating arrays as `dtype`."""
        from t3d.inference import loading

        loading.save_weights(self.loaded, folder, dtype)

    def __repr__(self) -> str:
        return f'<t3d model {self.name}: {self.config.system}, step {self.loaded.step}>'


class Asset:
    """One generated object; `output` is one of t3d.core.outputs, with its arrays."""

    def __init__(self, output, loaded, request=None, seed: int = 0):
        from t3d.core import outputs

        self.output, self.prompt, self.kind = output, output.prompt, outputs.kind_of(output)
        self._loaded, self._request, self._seed = loaded, request or outputs.Request(output.prompt), seed

    def save(self, folder, **options) -> pathlib.Path:
        """Writes what `t3d generate` writes (options of the same names: formats, texture, frames, ...); the file to open."""
        from t3d.core import config as configs
        from t3d.export import writers
        from t3d.inference import publish

        known = {'writer', 'log'}.union(*map(writers.options_of, writers.FORMATS))  # those of other kinds are left out
        unknown = [name for name in options if name not in known]
        if unknown and not writers.own({**self._loaded.config.get('export', {}), **options}):
            raise UsageError(configs.unknown(unknown[0], known, 'option of save()'))
        options = {'log': lambda line: None, 'subtitle': f'{self._loaded.config.system}, {self._loaded.name}', **options}
        publish.asset(self._loaded, self._request, self.output, folder, seed=self._seed, **options)
        return publish.to_open(pathlib.Path(folder))

    def render(self, *, size: int = 128, views: int = 4, elevation: float = 0.3, cameras=None) -> np.ndarray:
        """Pictures of a field [V, S, S, 3] in [0, 1].

        Args:
          views: cameras around the object, front first, at `elevation` radians; or `cameras`, a geom.cameras.Cameras [V].
        """
        from t3d.export import renders
        from t3d.geom import cameras as tools

        field = self._field('render')
        views = tools.turntable(views, elevation=elevation, **field.camera) if cameras is None else cameras
        return renders.smooth_views(field, views, size).rgb

    def at(self, points) -> tuple[np.ndarray, np.ndarray]:
        """(density [N] per scene unit, 0 outside the field's cube; colour [N, 3] in [0, 1]) at points [N, 3] of the world."""
        import jax

        field, points = self._field('at'), np.asarray(points, np.float32)
        density, rgb = jax.jit(field.field)(field.scene, points)
        inside = np.all(np.abs(points) <= field.bound, axis=-1)
        return np.where(inside, density, 0.0), np.asarray(rgb)

    def mesh(self, *, grid: int = 96, faces: int = 20_000):
        """(vertices [N, 3], faces [F, 3], colours uint8 [N, 3]) of a field, or of a mesh as it is."""
        from t3d.export import extraction
        from t3d.geom import meshing

        if self.kind == 'mesh':
            return tuple(np.asarray(part) for part in (self.output.vertices, self.output.faces, self.output.colors))
        field = self._field('mesh')
        densities = meshing.density_grid(field.field, field.scene, field.bound, grid)
        made, _ = extraction.extract(field, densities, faces=faces, log=lambda line: None)
        return made.vertices, made.faces, made.colors

    def _field(self, what: str):
        if self.kind != 'field':
            raise UsageError(f'{what}() is of a field, and {self._loaded.name} makes {self.kind}: its arrays are in `.output`.')
        return self.output

    def __repr__(self) -> str:
        return f'<t3d {self.kind} of {self.prompt!r}>'


def _pixels(image):
    """What requests.make takes of an image: a path, or float [H, W, 4]."""
    if image is None or isinstance(image, str | pathlib.Path):
        return None if image is None else str(image)
    image = np.asarray(image)
    image = image.astype(np.float32) / 255.0 if image.dtype == np.uint8 else image.astype(np.float32)
    if image.ndim != 3 or image.shape[-1] not in (3, 4):
        raise UsageError(f'image of shape {image.shape}: wanted [H, W, 3] or [H, W, 4].')
    return image if image.shape[-1] == 4 else np.concatenate([image, np.ones_like(image[..., :1])], -1)
