"""One browser of `t3d view`: its controls, what it asked for, and what it was last shown.

The controls' callbacks run in viser's threads and only note what is wanted; `step`, called by the one loop of the program,
does the work. So browsers wait for each other and cannot disturb each other.
"""

import html
import sys
import time
import traceback

import numpy as np

from t3d import viewer_pictures as pictures
from t3d.core.errors import UsageError
from t3d.geom import cameras
from t3d.inference import publish

PAUSE = 1.0  # s without a key after which a prompt counts as finished
STILL = 0.25  # s after which a camera that moved is at rest
DRAFT = 128  # rows of the pictures while it moves
RESOLUTIONS = (128, 256, 512, 1024)  # rows


class Panel:
    """The controls of a client, and its state."""

    def __init__(self, client, loaded, shown: pictures.Shown, rows: int):
        self.client, self.loaded, self.shown = client, loaded, shown
        self.refused, self.mesh = '', None  # message; mesh of `shown`, made when it is wanted
        self.edited = self.entered = False  # since the last step
        self.due, self.moved = None, -STILL  # times: of generating, of the camera's last move
        self.lens = self.drawn = None
        self.downloads = []  # kinds of file, in the order of asking
        solid, gui = shown.densities is not None, client.gui
        with gui.add_form(None) as form:
            self.box = gui.add_text('prompt', shown.prompt, hint='Enter, or a pause, makes it.')
            self.seed = gui.add_number('seed', shown.seed, min=0, max=2**32 - 1, step=1, hint='The same seed, the same object.')
        self.mode = gui.add_dropdown('view', pictures.MODES if solid else pictures.MODES[:1], initial_value='colour')
        sizes = sorted({*RESOLUTIONS, rows})
        hint = f'Rows of the picture; {DRAFT} while the camera moves.'
        self.rows = gui.add_dropdown('resolution', [str(size) for size in sizes], initial_value=str(rows), hint=hint)
        self.note = gui.add_html('')
        self.say()
        form.on_submit(lambda _: setattr(self, 'entered', True))
        for field in (self.box, self.seed):
            field.on_update(lambda _: setattr(self, 'edited', True))
        for kind in ('png', 'glb') if solid else ('png',):
            gui.add_button(f'download {kind.upper()}').on_click(lambda _, kind=kind: self.downloads.append(kind))

    def step(self, now: float) -> None:
        """Does what is due at a time (s); an error is told in the browser and never leaves."""
        try:
            self._ask(now)
            self._draw(now)
            while self.downloads:
                self._send(self.downloads.pop(0))
        except UsageError as error:
            self.say(f'<b>Not made:</b> {html.escape(str(error))}')
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self.say(f'<b>Failed:</b> {html.escape(f"{type(error).__name__}: {error}")} (more in the terminal)')

    def say(self, problem: str = '') -> None:
        """A line below the controls: what is shown, or in red what is wrong."""
        what = f'"{html.escape(self.shown.prompt)}", seed {self.shown.seed}'
        text = f'<p style="color:#c92a2a">{problem}</p>' if problem else ''
        self.note.content = f'<div style="padding:0 0.8em;overflow-wrap:anywhere">{text}<p>shown: {what}</p></div>'

    def _ask(self, now: float) -> None:
        """Generates what the prompt and the seed say, once they are finished; on a refusal the old picture turns grey."""
        if self.edited:
            self.edited, self.due = False, now + PAUSE
        if self.entered:
            self.entered, self.due = False, now
        if self.due is None or now < self.due:
            return
        self.due = None
        try:
            prompt, seed = self.box.value.strip(), int(self.seed.value)
            if (prompt, seed) != (self.shown.prompt, self.shown.seed):
                self.note.content = '<p style="padding:0 0.8em">making it ...</p>'
                self.shown, self.mesh = pictures.make(self.loaded, prompt, seed), None
        except Exception as error:
            self.refused = str(error) or type(error).__name__
            raise
        self.refused = ''
        self.say()

    def _draw(self, now: float) -> None:
        """Sends a picture where something changed: a draft while the camera moves, then one at the chosen resolution."""
        camera = self.client.camera
        matrix = cameras.from_viser(camera.wxyz, camera.position)
        lens = (matrix.tobytes(), float(camera.fov), float(camera.aspect))
        if lens != self.lens:
            self.moved, self.lens = now if self.lens else now - STILL, lens
        moving = now - self.moved < STILL
        rows = min(DRAFT, int(self.rows.value)) if moving else int(self.rows.value)
        mode = 'colour' if self.refused else self.mode.value
        state = (id(self.shown), self.refused, mode, rows, lens)
        if state == self.drawn:
            return
        self.drawn = state  # before the work: what fails once is not tried for ever
        image = self._picture(mode, rows)
        image = pictures.greyed(image) if self.refused else image
        self.client.scene.set_background_image(image, format='jpeg' if moving else 'png')

    def _picture(self, mode: str, rows: int) -> np.ndarray:
        camera = self.client.camera
        matrix, shape = cameras.from_viser(camera.wxyz, camera.position), (rows, max(1, round(rows * float(camera.aspect))))
        mesh = self._mesh() if mode == 'mesh' else None
        return pictures.draw(self.shown, mode, matrix, float(camera.fov), shape, mesh)

    def _mesh(self):
        if self.mesh is None:
            self.note.content = '<p style="padding:0 0.8em">making the mesh ...</p>'
            self.mesh = pictures.build_mesh(self.loaded, self.shown)
            self.say()
        return self.mesh

    def _send(self, kind: str) -> None:
        """Downloads the mesh, or what is seen; of a generated picture its own pixels."""
        if kind == 'glb':
            data = pictures.glb(self._mesh())
        elif self.shown.densities is None:
            data = pictures.png(pictures.to_bytes(self.shown.made.image))
        else:
            data = pictures.png(self._picture(self.mode.value, int(self.rows.value)))
        name = publish.name_of(self.shown.prompt, self.shown.seed)
        self.client.send_file_download(f'{name}.{kind}', data, save_immediately=True)


def step(panels: dict, clients: dict, loaded, shown: pictures.Shown, rows: int) -> None:
    """One round over the browsers that are connected: new ones get their controls, those that left are forgotten."""
    for name in set(panels) - set(clients):
        del panels[name]
    for name, client in list(clients.items()):
        if name not in panels:
            panels[name] = Panel(client, loaded, shown, rows)
        panels[name].step(time.monotonic())
