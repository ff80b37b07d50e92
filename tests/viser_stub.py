"""As much of viser as `t3d view` uses, with viser 1.1.1's names, signatures and order of events: any other call is an error.

A browser is a `Client`; a test types into its controls as a person does. `values` are what the browser would show.
"""

import contextlib
import types


class Field:
    """A control with a value: text, number, dropdown, HTML."""

    def __init__(self, value):
        self.value = self.content = value
        self._handlers = []

    def on_update(self, handler):
        self._handlers.append(handler)

    def type(self, value):
        """A person's edit: on_update follows every key."""
        parts = [value[: n + 1] for n in range(len(value))] if isinstance(value, str) else [value]
        for part in parts or [value]:
            self.value = part
            for handler in self._handlers:
                handler(types.SimpleNamespace(target=self))


class Button:
    def on_click(self, handler):
        self.click = lambda: handler(types.SimpleNamespace(target=self))


class Form(contextlib.AbstractContextManager):
    def __exit__(self, *_):
        return None

    def on_submit(self, handler):
        self.enter = lambda: handler(types.SimpleNamespace(target=self))


class Gui:
    def __init__(self):
        self.fields = {}

    def add_form(self, label, *, visible=True):
        return self._add('form', Form())

    def add_text(self, label, initial_value, *, multiline=False, hint=None):
        assert isinstance(initial_value, str)
        return self._add(label, Field(initial_value))

    def add_number(self, label, initial_value, *, min=None, max=None, step=None, hint=None):
        return self._add(label, Field(initial_value))

    def add_dropdown(self, label, options, *, initial_value=None, hint=None):
        assert initial_value in options
        field = self._add(label, Field(initial_value))
        field.options = tuple(options)
        return field

    def add_html(self, content):
        return self._add('note', Field(content))

    def add_button(self, label, *, hint=None):
        return self._add(label, Button())

    def _add(self, label, field):
        self.fields[label] = field
        return field


class Scene:
    def __init__(self):
        self.pictures = []

    def set_background_image(self, image, format='auto'):
        assert image.dtype.name == 'uint8' and image.ndim == 3 and image.shape[2] == 3 and format in ('auto', 'png', 'jpeg')
        self.pictures.append(image)


class Client:
    """A browser whose camera stands at the front."""

    def __init__(self, aspect=1.5):
        self.gui, self.scene, self.files = Gui(), Scene(), {}
        self.camera = types.SimpleNamespace(wxyz=(0.0, 1.0, 0.0, 0.0), position=(0.0, 0.0, 3.2), fov=0.7, aspect=aspect)

    def __getitem__(self, label):
        return self.gui.fields[label]

    def send_file_download(self, filename, content, chunk_size=2**20, save_immediately=False):
        self.files[filename] = content


class Server:
    """`ViserServer`: silently takes the next port where the wanted one is in use."""

    def __init__(self, host='0.0.0.0', port=8080, label=None, verbose=True, *, taken=()):
        self.host, self.port, self.stopped, self.clients = host, port, False, {}
        while self.port in taken:
            self.port += 1
        self.scene = types.SimpleNamespace(set_up_direction=lambda direction: setattr(self, 'up', direction))
        self.initial_camera = types.SimpleNamespace()

    def get_port(self):
        return self.port

    def get_clients(self):
        return dict(self.clients)

    def stop(self):
        self.stopped = True
