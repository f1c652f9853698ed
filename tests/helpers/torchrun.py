"""A script for torchrun: it trains, and may kill a process once.

    torchrun ... torchrun.py FOLDER [STEP]

At STEP the second process dies, if the folder does not say that it has. The first process prints
what the run leaves.
"""

import json
import os
import signal
import sys
from pathlib import Path

from helpers.processes import summary, train
from helpers.training import After, make_vae

from tinyvae import Checkpoint


def die(state):
    """Die, the first time."""
    mark = Path(sys.argv[1]) / "died"
    if state.processes.rank == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def main():
    folder, *steps = sys.argv[1:]
    callbacks = [Checkpoint(Path(folder) / "run", every_steps=1)]
    callbacks += [After(int(step), die) for step in steps]
    trainer = train(lambda: make_vae(dropout=0.2), callbacks=callbacks, epochs=3, resume="auto")
    if trainer.state.processes.rank == 0:
        print(json.dumps([trainer.state.processes.size, summary(trainer)]))


if __name__ == "__main__":
    main()
