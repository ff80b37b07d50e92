"""The call of every network is checked against the shapes of its signature while tests run, and only then."""

import ast
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from t3d.core.typing import Array, Float, typechecked
from t3d.nets.unet import UNet

ROOT = pathlib.Path(__file__).parent.parent
TINY = UNet(
    block_out_channels=(8, 16),
    down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
    up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=6,
    norm_num_groups=4,
)


def unchecked(sources: dict[str, str]) -> tuple[int, list[str]]:
    """How many calls of flax modules there are, and those that are not checked whole: decorator, arguments, result."""
    walks = ((file, node) for file, source in sources.items() for node in ast.walk(ast.parse(source)))
    classes = [(file, node) for file, node in walks if isinstance(node, ast.ClassDef)]
    networks, more = set(), {'Module'}
    while not more <= networks:  # what derives from a network is one too
        networks |= more
        more = {node.name for _, node in classes if networks & {ast.unparse(base).split('.')[-1] for base in node.bases}}
    count, wrong = 0, []
    for file, node in classes:
        for call in node.body:
            if node.name not in networks or not isinstance(call, ast.FunctionDef) or call.name != '__call__':
                continue
            count += 1
            arguments = [*call.args.posonlyargs, *call.args.args, *call.args.kwonlyargs][1:]
            bare = [argument.arg for argument in arguments if argument.annotation is None]
            if 'typechecked' not in map(ast.unparse, call.decorator_list):
                wrong.append(f'{file}: {node.name}.__call__ is not @typechecked')
            if bare:
                wrong.append(f'{file}: {node.name}.__call__ says nothing of {", ".join(bare)}')
            if call.returns is None:
                wrong.append(f'{file}: {node.name}.__call__ says nothing of its result')
    return count, wrong


def test_every_network_has_its_call_checked():
    count, wrong = unchecked({str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / 't3d').rglob('*.py'))})
    assert count > 60
    assert not wrong, '\n'.join(wrong)


def test_the_walk_sees_what_is_missing():
    parent = 'class A(nn.Module):\n @nn.compact\n @typechecked\n def __call__(self, x: int) -> int: pass\n'
    child = 'class B(a.A):\n def __call__(self, x, *, y: int): pass\nclass C:\n def __call__(self, x): pass\n'
    assert unchecked({'a': parent}) == (1, [])
    assert unchecked({'b': child, 'a': parent}) == (
        2,
        [
            'b: B.__call__ is not @typechecked',
            'b: B.__call__ says nothing of x',
            'b: B.__call__ says nothing of its result',
        ],
    )


def traced(latents, t, text, **more):
    return jax.eval_shape(lambda: TINY.init_with_output(jax.random.key(0), latents, t, text, **more)[0])


@pytest.mark.parametrize('kind', [np, jnp])
@pytest.mark.parametrize('t', [3, 2.5, np.zeros(()), jnp.zeros(2, jnp.int32)])
def test_a_network_takes_arrays_of_both_kinds_and_all_times(kind, t):
    given = kind.zeros((2, 6, 10, 4), kind.float32), t, kind.zeros((2, 5, 6), kind.float32)
    assert traced(*given, mask=kind.ones((2, 5), bool)).shape == (2, 6, 10, 4)


@pytest.mark.parametrize(
    'change',
    [
        pytest.param({'latents': np.zeros((2, 6, 4), np.float32)}, id='axes'),
        pytest.param({'latents': np.zeros((2, 6, 10, 4), np.int32)}, id='dtype'),
        pytest.param({'t': np.zeros(3)}, id='times'),
        pytest.param({'text': np.zeros((3, 5, 6), np.float32)}, id='batch'),
        pytest.param({'text': np.zeros((2, 5, 6)).tolist()}, id='list'),
        pytest.param({'mask': np.ones((2, 4), bool)}, id='tokens'),
        pytest.param({'embedding': np.zeros((1, 32), np.float32)}, id='embedding'),
    ],
)
def test_a_wrong_shape_is_a_type_error(change):
    given = {'latents': np.zeros((2, 6, 10, 4), np.float32), 't': np.zeros(2), 'text': np.zeros((2, 5, 6), np.float32)}
    with pytest.raises(TypeCheckError):
        traced(**given | change)


def test_a_wrong_result_is_a_type_error():
    @typechecked
    def halved(x: Float[Array, 'b c']) -> Float[Array, 'b c']:
        return x[:, ::2]

    with pytest.raises(TypeCheckError):
        halved(np.zeros((2, 4)))


def test_outside_tests_the_decorator_changes_nothing():
    code = """
from t3d.core.typing import typechecked
import sys
import t3d.nets.unet
def f(): pass
assert typechecked(f) is f
assert 'beartype' not in sys.modules
"""
    environment = {name: value for name, value in os.environ.items() if name != 'T3D_TYPECHECK'}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
