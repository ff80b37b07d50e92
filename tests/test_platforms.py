"""JAX_PLATFORMS that names what is not here: one sentence and status 2 from every command, and the doctor still reports."""

import os
import subprocess
import sys

import pytest

from t3d.core import environment

CODE = """
import contextlib, io, os, sys
from t3d import cli
import launch.align_head, launch.guidance_sweep, launch.make_triplanes, launch.train

def status(call, *words):
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            found = call([*words])
        except SystemExit as stop:
            found = stop.code
    return found, error.getvalue().strip().splitlines()

def main(call, *words):
    found, lines = status(call, *words)
    print(call.__module__, *words[:2], '->', found, lines)

toy = 'ganfusion_diffusion-toy'
main(cli.main, 'generate', 'a red cube', '--out', 'made')
main(cli.main, 'sample2d', 'a red cube', '--weights', 'image_diffusion-toy', '--out', 'made.png')
main(cli.main, 'train', 'instant3d:tiny', '--workdir', 'made')
main(cli.main, 'train', 'instant3d:tiny', '--dry-run')
main(cli.main, 'eval', toy)
main(cli.main, 'info', toy)
main(cli.main, 'weights', toy, 'made')
main(cli.main, 'bench', 'render')
main(launch.train.main, '--config', 'instant3d:tiny', '--workdir', 'made')
main(launch.make_triplanes.main, '--run', toy, '--out', 'made')
main(launch.guidance_sweep.main, toy)
assert not os.listdir('.'), os.listdir('.')
cli.main(['doctor'])
"""


def run(platform, folder):
    env = {**os.environ, 'JAX_PLATFORMS': platform, 'PYTHONPATH': os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run([sys.executable, '-c', CODE], cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    'platform, advice',
    [
        ('cuda', 'Give it a GPU that nvidia-smi shows and `pip install "t3d[cuda]"`, or unset JAX_PLATFORMS'),
        ('cdua', "Did you mean 'cuda'? Give it a GPU"),
    ],
)
def test_every_command_says_what_is_installed_and_what_to_do(tmp_path, platform, advice):
    done = run(platform, tmp_path)
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if ' -> ' in line]
    assert len(lines) == 11
    for line in lines:
        assert (
            f"-> 2 ['error: JAX_PLATFORMS={platform}: JAX cannot use it here (" in line
            or f'-> 2 ["error: JAX_PLATFORMS={platform}' in line
        ), line
        assert advice in line.replace("\\'", "'") and 'installed: jax ' in line, line
    assert 'devices: FAILED' in done.stdout and 'optional parts:' in done.stdout and 'instant3d-scenes' in done.stdout


def test_a_value_that_jax_does_not_take_is_one_line():
    """JAX reads its variables when it is imported, which commands do only once they run."""
    env = {
        **os.environ,
        'JAX_DEFAULT_MATMUL_PRECISION': 'nope',
        'PYTHONPATH': os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(
        [sys.executable, '-m', 't3d.cli', 'info', 'instant3d-scenes'], env=env, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr[-2000:]
    assert done.stderr.startswith('error: JAX_DEFAULT_MATMUL_PRECISION=nope: JAX takes another kind of value: unset')


@pytest.mark.parametrize('asked', [*environment.INSTALL, 'nonsense', 'cuda,tpu', 'METAL', ' CUDA ', 'cpux'])
def test_each_platform_gets_a_next_step(asked):
    said = environment.platform_refused(asked, 'a reason')
    assert said.startswith(f'JAX_PLATFORMS={asked}: ') and 'a reason; installed: jax ' in said
    assert said.endswith('unset JAX_PLATFORMS to take what there is.') and '\n' not in said
