"""What README.md, launch/README.md and docs/ say can be typed, can be typed: commands, targets, modules, files, variants."""

import argparse
import functools
import importlib
import inspect
import os
import pathlib
import re
import shlex
import tomllib

import pytest

from t3d import cli
from t3d.bench import table
from t3d.core import config as configs
from t3d.evaluate import scores
from t3d.inference import loading
from t3d.plan import dry_run

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ('README.md', 'launch/README.md')
DOCUMENTS = tuple(f'docs/{path.name}' for path in sorted((ROOT / 'docs').glob('*.md')))
PROGRAMS = ('t3d', 'make', 'python', 'python3', 'pip', 'apt-get', 'sbatch', 'kubectl', 'launch/tpu_pod.sh')


def code(page: str) -> tuple[list[list[str]], list[list[str]]]:
    """The lines of fenced blocks, and the code spans, as words without settings and `taskset -c N`."""
    text = (ROOT / page).read_text()
    fenced = re.findall(r'^```\w*\n(.*?)^```', text, re.M | re.S)
    lines = [line for block in fenced for line in block.replace('\\\n', ' ').splitlines() if line.strip()]
    spans = re.findall(r'`([^`\n]+)`', re.sub(r'^```.*?^```', '', text, flags=re.M | re.S))
    return list(map(_words, lines)), list(map(_words, spans))


def commands(page: str) -> list[list[str]]:
    """The command lines of fenced blocks, all of which must be such, and of code spans that start with a program."""
    lines, spans = code(page)
    unknown = [words for words in lines if words and words[0] not in PROGRAMS]
    assert not unknown, f'{page}: no check for {unknown}'
    return [words for words in [*lines, *spans] if len(words) > 1 and words[0] in PROGRAMS]


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a code span with an apostrophe
        return []
    while words and re.match(r'[A-Z][A-Z0-9_]*=', words[0]):
        words = words[1:]
    words = words[3:] if words[:2] == ['taskset', '-c'] else words
    return [re.sub(r'^\.venv(-plan)?/bin/', '', words[0]), *words[1:]] if words else []


COMMANDS = [(page, words) for page in PAGES for words in commands(page)]


def of(program: str):
    chosen = [words for _, words in COMMANDS if words[0] == program]
    return pytest.mark.parametrize('words', chosen, ids=[' '.join(words) for words in chosen])


@functools.cache
def shipped() -> loading.Loaded:
    return loading.load('instant3d-scenes')


@pytest.fixture(autouse=True)
def reader(monkeypatch, tmp_path):
    """A reader's folder, where the runs and weights the page speaks of are shipped ones."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'prompts.txt').write_text('a red cube\n')
    monkeypatch.delenv('T3D_WEIGHTS', raising=False)
    monkeypatch.setenv('T3D_DATA', str(tmp_path / 'data'))
    monkeypatch.setattr(dry_run, 'compiled', lambda *args: ['train step compiled'])
    loaded, load = shipped(), loading.load

    def of_a_reader(folder=None, system=None, given=None):
        return load(folder, system, given=given) if system or folder in loading.shipped() else loaded

    monkeypatch.setattr(loading, 'load', of_a_reader)


def test_the_pages_have_commands():
    assert len(COMMANDS) > 20 and {page for page, _ in COMMANDS} == set(PAGES)
    spoken = {words[1] for _, words in COMMANDS if words[0] == 't3d'}
    assert {'generate', 'train', 'eval', 'info', 'weights', 'data', 'bench', 'doctor'} <= spoken


@of('t3d')
def test_commands_parse_and_run_dry(words, capsys, tmp_path):
    args = cli.parse(words[1:])
    for word in words:
        if word.startswith('configs/'):
            configs.load(word, getattr(args, 'overrides', ()))
    if words[1] == 'generate' or words[1] == 'train' and small(words):
        assert cli.main([*words[1:], *([] if args.dry_run else ['--dry-run'])]) == 0, capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ['prompts.txt']
        assert capsys.readouterr().out
    if words[1] in ('configs', 'info'):
        assert cli.main(words[1:]) == 0
    if words[1] == 'bench':
        check_bench(words[2], words[3:])


def check_bench(name: str, rest: list[str]) -> None:
    """The benchmark exists and takes these flags; other words are changes of its config."""
    module = importlib.import_module(table.BENCHMARKS[name])
    unknown = module.flags().parse_known_args(rest)[1]
    assert not [word for word in unknown if word.startswith('-')], f't3d bench {name} has no {unknown}'


def test_a_misspelt_flag_of_a_benchmark_is_found():
    for name in table.BENCHMARKS:
        check_bench(name, ['--repeats', '3'])
        with pytest.raises(AssertionError, match='--repaets'):
            check_bench(name, ['--repaets', '3'])


def small(words) -> bool:
    """True for configs whose shapes are known in a second or two."""
    return not any(word.endswith((':pod', ':base')) for word in words)


@pytest.mark.slow
@of('t3d')
def test_large_configs_run_dry_too(words, capsys):
    if words[1] == 'train' and not small(words):
        assert cli.main([*words[1:], *([] if '--dry-run' in words else ['--dry-run'])]) == 0, capsys.readouterr().err
        assert 'parameters' in capsys.readouterr().out


DOCS = [  # pages with drawings in their blocks too
    (page, words) for page in DOCUMENTS for words in sum(code(page), []) if len(words) > 2 and words[0] in ('t3d', 'python')
]


@pytest.mark.parametrize('words', [words for _, words in DOCS if words[0] == 't3d'], ids=' '.join)
def test_commands_of_the_docs_parse(words):
    args = cli.parse(['64' if word == 'N' else word for word in words[1:]])
    for word in words:
        if word.startswith('configs/') and '.py' in word:
            configs.load(word, [word for word in getattr(args, 'overrides', ()) if '=' in word])
    if words[1] == 'bench':
        check_bench(words[2], words[3:])


@pytest.mark.parametrize('words', [words for _, words in DOCS if words[0] == 'python'], ids=' '.join)
def test_modules_of_the_docs_take_the_flags_given(words):
    test_modules_take_the_flags_given(words)


def test_the_docs_have_commands():
    assert {page for page, _ in DOCS} >= {'docs/benchmarks.md', 'docs/ganfusion.md', 'docs/data.md'} and len(DOCS) > 20


def test_metrics_named_anywhere_exist():
    text = ' '.join((ROOT / page).read_text() for page in (*PAGES, *DOCUMENTS))
    named = {name for words in re.findall(r'--metrics[ =]([\w,]+)', text) for name in words.split(',')} - {'A', 'B'}
    assert len(named) > 4 and named <= set(scores.NAMES)


@of('make')
def test_targets_exist(words):
    targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.M))
    assert {word for word in words[1:] if '=' not in word} <= targets


@of('python')
def test_modules_take_the_flags_given(words):
    assert words[1] == '-m', words
    module = importlib.import_module(words[2])
    if words[2] == 'launch.bench':
        check_bench(words[3], words[4:])
    elif words[3:] and 'argv' in inspect.signature(module.main).parameters:  # else named alone, or of no flags
        assert_parsed(module, words[3:])
    for word in words:
        if word.startswith('configs/'):
            configs.load(word)


def assert_parsed(module, words: list[str]) -> None:
    """A module's own parser takes these words; nothing behind the parser runs."""
    parse, rests = argparse.ArgumentParser.parse_known_args, []

    def only(*args):
        rests.append(parse(*args)[1])
        raise SystemExit(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'parse_known_args', only)
        with pytest.raises(SystemExit):
            module.main(words)
    assert rests == [[]], f'{module.__name__} does not take {shlex.join(words)}: {rests}'


@pytest.mark.parametrize('name', ['sds_table', 'fronts_table', 'mesh_figures', 'leg_figures'])
def test_a_misspelt_flag_of_a_module_is_found(name):
    module = importlib.import_module(f'launch.{name}')
    with pytest.raises(AssertionError, match='--sedes'):
        assert_parsed(module, ['--sedes', '3'])


@of('pip')
def test_extras_exist(words):
    extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
    asked = {extra for word in words for extra in re.findall(r'\[(\w+)\]', word)}
    assert asked <= set(extras)


def test_every_command_in_the_code_spans_of_flags_exists():
    """`--coordinator HOST:PORT ...` and other flags that a page names alone belong to a program of ours."""
    text = ' '.join(path.read_text() for folder in ('launch', 't3d') for path in (ROOT / folder).rglob('*.py'))
    for page in PAGES:
        for span in re.findall(r'`(--[^`\n]+)`', (ROOT / page).read_text()):
            for flag in re.findall(r'--[a-z][a-z-]*', span):
                assert f"'{flag}" in text, f'{page}: no program takes {flag}'


@pytest.mark.parametrize('page', (*PAGES, *DOCUMENTS))
def test_links_and_files_exist(page):
    text = (ROOT / page).read_text()
    links = [link.partition('#')[0] for link in re.findall(r'\]\(([^)\s]+)\)', text) if '://' not in link]
    missing = [link for link in links if link and not (ROOT / page).parent.joinpath(link).exists()]
    named = {word for _, words in COMMANDS for word in words if re.fullmatch(r'(launch|configs|docs)/[\w./-]+(:\w+)?', word)}
    missing += [word for word in named if not (ROOT / word.partition(':')[0]).exists()]
    assert not missing
    for script in (word for word in named if word.endswith('.sh')):
        first = (ROOT / script).read_text().splitlines()[0]
        assert first.startswith('#!') and os.access(ROOT / script, os.X_OK), script


def anchors(page: pathlib.Path) -> set[str]:
    """As GitHub names a page's headings: lower case, words with hyphens between, no other signs."""
    headings = re.findall(r'^#+ (.+)$', page.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', heading.strip().lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', (*PAGES, *DOCUMENTS))
def test_links_into_pages_find_their_heading(page):
    here, lost = ROOT / page, []
    for path, name in re.findall(r'\]\(([\w./-]*)#([^)\s]+)\)', here.read_text()):
        target = here.parent / path if path else here
        if target.suffix == '.md' and name not in anchors(target):
            lost.append(f'{path}#{name}')
    assert not lost


@pytest.mark.parametrize('page', (*PAGES, *DOCUMENTS))
def test_variants_named_anywhere_exist(page):
    for name in set(re.findall(r'configs/(?!common)\w+\.py(?::\w+)?', (ROOT / page).read_text())):
        assert configs.load(name).system
