"""What a value may be: kinds of rules, each of which can accept a value, say what is wanted, and name the nearest allowed one.

`t3d.core.limits` has the table of rules for the keys of configs; the flags of commands are held to the same kinds.
"""

import math
import numbers
import os
import sys
from typing import NamedTuple

from t3d.core.errors import UsageError


class Refused(ValueError):
    """A rule does not allow a value."""


class Whole(NamedTuple):
    """An integer from `low` to `high`, or one of `also`; a float or a numpy scalar that is whole is read as an int."""

    low: int
    high: int
    what: str = ''
    also: tuple[int, ...] = ()

    def accept(self, value) -> int:
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not _whole(value):
            raise Refused
        if not self.low <= value <= self.high and value not in self.also:
            raise Refused
        return int(value)

    @property
    def wanted(self) -> str:
        also = ''.join(f' or {value}' for value in self.also)
        return f'a whole number from {self.low} to {self.high}{also}'

    def nearest(self, value):
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != value:
            return None
        return min(max(value, self.low), self.high) if abs(value) == math.inf else round(min(max(value, self.low), self.high))


class Real(NamedTuple):
    """A finite float from `low` to `high`; `above` and `below` leave out the ends."""

    low: float
    high: float
    what: str = ''
    above: bool = False
    below: bool = False

    def accept(self, value) -> float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not abs(value) <= sys.float_info.max:
            raise Refused
        value = float(value)
        if not self.low <= value <= self.high or (self.above and value == self.low) or (self.below and value == self.high):
            raise Refused
        return value

    @property
    def wanted(self) -> str:
        low = f'above {self.low:g}' if self.above else f'from {self.low:g}'
        return f'a number {low} {"and below" if self.below else "to"} {self.high:g}'

    def nearest(self, value):
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != value:
            return None
        if (self.above and value <= self.low) or (self.below and value >= self.high):  # an open end has no nearest number
            return None
        return float(min(max(value, self.low), self.high))


class Flag(NamedTuple):
    """True or False."""

    what: str = ''
    wanted = 'true or false'

    def accept(self, value) -> bool:
        if type(value).__name__ not in ('bool', 'bool_'):
            raise Refused
        return bool(value)

    def nearest(self, value):
        return {0: False, 1: True}.get(value) if isinstance(value, numbers.Real) else None


class Text(NamedTuple):
    """A string, or a path; what it names is looked for where it is used."""

    what: str = ''
    wanted = 'a text'

    def accept(self, value) -> str:
        if not isinstance(value, str | os.PathLike):
            raise Refused
        return os.fspath(value)

    def nearest(self, value):
        return None


class Choice(NamedTuple):
    """One of a few words; `meant` has other names that people use for them."""

    choices: tuple[str, ...]
    what: str = ''
    meant: tuple[tuple[str, str], ...] = ()

    def accept(self, value) -> str:
        if not isinstance(value, str) or value not in self.choices:
            raise Refused
        return value

    @property
    def wanted(self) -> str:
        return 'one of ' + ', '.join(map(repr, self.choices))

    def nearest(self, value):
        import difflib  # imported here, so that `t3d --help` starts without it

        word = str(value).lower()
        near = difflib.get_close_matches(word, self.choices, 1, 0.5)
        return dict(self.meant).get(word) or (near[0] if near else None)


class Several(NamedTuple):
    """A tuple of `least` to `most` values of one rule; `rising`: each above the one before."""

    each: object
    least: int = 0
    most: int = 4096
    what: str = ''
    rising: bool = False

    def accept(self, value) -> tuple:
        if not isinstance(value, tuple | list) or not self.least <= len(value) <= self.most:
            raise Refused
        values = tuple(self.each.accept(item) for item in value)
        if self.rising and any(low >= high for low, high in zip(values, values[1:])):
            raise Refused
        return values

    @property
    def wanted(self) -> str:
        count = f'{self.least}' if self.least == self.most else f'{self.least} to {self.most}'
        return f'a list of {count} values, {"rising, " if self.rising else ""}each {self.each.wanted}'

    def nearest(self, value):
        if not isinstance(value, tuple | list):
            try:
                return (self.each.accept(value),) if self.least <= 1 else None
            except Refused:
                return None
        items = []
        for item in value:
            try:
                items.append(self.each.accept(item))
            except Refused:
                items.append(self.each.nearest(item))
        try:
            return self.accept(items)
        except Refused:
            return None


class Either(NamedTuple):
    """What one of several rules allows."""

    rules: tuple
    what: str = ''

    def accept(self, value):
        for rule in self.rules:
            try:
                return rule.accept(value)
            except Refused:
                continue
        raise Refused

    @property
    def wanted(self) -> str:
        return ', or '.join(rule.wanted for rule in self.rules)

    def nearest(self, value):
        return self.rules[0].nearest(value)


class Plain(NamedTuple):
    """Anything that JSON can hold, numbers finite: the keys of a system that is not t3d's own."""

    what: str = ''
    wanted = 'plain data: a finite number, a text, true, false, or a list of these'

    def accept(self, value):
        if isinstance(value, tuple | list):
            return tuple(self.accept(item) for item in value)
        if value is None or isinstance(value, str | bool):
            return value
        if isinstance(value, numbers.Integral):
            return int(value)
        return Real(-math.inf, math.inf).accept(value)

    def nearest(self, value):
        return None


def held(name: str, value, rule, hint: str = ''):
    """The value as the rule reads it.

    Args:
      name: of a key (`batch`) or flag (`--size`), for the message; hint: its last sentence where there is no nearest value.
    Raises:
      UsageError: with the value, what is wanted, and the nearest.
    """
    try:
        return rule.accept(value)
    except Refused:
        pass
    equals = ' ' if name.startswith('-') else '='
    what = f' ({rule.what})' if rule.what else ''
    near = rule.nearest(value)
    last = f' Nearest: {name}{equals}{near}.' if near is not None else f' {hint}' if hint else ''
    raise UsageError(f'{name}{equals}{value!r}: wanted {rule.wanted}{what}.{last}')


def argument(rule: Whole):
    """The `type` of an argparse argument that is held to a rule of whole numbers."""

    def read(text: str) -> int:
        try:
            return rule.accept(int(text))
        except ValueError:
            import argparse

            raise argparse.ArgumentTypeError(f'{text}: wanted {rule.wanted}.') from None

    return read


def divides(name: str, part: int, of: str, whole: int) -> None:
    """Raises UsageError where the value `part` of the key `name` does not divide the value `whole` of `of`."""
    if whole % part:
        near = min((n for n in range(1, whole + 1) if whole % n == 0), key=lambda n: abs(n - part))
        raise UsageError(f'{name}={part} does not divide {of}={whole}. Nearest: {name}={near}.')


def _whole(value) -> bool:
    return abs(value) <= sys.float_info.max and value == int(value)
