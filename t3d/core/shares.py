"""Work that many processes of many hosts divide: `--share 0/4` to `--share 3/4`, each on its own, into one folder."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from t3d.core.errors import UsageError

Task = TypeVar('Task')


class Share(NamedTuple):
    """Process `number` of `count`, from 0."""

    number: int
    count: int

    def of(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """The tasks number, number + count, ...: those of all shares are all tasks, none twice."""
        return tasks[self.number :: self.count]

    def __str__(self) -> str:
        return f'{self.number}/{self.count}'


def parse(text: str) -> Share:
    """The share that '0/4' names.

    Raises:
      UsageError: no two numbers, or a number that is not below the count.
    """
    number, slash, count = text.partition('/')
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count) <= 2**16):
        raise UsageError(f'--share {text}: wanted I/N, process I of N from 0, for example 0/4 ... 3/4.')
    return Share(int(number), int(count))
