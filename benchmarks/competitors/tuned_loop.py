"""The tuned loop, written by hand for these workloads and for nothing else."""

from functools import partial

import loops

__all__ = ["run", "run_compiled"]

run = loops.train
run_compiled = partial(loops.train, compile=True)
