"""The tuned loop of ``loops.py``."""

from functools import partial

import loops

run = loops.train
run_compiled = partial(loops.train, compile=True)
