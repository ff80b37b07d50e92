"""`t3d view`: a prompt box and a turntable camera in the browser, rendered live from a checkpoint with viser."""

import time

import numpy as np

from t3d.core.errors import UsageError
from t3d.core.system import Picture


def serve(folder, prompt: str = '', *, port: int = 8080, size: int = 128, stop=lambda: False) -> None:
    """Serves until interrupted: type a prompt, drag the camera; the picture is one fixed-size compiled render.

    Args:
      folder: run folder, weights folder or name of shipped weights; None for the shipped ones.
      prompt: shown first; empty takes the first of the config's export prompts.
      stop: polled between frames; returns True to end (tests).
    Raises:
      ModuleNotFoundError: viser is not installed; the message names the extra.
    """
    try:
        import viser
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('`t3d view` needs viser: pip install "t3d[view]"') from error
    import jax

    from t3d.geom import cameras
    from t3d.parallel import devices
    from t3d.train import inference

    devices.compilation_cache()
    loaded = inference.load(folder)
    prompt = prompt or next(iter(loaded.config.export.prompts), '')
    if not prompt:
        raise UsageError(f'{loaded.name} names no prompt to begin with: t3d view {folder} "a prompt".')
    shown = Shown(loaded, size)
    shown.read(prompt)
    server = viser.ViserServer(port=port, verbose=False)
    server.scene.set_up_direction('+y')
    server.initial_camera.position = (0.0, 0.3 * shown.asset.camera['radius'], shown.asset.camera['radius'])
    server.initial_camera.look_at = (0.0, 0.0, 0.0)
    server.initial_camera.fov = shown.asset.camera['fov']
    print(f'open http://localhost:{port}  (from another machine: ssh -L {port}:localhost:{port} HOST, then the same link)')
    box = server.gui.add_text('prompt', prompt)
    seed = server.gui.add_number('seed', 0, min=0, step=1)
    note = server.gui.add_markdown('')

    def again(_):
        try:
            shown.read(box.value, int(seed.value))
            note.content = ''
        except ValueError as error:
            note.content = f'**{error}**'

    box.on_update(again)
    seed.on_update(again)
    seen = {}  # client -> what it was last shown: a still camera costs nothing
    while not stop():
        for name, client in server.get_clients().items():
            camera = client.camera
            matrix, lens = cameras.from_viser(camera.wxyz, camera.position), (float(camera.fov), float(camera.aspect))
            state = (shown.count, matrix.tobytes(), lens)
            if seen.get(name) != state:
                picture = shown.draw(matrix, *lens)
                client.scene.set_background_image(np.asarray(jax.device_get(picture)), format='jpeg')
                seen[name] = state
        time.sleep(0.03)


class Shown:
    """The asset on display and its compiled render."""

    def __init__(self, loaded, size: int):
        import jax
        import jax.numpy as jnp

        from t3d.geom import cameras

        self.loaded, self.asset, self.count = loaded, None, 0

        @jax.jit
        def draw(scene, world_from_cam, fov, aspect):
            lens = cameras.intrinsics_from_fov(fov)
            camera = cameras.Cameras(world_from_cam, lens.at[0, 0].divide(aspect))
            image = self.asset.render(scene, cameras.rays(camera, size, size)).features
            return (jnp.clip(image, 0.0, 1.0) * 255.0).astype(jnp.uint8)

        self._draw = draw

    def read(self, prompt: str, seed: int = 0) -> None:
        """Generates the asset of a prompt; a prompt that is refused leaves the old one on display."""
        import jax

        self.asset = self.loaded.system.generate(self.loaded.params, [prompt], jax.random.key(seed))[0]
        if isinstance(self.asset, Picture):
            raise UsageError(f'{self.loaded.name} makes pictures: `t3d generate` writes them, there is nothing to turn round.')
        self.count += 1

    def draw(self, world_from_cam, fov: float, aspect: float = 1.0):
        """uint8 [size, size, 3] of a vertical field of view (radians); squeezed to a square, as the window will stretch it."""
        return self._draw(self.asset.scene, world_from_cam, fov, aspect)
