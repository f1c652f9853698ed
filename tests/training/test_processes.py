"""Several processes that train one model, joined by gloo on this computer."""

import os
import re
import signal
import tempfile
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.processes import Injected, in_processes, summary, train
from helpers.training import DATA, After, LeastSquares, Unsized, make_linear, make_vae
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
)

from tinyvae import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    Callback,
    EarlyStopping,
    GaussianEncoder,
    Optimization,
)
from tinyvae.core.random import epoch_order
from tinyvae.errors import NonFiniteError
from tinyvae.likelihoods import OptimalGaussianLikelihood
from tinyvae.objectives import AdversarialPriorRegularizer, MMDRegularizer, VAEGANRegularizer
from tinyvae.schedules import Linear
from tinyvae.training.processes import Processes

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")

# Adam would enlarge the rounding errors of small gradients.
DESCENT = Optimization(0.1, optimizer=torch.optim.SGD, clip_norm=1.0)
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}


def adversarial_autoencoder():
    torch.manual_seed(2)
    return ELBO(0.5) + AdversarialPriorRegularizer(MLP(2, (6,), out_shape=1), weight=0.3)


def vae_gan():
    torch.manual_seed(2)
    return ELBO() + VAEGANRegularizer(MLP(4, (6,)), num_features=6)


OBJECTIVES = {
    "elbo": lambda: ELBO(beta=Linear(0.0, 1.0, fraction=0.7)),
    "iwae": lambda: IWAE(3),
    "adversarial autoencoder": adversarial_autoencoder,
    "vae-gan": vae_gan,
}


def assert_close(first, second, tolerance):
    """Raise unless two summaries are equal to a relative tolerance."""
    assert (first["step"], first["reason"]) == (second["step"], second["reason"])
    torch.testing.assert_close(first["weights"], second["weights"], rtol=tolerance, atol=tolerance)
    for name in ("rows", "updates"):
        for row, other in zip(first[name], second[name], strict=True):
            assert row == pytest.approx(other, rel=10 * tolerance, abs=10 * tolerance), name


def run_objective(name, dtype, batch_size):
    trainer = train(
        lambda: make_vae().to(dtype),
        lambda: Injected(OBJECTIVES[name]()),
        batch_size=batch_size,
        optimization=DESCENT,
    )
    return summary(trainer)


def run_objectives(names):
    sizes = {torch.float64: 9, torch.float32: 8}  # 9: the last batch has one example
    return [run_objective(name, dtype, size) for name in names for dtype, size in sizes.items()]


def test_fit_gives_the_same_results_in_one_and_two_processes():
    """Also where one of them has no share of the last batch."""
    alone = run_objectives(OBJECTIVES)
    first, second = in_processes(run_objectives, OBJECTIVES)
    assert first == second  # bitwise
    for expected, got, dtype in zip(alone, first, list(TOLERANCES) * len(OBJECTIVES), strict=True):
        assert_close(expected, got, TOLERANCES[dtype])


# Data ---------------------------------------------------------------------------------------------


class Items(Dataset):
    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        return DATA[index]


class OwnLoader(DataLoader):
    """A loader that other processes cannot replace."""


def make_memmap():
    folder = tempfile.mkdtemp()
    np.save(f"{folder}/x.npy", DATA.numpy())
    return np.load(f"{folder}/x.npy", mmap_mode="r")


DATA_KINDS = {
    "memmap": make_memmap,
    "dataset": Items,
    "pairs": lambda: [(row, index) for index, row in enumerate(DATA)],
    "loader": lambda: DataLoader(Items(), 8, shuffle=True),
    "loader with a generator": lambda: DataLoader(
        Items(), 8, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "loader without batches": lambda: DataLoader(DATA.split(8), None),
    "own loader": lambda: OwnLoader(Items(), 9, shuffle=True),
    "stream": lambda: Shuffled(DATA),
}


class Shuffled(Unsized):
    """A stream that draws its order from torch's default generator while it is read."""

    def __iter__(self):
        waiting = list(self.x[:5])
        for row in self.x[5:]:
            chosen = int(torch.randint(5, ()))
            yield waiting[chosen]
            waiting[chosen] = row
        yield from waiting


def first_part(item):
    return item[0] if isinstance(item, (tuple, list)) else item


def run_data(names):
    return [
        summary(
            train(
                make_linear,
                LeastSquares,
                DATA_KINDS[name](),
                batch=first_part,
                optimization=DESCENT,
            )
        )
        for name in names
    ]


def test_fit_splits_every_kind_of_data():
    alone = run_data(DATA_KINDS)
    first, second = in_processes(run_data, DATA_KINDS)
    assert first == second
    for expected, got in zip(alone, first, strict=True):
        assert_close(expected, got, 1e-5)


class Seen(LeastSquares):
    """Least squares that notes the examples of this process."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, model, batch):
        if model.training:
            self.rows += batch.x[:, 0].int().tolist()
        return super().forward(model, batch)


def distributed_loader(epochs):
    numbers = torch.arange(36.0).unsqueeze(1).expand(36, 4)
    data = TensorDataset(numbers)
    loader = DataLoader(data, 5, sampler=DistributedSampler(data))
    seen = Seen()
    trainer = train(
        make_linear, lambda: seen, loader, batch=first_part, validation=None, epochs=epochs
    )
    return seen.rows, summary(trainer)


def test_fit_reads_a_loader_that_splits_the_data_itself():
    (first, one), (second, two) = in_processes(distributed_loader, 2)
    assert one == two
    assert one["step"] == 8  # 18 examples of each process in batches of 5
    for start in (0, 18):
        assert sorted(first[start : start + 18] + second[start : start + 18]) == list(range(36))
    assert first[:18] != first[18:]  # each epoch has an order of its own


class Uneven(IterableDataset):
    """A stream of which each process reads other rows, and more in the second one."""

    def __iter__(self):
        return iter(DATA[:11] if dist.get_rank() == 0 else DATA[11:])


def uneven_stream():
    loader = DataLoader(Uneven(), 4)
    return summary(train(make_linear, LeastSquares, loader, optimization=DESCENT, epochs=1))


def test_fit_continues_until_no_process_has_data():
    first, second = in_processes(uneven_stream)
    assert first == second
    assert first["step"] == 7  # 26 rows in batches of 4
    model, losses, counts = make_linear(), [], []
    for step in range(7):
        own = (DATA[:11][4 * step : 4 * step + 4], DATA[11:][4 * step : 4 * step + 4])
        x = torch.cat(own)
        loss = (model(x) - x).square().sum(1).mean()
        loss.backward()
        with torch.no_grad():
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for p in model.parameters():
                p -= 0.1 * p.grad
                p.grad = None
        losses.append(loss.item())
        counts.append(len(x))
    assert [row["loss"] for row in first["updates"]] == pytest.approx(losses, rel=1e-5)
    mean = sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)
    assert sum(counts) == len(DATA)
    assert first["rows"][0]["train/loss"] == pytest.approx(mean, rel=1e-5)


def whole_stream():
    loader = DataLoader(Unsized(DATA), 8)
    with pytest.warns(UserWarning, match="DataLoaders of all processes start with the same batch"):
        return train(make_linear, LeastSquares, loader, epochs=1).step


def test_fit_warns_if_every_process_reads_the_same_stream():
    assert in_processes(whole_stream) == [5, 5]


# Randomness ---------------------------------------------------------------------------------------


class Draws(LeastSquares):
    """Least squares that notes its noise, and the data after a transform."""

    def __init__(self):
        super().__init__()
        self.notes = []

    def forward(self, model, batch):
        self.notes.append([torch.rand(()).item(), batch.x.sum().item()])
        return super().forward(model, batch)


def noise():
    draws = Draws()
    train(make_linear, lambda: draws, torch.zeros(16, 4), torch.zeros(8, 4), transform=add_noise)
    return draws.notes


def add_noise(x, generator):
    return x + torch.rand(x.shape, generator=generator)


def test_fit_draws_other_noise_in_each_process_and_step():
    first, second = in_processes(noise)
    drawn = [*first, *second]
    # two epochs of two steps and a validation, which repeats its noise
    for column in zip(*drawn, strict=True):
        assert len({*column}) == len(column) - 2, column


def test_processes_share_every_example_once():
    for size in (1, 2, 3, 8):
        processes = [Processes(rank, size) for rank in range(size)]
        for num in range(20):
            parts = [range(num)[p.share(num)] for p in processes]
            assert [i for part in parts for i in part] == list(range(num))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
            assert len(parts[-1]) or not num  # the last one is never idle


# Ends ---------------------------------------------------------------------------------------------


def on_rank(rank, action):
    return lambda state: action(state) if state.processes.rank == rank else None


def stopping(action, *, step=3, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a schedule that does not end
        trainer = train(make_vae, callbacks=[After(step, action)], epochs=4, **options)
    return {**summary(trainer), "interrupted": trainer.state.is_interrupted}


def interrupted():
    return stopping(on_rank(1, lambda _: signal.raise_signal(signal.SIGINT)))


def stopped():
    return stopping(on_rank(0, lambda state: state.stop("enough")))


def stopped_early():
    stopping = EarlyStopping("validation/loss", patience=1, min_delta=100.0)
    return summary(train(make_vae, callbacks=[stopping], epochs=9))


def test_stop_in_one_process_ends_all_at_the_same_step():
    for function, reason, is_interrupted in (
        (interrupted, "interrupted", True),
        (stopped, "enough", False),
    ):
        results = in_processes(function)
        assert {r["step"] for r in results} == {3}
        assert {r["reason"] for r in results} == {reason, "another process has stopped"}
        assert {r["interrupted"] for r in results} == {is_interrupted}
        assert results[0]["weights"] == results[1]["weights"]


def test_early_stopping_decides_the_same_in_all_processes():
    first, second = in_processes(stopped_early)
    assert first == second
    assert len(first["rows"]) == 2


def not_finite():
    x = DATA.clone()
    index = epoch_order(len(x), 0, 0)[8 * 2 + 5]  # in the second process, at the third step
    x[index] = 1e30
    state = {}
    with pytest.raises(NonFiniteError, match="step 3 "):
        train(make_linear, LeastSquares, x, callbacks=[Keep(state)])
    return state["step"]


class Keep(Callback):
    """Keeps the number of the last step."""

    def __init__(self, kept):
        self.kept = kept

    def on_fit_end(self, state):
        self.kept["step"] = state.step


def test_fit_raises_in_all_processes_if_one_gets_nan():
    assert in_processes(not_finite) == [2, 2]


def left_alone(action):
    with pytest.raises(RuntimeError, match="got no answer from another one"):
        train(make_vae, callbacks=[After(3, on_rank(1, action))], epochs=1000)
    return "raised"


@pytest.mark.parametrize("exit_code", [-signal.SIGKILL, 7])
def test_fit_raises_soon_after_a_process_has_died(exit_code):
    def die(state):
        os.kill(os.getpid(), signal.SIGKILL) if exit_code < 0 else os._exit(exit_code)

    results = in_processes(left_alone, die, may_fail=True, limit=10)
    assert results[0] == (True, "raised")
    assert results[1] == (False, "it has died")


# Refusals -----------------------------------------------------------------------------------------


def message_of(*arguments, **options):
    with pytest.raises(ValueError, match="expects") as error:
        train(*arguments, **options)
    return str(error.value)


def make_normalized():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


def make_optimal():
    encoder = GaussianEncoder(MLP(4, (8,)), latent_dim=2)
    return VAE(encoder, MLP(2, out_shape=4), OptimalGaussianLikelihood())


def refused():
    rank = dist.get_rank()
    return [
        message_of(make_vae, lambda: ELBO() + MMDRegularizer(1.0)),
        message_of(make_vae, lambda: ELBO(free_bits=0.1)),
        message_of(make_optimal),
        message_of(make_normalized, LeastSquares),
        message_of(make_vae, batch_size=1),
        message_of(make_vae, validation=DATA[:1]),
        message_of(make_vae, epochs=2 + rank),
        message_of(make_vae, data=DATA[: 20 + rank]),
    ]


def test_fit_refuses_what_several_processes_would_get_wrong():
    expected = (
        "got MMDRegularizer, which depends on the whole batch: train in one process",
        "got ELBO, which",
        "got OptimalGaussianLikelihood, which",
        "got BatchNorm1d, which .*: use nn.GroupNorm, or nn.SyncBatchNorm",
        "batch_size >= 2, one per process, got 1",
        "validation data: fit expects examples >= 2",
        "expects the same number of epochs, in all 2 processes",
        "expects data of the same length",
    )
    for messages in in_processes(refused):
        for pattern, message in zip(expected, messages, strict=True):
            assert re.search(pattern, message), message


def begin_apart():
    def make_linear():
        torch.manual_seed(dist.get_rank())
        return nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4))

    return summary(train(make_linear, LeastSquares, epochs=1))


def test_fit_begins_with_the_weights_of_the_first_process():
    first, second = in_processes(begin_apart)
    assert first == second


def drifting():
    def drift(state):
        with torch.no_grad():
            next(state.model.parameters()).add_(state.processes.rank)

    with pytest.warns(UserWarning, match="weights of the model differ between the processes"):
        train(make_vae, callbacks=[After(1, drift)], epochs=1)


def test_fit_warns_if_the_weights_of_processes_differ():
    in_processes(drifting)


# Callbacks and parameters -------------------------------------------------------------------------


class Sparse(nn.Linear):
    """A layer with a parameter that no process uses, and one that only the second one uses."""

    def __init__(self):
        super().__init__(4, 4)
        torch.nn.init.zeros_(self.weight)
        self.unused, self.used = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return super().forward(x) + (self.used if dist.get_rank() == 1 else 1.0)


def decaying(parameters):
    return torch.optim.AdamW(parameters, 0.1, weight_decay=1.0)


def train_partly():
    calls = []

    class Writes(Callback):
        first_process_only = True

        def on_step_end(self, state, output):
            calls.append(state.step)

    optimization = Optimization(optimizer=decaying)
    trainer = train(Sparse, LeastSquares, callbacks=[Writes()], optimization=optimization)
    trainer.fit(DATA, epochs=1, batch_size=8)
    return summary(trainer), trainer.model.unused.tolist(), trainer.model.used.tolist(), calls


def test_fit_updates_the_parameters_that_any_process_uses():
    (first, unused, used, calls), second = in_processes(train_partly)
    assert second == (first, unused, used, [])
    assert unused == [1.0, 1.0]  # AdamW would shrink it if it had a gradient of zero
    assert used != [1.0] * 4
    assert calls == list(range(1, 16))  # also in the second call of ``fit``
