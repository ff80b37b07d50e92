"""`t3d`: the command line. Each command parses its words and makes one call; nothing heavy is imported before that."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from t3d import __version__
from t3d.commands import about, bench, data, evaluate, generate, plan, sample2d, train, view, weights
from t3d.core import parsing
from t3d.core import words as field


class Command(NamedTuple):
    """A word of the command line: `flags(parser)` adds its arguments, `run(args)` returns None or the exit status."""

    flags: Callable
    run: Callable
    text: str


COMMANDS = {
    'generate': Command(generate.flags, generate.run, 'prompts to textured meshes, turntables and reports'),
    'train': Command(train.flags, train.run, 'train a system; the same command again resumes'),
    'export': Command(generate.export_flags, generate.run, 'the meshes of a run, in any format'),
    'render': Command(generate.render_flags, generate.run, 'the turntables of a run'),
    'view': Command(view.flags, view.run, 'look at a prompt in the browser, live from a checkpoint'),
    'eval': Command(evaluate.flags, evaluate.run, 'scores of a run, with their controls'),
    'sample2d': Command(
        sample2d.flags, sample2d.run, 'text to image, with Stable Diffusion weights of your own or image_diffusion'
    ),
    'weights': Command(
        weights.flags, weights.run, 'a run as a folder to share; `t3d weights check DIR`: what real weights hold'
    ),
    'plan': Command(plan.flags, plan.run, 'does a config fit a pod: memory, collectives and least time of its step'),
    'bench': Command(bench.flags, bench.run, 'throughput of this machine: `t3d bench render`, `t3d bench train --config ...`'),
    'data': Command(data.flags, data.run, 'data sets: `t3d data build ...`, `t3d data single-view ...`'),
    'configs': Command(about.no_flags, about.configs, 'the configs there are'),
    'info': Command(about.info_flags, about.info, 'what a run or weights folder holds'),
    'doctor': Command(about.no_flags, about.doctor, 'what this machine has: the first thing to send with a report'),
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 for wrong input, 130 when interrupted."""
    args = parse(argv)
    from t3d.core import errors

    try:
        status = COMMANDS[args.command].run(args) or 0
        sys.stdout.flush()  # a closed pipe is met here, not at the interpreter's end
        return status
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a program that SIGPIPE ended
    except Exception as error:
        text = errors.line(error)
        if text is None:
            raise
    except KeyboardInterrupt:
        return 130
    sys.stderr.write(f'error: {text}\n')  # one write: other threads may speak too
    sys.stderr.flush()
    return 2


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The parsed words. Prompts of a command, and key=value of `t3d train`, may stand anywhere among the options."""
    parser = make_parser()
    first = (sys.argv[1:] if argv is None else argv)[:1]
    if first and not first[0].startswith('-') and first[0] not in COMMANDS:
        parser.error(_unknown_command(first[0]))
    args, rest = parser.parse_known_args(argv)
    loose = [word for word in rest if not word.startswith('-')]
    if args.command == 'train':
        loose = [word for word in loose if _is_override(word)]
        args.overrides += loose + [word for word in args.prompts or () if _is_override(word)]
        args.prompts = [word for word in args.prompts or () if not _is_override(word)]
    elif hasattr(args, 'prompt'):
        args.prompt = args.prompt + loose
    else:
        loose = []
    rest = [word for word in rest if word not in loose]
    if rest:
        command = parser.commands.choices[args.command]
        command.refuse(rest, train.meant(rest) if args.command == 'train' else '')
    return args


def _unknown_command(word: str) -> str:
    if ' ' in word:
        return f'unknown command {word!r}: to make it, `t3d generate "{word}"`.'
    import difflib

    near = difflib.get_close_matches(word, COMMANDS, 1) or [field.command(word)]
    hint = f' Did you mean {near[0]!r}?' if near[0] else ''
    return f'unknown command {word!r}.{hint} Commands: {", ".join(COMMANDS)}.'


def _is_override(word: str) -> bool:
    name, equals, _ = word.partition('=')
    return bool(equals) and name.replace('.', '_').isidentifier()


def make_parser() -> parsing.Parser:
    """The parser of all commands."""
    parser = parsing.Parser(prog='t3d', description='Text-to-3D in JAX.')
    parser.add_argument('--version', action='version', version=f't3d {__version__}')
    parser.commands = words = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, command in COMMANDS.items():
        command.flags(words.add_parser(name, help=command.text, description=command.text))
    return parser


if __name__ == '__main__':
    sys.exit(main())
