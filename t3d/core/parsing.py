"""What all commands and launchers share: a parser whose errors are one sentence with a next step, and checks of values."""

import argparse
import contextlib
import pathlib
import re
from collections.abc import Mapping

PICTURES = ('.png', '.jpg', '.jpeg', '.webp')


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that refuses with one line, status 2; an empty value is none: `--run "$RUN"` with no RUN."""

    def parse_known_args(self, args=None, namespace=None):
        space, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            value = getattr(space, action.dest, None)
            empty = (
                isinstance(value, str) and not value.strip() or value == [] and action.nargs is None
            )  # the second of --out=--
            if empty and value != action.default:
                name = '/'.join(action.option_strings) or action.dest.upper()
                self.error(f'{name} is empty: give a value, or leave it out.')
        return space, rest

    def error(self, message: str):
        message = re.sub(r"^argument (\S+): invalid (int|float) value: '(.*)'$", _number, message, flags=re.DOTALL)
        message = re.sub(r'^argument (\S+): (?=\1 )', '', message)  # a check of ours, which names its flag
        if message.startswith('unrecognized arguments: '):
            self.refuse(message.removeprefix('unrecognized arguments: ').split())
        self.exit(2, f'error: {message}{"" if message.endswith(".") else "."} {self.help_line()}\n')

    def help_line(self) -> str:
        return f'`{self.prog} --help` lists what there is.'

    def refuse(self, words: list[str], hint: str = ''):
        """Ends with the nearest option for the first of `words`, none of which this parser knows."""
        if not hint:
            import difflib

            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(words[0].partition('=')[0], known, 1, 0.6)
            hint = f' Did you mean {near[0]}?' if near else ''
        self.exit(2, f'error: unrecognized arguments: {" ".join(words)}.{hint} {self.help_line()}\n')


@contextlib.contextmanager
def refusing(parser: argparse.ArgumentParser):
    """Ends a launcher with status 2 and one line for wrong input that the body meets, with 130 at Ctrl-C.

    Faults of the program pass.
    """
    from t3d.core import errors

    try:
        yield
    except Exception as error:
        text = errors.line(error)
        if text is None:
            raise
        parser.exit(2, f'error: {text}\n')
    except KeyboardInterrupt:
        parser.exit(130)


def _number(match) -> str:
    name, kind, value = match.groups()
    return f'{name} {value}: wanted a {"whole number" if kind == "int" else "number"}.'


def held(args: argparse.Namespace, ranges: Mapping[str, object]) -> None:
    """Sets each number of a command as its rule (t3d.core.rules) reads it; what was not given stays None.

    Raises:
      UsageError: a number is out of its range, with the flag and the nearest.
    """
    from t3d.core import rules

    for name, rule in ranges.items():
        value = getattr(args, name, None)
        if value is not None:
            setattr(args, name, rules.held(f'--{name.replace("_", "-")}', value, rule))


def writable(path: str, flag: str = '--out', *, file: bool = False) -> None:
    """Raises UsageError for a local folder (or file) to write that cannot be made; makes nothing."""
    import tempfile

    from t3d.core.errors import UsageError

    if not path.strip():
        raise UsageError(f'{flag} is empty: give the {"file" if file else "folder"} to write.')
    if '://' in path:
        kind = 'file' if file else 'folder'
        raise UsageError(
            f'{flag} {path}: a {kind} on this machine is written: give one, and copy it to its address after that.'
        )
    try:
        path.encode()
    except UnicodeEncodeError as error:  # bytes of another encoding on the command line
        raise UsageError(f'{flag} {ascii(path)[:200]} is not UTF-8: choose another name.') from error
    place = pathlib.Path(path)
    try:
        if file and place.is_dir():
            raise UsageError(f'{flag} {path} is a folder: give the name of a file, for example {place / "result"}.')
        parent = place.parent if file or not place.exists() else place
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise UsageError(f'{flag} {path}: {parent} is a file, not a folder: choose another name.')
        with tempfile.TemporaryFile(dir=parent):  # permissions, read-only disks and full ones alike
            pass
        longest = max((len(part.encode()) for part in place.parts), default=0)  # '.' has no parts
        if longest > 255:
            raise UsageError(f'{flag} {path}: a name of {longest} bytes, wanted at most 255: choose a shorter one.')
    except OSError as error:
        raise UsageError(f'{flag} {path:.200} cannot be written: {error.strerror}. Choose another place.') from error


def run_folder(path: str, flag: str = '--workdir') -> None:
    """Raises UsageError for a folder of a run or of weights that cannot be made, here or in a bucket; makes nothing."""
    if '://' in path:
        from t3d.core import files

        files.path(path)
    else:
        writable(path, flag)


def json_file(path: str) -> str:
    """The `type` of an argument --json: a file that can be written, which is known before the work."""
    return _file(path, '--json')


def table_file(path: str) -> str:
    """The same of --table."""
    return _file(path, '--table')


def _file(path: str, flag: str) -> str:
    from t3d.core.errors import UsageError

    try:
        writable(path, flag, file=True)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def picture(path: str, flag: str = '--out') -> None:
    """Raises UsageError for a picture to write whose place or format cannot be."""
    from t3d.core.errors import UsageError

    writable(path, flag, file=True)
    ending = pathlib.Path(path).suffix.lower()
    if ending not in PICTURES:
        near = pathlib.Path(path).with_suffix('.png')
        raise UsageError(f'{flag} {path}: wanted a name that ends in {", ".join(PICTURES)}. Nearest: {flag} {near}.')
