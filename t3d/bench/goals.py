"""`t3d bench goals`: the workloads that have goals on a processor beside their peers, and the curves of `t3d bench scale`.

    t3d bench goals                               # into docs/figures/goals.jsonl, within an hour
    t3d bench goals --json rehearsal.jsonl --small    # the same words at small sizes: is nothing misspelt?
    python -m launch.bench_page                   # the page of what the file has

Each benchmark is a process of its own (t3d/bench/series.py); the same command goes on with those that have no figures yet. The
goals themselves are in t3d/bench/verdicts.py. All but the last line of the plan took 20 minutes on two quiet cores.
"""

import shlex

from t3d.bench import series
from t3d.core import parsing

SIZE = {'tiny,64': 'tiny', 'sd21': 'tiny', 'released-planes': 'tiny'}  # in a rehearsal
PLAN = (
    'roof --repeats 15',
    'render --sizes tiny,64',
    'unet --sizes sd21',
    'mv --sizes dense',
    'gan',
    'gan --size 128',
    'decoder --sizes released-planes',
    'start --repeats 3',
    'scale --axes rays',
    'scale --axes samples',
    'scale --axes views',
    'scale --axes batch',
    'scale --axes devices',
)


def flags() -> parsing.Parser:
    """The flags of `t3d bench goals`."""
    return series.flags('goals', __doc__, seconds=3600, small='small sizes, one repeat', file='docs/figures/goals.jsonl')


def plan(small: bool) -> list[list[str]]:
    """The words of each benchmark."""
    wanted = [shlex.split(line) for line in PLAN]
    if not small:
        return wanted
    less = {'scale': ['--points', '2']}
    return [[*(SIZE.get(word, word) for word in words), '--repeats', '1', *less.get(words[0], [])] for words in wanted]


def main(argv=None) -> int:
    """Runs what time allows; returns 1 if a benchmark failed or was not reached, else 0."""
    return series.main('goals', flags(), plan, argv)
