"""Imports point down only, and the core loads without anything optional."""

import ast
import pathlib
import subprocess
import sys

from t3d.systems import SYSTEMS

ROOT = pathlib.Path(__file__).parent.parent
LIBRARIES = ('core', 'geom', 'nets', 'diffusion', 'parallel', 'fields', 'data', 'metrics', 'checkpoint', 'export')
# Each package may import itself and these.
MAY_IMPORT = {
    'core': set(),
    'geom': {'core'},
    'nets': {'core'},
    'diffusion': {'core'},
    'parallel': {'core'},
    'fields': {'core', 'geom', 'nets'},
    'data': {'core', 'geom'},
    'metrics': {'core', 'geom', 'nets', 'fields'},
    'checkpoint': {'core', 'geom', 'parallel', 'nets', 'diffusion'},
    'export': {'core', 'geom'},
    'systems': {'core', 'geom', 'nets', 'diffusion', 'fields'},
    'inference': {*LIBRARIES, 'systems'},
    'build': {*LIBRARIES, 'systems', 'inference'},
    'evaluate': {*LIBRARIES, 'systems', 'inference', 'build'},
    'train': {*LIBRARIES, 'systems', 'inference'},
    'plan': {*LIBRARIES, 'systems', 'inference', 'train'},
    'bench': {*LIBRARIES, 'systems', 'inference', 'train', 'plan'},
    'commands': {*LIBRARIES, 'systems', 'inference', 'build', 'evaluate', 'train', 'plan', 'bench', 'viewer'},
}
SAME_LEVEL = {'systems'}  # siblings that do not import each other, but for a system's own parts, `<system>_...`
CORE = ('core', 'geom', 'nets', 'diffusion', 'fields', 'systems', 'parallel', 'bench.render')
OPTIONAL = (
    'tensorflow',
    'tensorflow_datasets',
    'grain',
    'array_record',
    'torch',
    'transformers',
    'tokenizers',
    'diffusers',
    'trimesh',
    'skimage',
    'xatlas',
    'imageio',
    'PIL',
    'ml_collections',
    'orbax',
    'tensorboardX',
    'viser',
    'gradio',
    'embreex',
    'safetensors',
    'scipy.spatial',
)


def modules():
    return sorted(path for path in (ROOT / 't3d').rglob('*.py') if path.name != '__init__.py' or 'systems' in path.parts)


def imported(path):
    """Names of t3d modules that a file imports anywhere, and of others at module level."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f'{node.module}.{alias.name}' for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_point_down():
    wrong = []
    for path in modules():
        parts = path.relative_to(ROOT / 't3d').with_suffix('').parts
        if len(parts) == 1:  # cli, viewer: the top
            continue
        for name in imported(path):
            target = name.split('.')
            if target[0] != 't3d' or len(target) < 2 or name == 't3d.__version__':
                continue
            other = target[1]
            if other not in MAY_IMPORT[parts[0]] | {parts[0]}:
                wrong.append(f'{path.relative_to(ROOT)} imports {name}')
            own = len(target) > 2 and target[2].startswith(f'{parts[-1]}_') and target[2] not in SYSTEMS
            if parts[0] in SAME_LEVEL and other == parts[0] and parts[-1] != '__init__' and not own:
                wrong.append(f'{path.relative_to(ROOT)} imports its sibling {name}')
    assert not wrong, '\n'.join(wrong)


def test_no_module_imports_in_a_circle():
    """Imports inside functions count: what a circle hides is that two files are one."""
    paths = {'.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path for path in everything()}
    edges = {}
    for name, path in paths.items():
        targets = {target if target in paths else target.rpartition('.')[0] for target in imported(path)}
        edges[name] = {target for target in targets if target in paths and target not in (name, 't3d')}  # t3d: version, facade
    assert sum(map(len, edges.values())) > 400
    assert not circles(edges)
    assert circles({'a': {'b'}, 'b': {'c'}, 'c': {'a'}, 'd': {'a'}}) == ['a', 'b', 'c']


def everything():
    return sorted((ROOT / 't3d').rglob('*.py'))


def circles(edges) -> list[str]:
    """The nodes that reach themselves."""
    reached = {}
    for start in edges:
        seen, waiting = set(), list(edges[start])
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting += edges[node]
        reached[start] = seen
    return sorted(node for node in edges if node in reached[node])


def test_no_system_is_known_by_name_outside_its_own_files():
    """No import of one, and no string that is its name: what differs between systems is in the contract or in the config."""
    wrong = []
    for path in everything():
        if path.parent.name == 'systems':
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in (*SYSTEMS, *SYSTEMS.values()):
                wrong.append(f'{path.relative_to(ROOT)}:{node.lineno} compares with {node.value!r}')
        own = {f't3d.systems.{name}' for name in SYSTEMS}
        wrong += [f'{path.relative_to(ROOT)} imports {name}' for name in imported(path) if name in own]
    assert not wrong, '\n'.join(wrong)


def test_the_core_loads_with_everything_optional_blocked():
    names = []
    for path in modules():
        name = '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
        if any(name == f't3d.{part}' or name.startswith(f't3d.{part}.') for part in CORE):
            names.append(name)
    assert len(names) > 15
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if any(name == o or name.startswith(o + ".") for o in {OPTIONAL!r}):
            raise ModuleNotFoundError("blocked: " + name)
sys.meta_path.insert(0, Block())
import importlib
for name in {names!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_and_asking_for_help_load_nothing_heavy():
    code = """
import sys
import t3d, t3d.cli
try:
    t3d.cli.main(["--help"])
except SystemExit:
    pass
heavy = [m for m in ("jax", "flax", "torch", "transformers", "tensorflow", "numpy", "trimesh", "orbax") if m in sys.modules]
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_file_is_too_long():
    long = {}
    for folder, limit in {'t3d': 350, 'configs': 350, 'launch': 350, 'tests': 375}.items():
        for path in (ROOT / folder).rglob('*.py'):
            lines = len(path.read_text().splitlines())
            if lines > limit:
                long[str(path.relative_to(ROOT))] = lines
    assert not long


def test_every_system_says_where_it_differs_from_its_paper():
    """The docstring ends in a list under the heading, its paragraphs before it."""
    for name in SYSTEMS.values():
        last = ast.get_docstring(ast.parse((ROOT / f'{name.replace(".", "/")}.py').read_text())).split('\n\n')[-1]
        assert last.startswith('Differences from the paper') and '\n- ' in last, name


def test_tests_that_are_marked_slow_by_name_exist():
    from slow_tests import SLOW

    for file, names in SLOW.items():
        source = (ROOT / 'tests' / file).read_text()
        for name in names:
            assert f'def {name.partition("[")[0]}(' in source, (file, name)
