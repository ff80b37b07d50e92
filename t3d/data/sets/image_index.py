"""What `dataset.json` says of the files of an image set: labels, captions, attributes, by the names of the files."""

import math
import unicodedata

import numpy as np

from t3d.core.errors import UsageError
from t3d.data.sets.camera_labels import LABEL, check_labels


class Names:
    """The files of a set, found by their names as an index may spell them: with backslashes, `./`, accents in two parts.

    Args:
      names: of the files.
      where: the index, in messages.
    """

    def __init__(self, names: list[str], where: str):
        self.where, self._names = where, {plain(name): name for name in names}

    def table(self, items, one: str, many: str) -> dict:
        """{file: value} of pairs (name as written, value).

        Raises:
          UsageError: a file is named twice, or is not there.
        """
        table, absent = {}, []
        for number, (written, value) in enumerate(items):
            name = self._names.get(plain(written))
            if name is None:
                absent.append(written)
            elif name in table:
                raise UsageError(f'{self.where}, entry {number}: {name} has {one} already.')
            else:
                table[name] = value
        if absent:
            folded = {name.casefold(): name for name in self._names}
            near = folded.get(plain(absent[0]).casefold())
            hint = f'did you mean {near}?' if near else 'remove the entries.'
            raise UsageError(
                f'{self.where} has {many} of {len(absent)} files that are not there, first {absent[0][:200]}: {hint}'
            )
        return table


def plain(name: str) -> str:
    """A file name as it is compared: NFC, `/` between folders, nothing before the first."""
    return unicodedata.normalize('NFC', name.replace('\\', '/')).removeprefix('./')


def read_labels(entries, names: list[str], where: str) -> np.ndarray:
    """float32 [N, 25] in the order of `names` from [[file, numbers], ...]; every file once, every label a camera."""
    if entries is None:
        raise UsageError(
            f'{where} has no labels (null): each image needs 25 camera numbers. Prepare it as for EG3D, or set '
            "data.mode='pose-distribution' for photos without poses."
        )
    if not isinstance(entries, list):
        raise UsageError(f'{where}: labels is a {type(entries).__name__}: wanted [[file, {LABEL} numbers], ...].')
    for number, entry in enumerate(entries):
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise UsageError(f'{where}, entry {number}: wanted [file, 25 numbers], got {str(entry)[:60]}.')
    table = Names(names, where).table(entries, 'a label', 'labels')
    missing = [name for name in names if name not in table]
    if missing:
        raise UsageError(f'{where} has no label for {len(missing)} files, first {missing[0]}: add the entries.')
    labels = np.stack([_numbers(table[name], f'{where}, label of {name}') for name in names])
    check_labels(labels, names, where)
    return labels.astype(np.float32)


def _numbers(values, where: str) -> np.ndarray:
    if not isinstance(values, list) or len(values) != LABEL:
        count = len(values) if isinstance(values, list) else 'no'
        raise UsageError(f'{where}: {count} numbers, wanted {LABEL}: 16 of world_from_cam, then 9 of the intrinsics.')
    array = np.full(LABEL, np.nan)
    if set(map(type, values)) <= {int, float}:  # numpy would also take '3' and true
        try:
            array = np.array(values, np.float64)
        except OverflowError:
            pass
    if not (np.abs(array) < np.finfo(np.float32).max).all():
        raise UsageError(f'{where}: not {LABEL} finite numbers: {str(values)[:80]}.')
    return array


def read_captions(section, names: list[str], where: str) -> dict[str, tuple[str, ...]]:
    """{file: captions} from {file: [text, ...]} or null."""
    refusal = f'{where}: captions are not {{file: [text, ...]}}'
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise UsageError(f'{refusal}, but a {type(section).__name__}.')
    for name, texts in section.items():
        if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
            raise UsageError(f'{refusal}: {name[:200]} has {str(texts)[:60]!r}.')
    table = Names(names, where).table(section.items(), 'captions', 'captions')
    return {name: tuple(texts) for name, texts in table.items()}


def read_attributes(section, names: list[str], where: str) -> dict[str, dict]:
    """{file: attributes} from {file: {name: value}} or null; a value is a text, a number, true, false or null."""
    refusal = f'{where}: attributes are not {{file: {{name: text or number}}}}'
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise UsageError(f'{refusal}, but a {type(section).__name__}.')
    for name, values in section.items():
        good = isinstance(values, dict) and all(
            value is None or isinstance(value, str | int) or isinstance(value, float) and math.isfinite(value)
            for value in values.values()
        )
        if not good:
            raise UsageError(f'{refusal}: {name[:200]} has {str(values)[:60]!r}.')
    return Names(names, where).table(section.items(), 'attributes', 'attributes')
