"""Functions that run in several processes at the same time, joined by gloo."""

import math
import multiprocessing
import os
import tempfile
import traceback

import torch
import torch._dynamo  # takes seconds; the first optimizer of each process would import it
import torch.distributed as dist
from helpers.training import DATA, rows

from tinyvae import ELBO, Objective, Trainer

LIMIT = 60  # seconds


def in_processes(function, *arguments, size=2, joins=True, may_fail=False, limit=LIMIT):
    """Return the results of a function in ``size`` forked processes.

    Unless ``joins``, they only know each other's number, as those of torchrun do.

    Raise if one has failed or has not answered within the limit, unless it ``may_fail``. In that
    case return pairs of success and result.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(size):
            receiver, sender = context.Pipe(duplex=False)
            store = f"file://{folder}/store" if joins else None
            target = (function, arguments, rank, size, store, sender)
            processes.append(context.Process(target=_run, args=target))
            ends.append(receiver)
            processes[-1].start()
            sender.close()
        results = [_received(end, limit) for end in ends]
        for process in processes:
            process.join(LIMIT)
            process.kill()
    if may_fail:
        return results
    failed = [f"process {rank}:\n{r}" for rank, (is_fine, r) in enumerate(results) if not is_fine]
    assert not failed, "\n".join(failed)
    return [result for _, result in results]


def _received(end, limit):
    try:
        return end.recv() if end.poll(limit) else (False, "no answer in time")
    except EOFError:
        return False, "it has died"


def _run(function, arguments, rank, size, store, sender):
    try:
        os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{size}"}
        if store is not None:
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
        sender.send((True, function(*arguments)))
    except BaseException:
        sender.send((False, traceback.format_exc()))
    finally:
        os._exit(0)


class Injected(Objective):
    """Objective whose draws from ``torch.randn`` are a function of the example and the call.

    A run then has the same noise in any number of processes.
    """

    def __init__(self, objective):
        super().__init__()
        self.objective = objective

    def forward(self, model, batch):
        calls, original = iter(range(100)), torch.randn

        def randn(shape, **options):
            *draws, size = shape  # (K, B, L) or (K * B, L)
            num_draws = math.prod(draws) // len(batch)
            generator = torch.Generator().manual_seed(next(calls))
            table = original(len(DATA), num_draws, size, generator=generator, dtype=torch.float64)
            return table[batch.index].transpose(0, 1).reshape(shape).to(**options)

        torch.randn = randn
        try:
            return self.objective(model, batch)
        finally:
            torch.randn = original

    def parameter_groups(self, model):
        return self.objective.parameter_groups(model)


def summary(trainer):
    """Return all that a run leaves, as plain numbers, without the time."""
    parts = (trainer.model, trainer.objective)
    weights = torch.cat(
        [t.detach().double().flatten() for p in parts for t in p.state_dict().values()]
    )
    return {
        "weights": weights.tolist(),
        "rows": rows(trainer.history),
        "updates": trainer.history.updates,
        "reason": trainer.history.stop_reason,
        "step": trainer.step,
    }


def train(
    make_model,
    make_objective=ELBO,
    data=DATA,
    validation=DATA[:9],
    *,
    optimization=None,
    callbacks=(),
    **fit,
):
    """Train, and return the trainer."""
    trainer = Trainer(
        make_model(),
        make_objective(),
        optimization,
        callbacks=callbacks,
        record_every=1,
        device="cpu",
        progress=False,
    )
    trainer.fit(data, validation, **{"epochs": 2, "batch_size": 8, **fit})
    return trainer
