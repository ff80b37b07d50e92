"""What steps cost, from a plan and the price of a chip-hour that the user pays: bounds by arithmetic, no promise.

    chip-hours of n steps = devices x seconds of a step x n / 3600, dollars = chip-hours x price

| seconds of a step | |
|---|---|
| at least | the plan's bound: compute, memory and links all at full speed and at once; of several train steps the quickest |
| one after the other | the same at full speed, nothing overlaps; of several train steps the slowest |
| at an MFU of m, the user's guess | model FLOPs of the dearest train step / (devices x bf16 peak x m) |

The first is the least by the plan's count: memory without caches, conditionals that name no cadence by their dearest branch.
None knows hosts, data, latency, checkpoints, restarts and idle chips, which are paid for as well.
No price is known here: it is the user's.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from t3d.core import config as configs
from t3d.core import strict_json
from t3d.core.errors import UsageError
from t3d.core.rules import Real, held
from t3d.plan import chips, meshes

PER = 1000  # steps of the first figure
HOUR = 3600.0  # seconds
WANTED = 'give what `t3d plan --json FILE` wrote, or the .jsonl file beside a --table'
PRICE = Real(0.0, 1e6, 'dollars for an hour of one chip')
COLUMNS = ('config', 'topology', 'mesh', 'batch', 'step, ms', 'chip-hours of 1,000 steps', 'dollars of 1,000 steps')
COLUMNS += ('steps', 'dollars of all')


class Times(NamedTuple):
    """Seconds of a step; None: not known.

    Attributes:
      least, most: of the plan's bound, all at once and one after the other. guessed: at the user's MFU.
    """

    least: float | None
    most: float | None
    guessed: float | None


def times(plan: dict, mfu: float | None = None) -> Times:
    """The times of a plan's step (t3d.plan.planner.make), none of one that does not fit; `mfu`: the guess, in (0, 1]."""
    if plan.get('fits') is False:
        return Times(None, None, None)
    made = plan['programs'].values()
    lines = [one.get('roofline') for one in made]
    known = bool(lines) and all(lines)
    least = min(line['least_seconds'] for line in lines) if known else None
    most = max(line['most_seconds'] for line in lines) if known else None
    chip = chips.topology(plan['topology']).chip
    work = max((one['model_flops'] for one in made), default=0)
    return Times(least, most, work / (plan['devices'] * chip.peak * mfu) if mfu and chip else None)


def chip_hours(plan: dict, seconds: float, steps: float) -> float:
    """Hours of one chip that `steps` steps of `seconds` each take on all devices of a plan."""
    return plan['devices'] * seconds * steps / HOUR


def prices(words: Sequence[str]) -> dict[str, float]:
    """{chip: dollars of an hour} of words `v5e=1.5`; of a number alone {'': it}, of every chip.

    Raises:
      UsageError: no number, a chip that there is not, a chip twice.
    """
    found = {}
    for word in words:
        chip, _, number = word.rpartition('=')
        if chip and chip not in chips.CHIPS:
            raise UsageError(configs.unknown(chip, tuple(chips.CHIPS), 'chip (--price CHIP=DOLLARS)'))
        try:
            value = float(number)
        except ValueError:
            raise UsageError(f'--price {word}: wanted dollars for an hour of one chip, 1.5 or v5e=1.5.') from None
        if chip in found:
            raise UsageError(f'--price {word}: {chip or "every chip"} has a price already: give one of each.')
        found[chip] = held('--price', value, PRICE)
    return found


def price_of(plan: dict, known: Mapping[str, float]) -> float | None:
    """The price of a plan's chip; None: not given."""
    return known.get(plan['topology'].partition(':')[0], known.get(''))


def text(plan: dict, price: float, steps: int | None, mfu: float | None = None) -> list[str]:
    """Lines on what a plan's steps cost; `steps` of the whole run, None: not known."""
    took = times(plan, mfu)
    lines = [f'cost, at {price:g} dollars for a chip-hour (your price) on {plan["devices"]} chips:']
    rows = [
        ('at least, all at full speed and at once', took.least),
        ('at full speed, nothing overlaps', took.most),
        (f'at an MFU of {mfu:.0%} (your guess)' if mfu else '', took.guessed),
    ]
    for what, seconds in rows:
        if seconds is not None:
            lines += [f'  {what}: {1e3 * seconds:.2f} ms a step, {_money(plan, price, seconds, steps)}']
    if took.least is None:
        why = 'it does not fit' if plan.get('fits') is False else f'times are not known without libtpu: {chips.SETUP}'
        lines += [f'  no bound: {why}']
    elif took.guessed is not None and took.guessed < took.least:
        lines += [f'  your guess is beyond the bound: the MFU is at most {mfu * took.guessed / took.least:.0%}']
    return [*lines, '  bounds, no forecast: hosts, data, latency, checkpoints, restarts and idle chips come on top']


def _money(plan: dict, price: float, seconds: float, steps: int | None) -> str:
    some = chip_hours(plan, seconds, PER)
    said = f'{_number(some)} chip-hours, {_number(price * some)} dollars for {PER:,} steps'
    if steps:
        whole = chip_hours(plan, seconds, steps)
        said += f'; {_number(whole)}, {_number(price * whole)} dollars for all {steps:,}'
    return said


def table(plans: Sequence[dict], known: Mapping[str, float], mfu: float | None = None) -> str:
    """A Markdown table of the costs of plans. Each figure is 'at least / one after the other', and '/ at the guess'."""
    lines = ['| ' + ' | '.join(COLUMNS) + ' |', '|---' * len(COLUMNS) + '|']
    return '\n'.join([*lines, *('| ' + ' | '.join(_row(plan, price_of(plan, known), mfu)) + ' |' for plan in plans)])


def _row(plan: dict, price: float | None, mfu: float | None) -> list[str]:
    took, steps = times(plan, mfu)[: 3 if mfu else 2], steps_of(plan)
    some, whole = (
        [None if seconds is None or not count else chip_hours(plan, seconds, count) for seconds in took]
        for count in (PER, steps)
    )
    dollars = lambda hours: 'no price' if price is None else _each(hours, price)
    changed = [word for word in plan.get('overrides', ()) if not word.startswith('batch=')]  # which has a column
    names = [f'`{" ".join([plan["config"], *changed])}`', plan['topology'], meshes.show(plan['mesh']), str(plan['batch'])]
    figures = [_each(took, 1e3), _each(some), dollars(some), f'{steps:,}' if steps else '-', dollars(whole)]
    return names + figures


def _each(values, factor: float = 1.0) -> str:
    return ' / '.join('-' if value is None else _number(factor * value) for value in values)


def steps_of(plan: dict) -> int | None:
    """The steps of a plan's config; None where it is not to be had here."""
    try:
        return configs.load(plan['config'], plan.get('overrides', ())).get('steps')
    except UsageError:
        return None


def read(path: str) -> list[dict]:
    """The plans of a file that `t3d plan --json` or `--table` wrote.

    Raises:
      UsageError: it is not there, or holds something else.
    """
    file = pathlib.Path(path)
    try:
        data = file.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f'--costs {path} cannot be read ({type(error).__name__}): {WANTED}.') from error
    try:
        json.loads(data)
        parts = [data]
    except ValueError:
        parts = [line for line in data.splitlines() if line.strip()]
    plans = [strict_json.loads(part.encode(), path) for part in parts]
    try:
        table(plans, {'': 1.0}, 0.5)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UsageError(f'--costs {path} holds something that is no plan: {WANTED}.') from error
    if not plans:
        raise UsageError(f'--costs {path} holds no plan: {WANTED}.')
    return plans


def _number(value: float) -> str:
    """Three figures, with commas: '0.0123', '12.3', '12,345'."""
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'
