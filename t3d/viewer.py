"""`t3d view`: a prompt box and a turntable camera in the browser, rendered live from a checkpoint with viser.

Each browser has its own prompt, seed, view and camera (`viewer_panel`); one loop does the work of all of them.
"""

import contextlib
import io
import socket
import time
import warnings

from t3d.core.errors import UsageError

HOST = '127.0.0.1'  # anyone who reaches the port can use the model, so by default only this machine


def serve(folder, prompt: str = '', *, port: int = 8080, host: str = HOST, size: int = 256, stop=lambda: False) -> None:
    """Serves until interrupted.

    Args:
      folder: run folder, weights folder or name of shipped weights; None for the shipped ones.
      prompt: shown first; empty takes the first of the config's export prompts.
      port: wanted; the next free one is taken where it is in use, 0 takes any. The link printed is the one that works.
      host: address to listen on; 0.0.0.0 for all of this machine's.
      size: rows of the pictures at first.
      stop: polled between frames; returns True to end (tests).
    Raises:
      ModuleNotFoundError: viser is not installed; the message names the extra.
      UsageError: a port or host that cannot be listened on, or a prompt that the model cannot read.
    """
    check_address(host, port)
    try:
        import viser
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('`t3d view` needs viser: pip install "t3d[view]"') from error
    from t3d import viewer_panel, viewer_pictures
    from t3d.inference import loading
    from t3d.parallel import devices

    devices.compilation_cache()
    loaded = loading.load(folder)
    prompt = prompt or next(iter(loaded.config.get('export', {}).get('prompts', ())), '')
    if not prompt:
        raise UsageError(f'{loaded.name} names no prompt to begin with: t3d view {folder} "a prompt".')
    shown = viewer_pictures.make(loaded, prompt)
    with contextlib.redirect_stdout(io.StringIO()):  # viser prints links too, whatever `verbose` says
        server = viser.ViserServer(host=host, port=port, verbose=False)
    try:
        server.scene.set_up_direction('+y')
        camera = getattr(shown.made, 'camera', {'radius': 3.5, 'fov': 0.7})
        server.initial_camera.position = (0.0, 0.3 * camera['radius'], camera['radius'])
        server.initial_camera.look_at = (0.0, 0.0, 0.0)
        server.initial_camera.fov = camera['fov']
        print('\n'.join(links(server.get_port(), port, host)), flush=True)
        panels = {}  # by client
        warnings.filterwarnings('ignore', 'Queued a .* on a closed connection')  # a browser that closed while it was drawn for
        while not stop():
            viewer_panel.step(panels, server.get_clients(), loaded, shown, size)
            time.sleep(0.03)
    finally:
        server.stop()


def check_address(host: str, port: int) -> None:
    """Raises UsageError for a port that is no port, and for an address that is none of this machine's."""
    if not 0 <= port < 2**16:
        raise UsageError(f'--port {port}: wanted 0 to 65535; the default is 8080, 0 takes any that is free.')
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind) as trial:
            trial.bind(address)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f'--host {host}: cannot listen there ({getattr(error, "strerror", None) or error}). Wanted an address of this '
            f'machine, 0.0.0.0 for all of them, or nothing for {HOST}, which only this machine reaches.'
        ) from error


def links(port: int, asked: int, host: str) -> list[str]:
    """The lines that say where to look: the port that is listened on, from here and from elsewhere."""
    taken = f'  (port {asked} is taken)' if asked not in (0, port) else ''
    if host in (HOST, 'localhost', '::1'):
        tunnel = f'from another machine: ssh -L {port}:localhost:{port} {socket.gethostname()}, then the same link'
        return [f'open http://localhost:{port}{taken}', tunnel]
    if host in ('0.0.0.0', '::', ''):
        name = socket.gethostname()
        return [f'open http://localhost:{port}{taken}', f'every machine that reaches {name} can use http://{name}:{port}']
    return [f'open http://{f"[{host}]" if ":" in host else host}:{port}{taken}', 'every machine that reaches it can use it']
