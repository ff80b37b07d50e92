"""The loop of a peer that is timed: one JSON request a line, answered with milliseconds or MiB (t3d.bench.measure.Peer)."""

import json
import os
import sys
import time

import torch

from t3d.bench import memory


def serve(workload):
    """Answers `{'shape': sizes}`, which makes the runs, `{'run': name, 'threads': n}` and `{'memory': name}`.

    Args:
      workload: `sizes -> {name: function}`.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True  # as JAX rounds by default
    runs = {}
    for line in sys.stdin:
        request = json.loads(line)
        if 'shape' in request:
            runs = workload(request['shape'])
            where = f'{torch.get_default_device()}, best of 1 and {torch.get_num_threads()} threads'
            answer = {'is': f'torch {torch.__version__}, {where}'}
        elif 'memory' in request:
            answer = {'mib': memory.peak_growth(runs[request['memory']])}
        else:
            torch.set_num_threads(request['threads'])
            start = time.perf_counter()
            runs[request['run']]()
            if torch.get_default_device().type == 'cuda':
                torch.cuda.synchronize()
            answer = {'ms': 1e3 * (time.perf_counter() - start)}
        print(json.dumps(answer), flush=True)
