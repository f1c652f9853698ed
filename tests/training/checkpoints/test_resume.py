"""Resuming is bitwise: weights, moments and history equal those of an uninterrupted run."""

import random
import shutil
import signal
import warnings

import numpy as np
import pytest
import torch
from helpers.runs import AUTO, checkpoint_of, digest, epochs_in, steps_in
from helpers.training import BATCH_SIZE, DATA, STEPS, After, Unsized, make_vae, same, weights_of
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset

import tinyvae.training.checkpoints.directory
from tinyvae import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    BernoulliLikelihood,
    Callback,
    Checkpoint,
    EarlyStopping,
    GaussianEncoder,
    Optimization,
    Speed,
    Trainer,
)
from tinyvae.errors import CheckpointError
from tinyvae.objectives import AdversarialTotalCorrelationRegularizer
from tinyvae.schedules import Linear

EPOCHS = 3
END = EPOCHS * STEPS


def flip(x, generator):
    """Flip a tenth of the pixels: a transform that draws."""
    noise = torch.rand(x.shape, generator=generator)
    return torch.where(noise < 0.1, 1 - x, x)


def make_model():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU())
    encoder = GaussianEncoder(network, latent_dim=2, features=8)
    return VAE(encoder, MLP(2, hidden=(8,), out_shape=4), BernoulliLikelihood())


def everything():
    """Return the settings of a run with every kind of state."""
    objective = ELBO(beta=Linear(0.0, 1.0, fraction=0.8)) + AdversarialTotalCorrelationRegularizer(
        MLP(2, (6,), 1), weight=2.0
    )
    optimization = Optimization(
        0.02,
        schedule="cosine",
        clip_norm=1.0,
    )
    return {
        "objective": objective,
        "optimization": optimization,
        "callbacks": [EarlyStopping(patience=2)],
        "record_every": 2,
    }


def plateau():
    """Return settings with momentum and a scheduler that monitors a column."""
    optimization = Optimization(
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        scheduler=lambda o: ReduceLROnPlateau(
            o, mode="max", patience=0, threshold=0.5, threshold_mode="abs"
        ),
        monitor="validation/elbo_nats",
    )
    return {"objective": IWAE(3), "optimization": optimization}


def decay():
    """Return settings with a scheduler of torch that steps after each epoch."""
    return {
        "objective": ELBO(),
        "optimization": Optimization(scheduler=lambda o: ExponentialLR(o, 0.5)),
    }


SETTINGS = {"everything": everything, "plateau": plateau, "decay": decay}


def trainer_of(folder, settings=everything, model=make_model, *, every_steps=1, more=(), **options):
    torch.manual_seed(1)
    arguments = settings()
    objective, callbacks = arguments.pop("objective"), arguments.pop("callbacks", [])
    checkpoint = Checkpoint(folder, every_steps=every_steps, every_minutes=None, keep=10**6)
    arguments["callbacks"] = [checkpoint, *callbacks, *more]
    return Trainer(model(), objective, **arguments, device="cpu", progress=False, **options)


def fit(trainer, train=DATA, **options):
    settings = {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "transform": flip, **options}
    trainer.fit(train, DATA, **settings)
    return trainer


@pytest.fixture(scope="module", params=SETTINGS)
def complete(request, tmp_path_factory):
    """An uninterrupted run with a checkpoint of each step."""
    folder = tmp_path_factory.mktemp("complete")
    trainer = fit(trainer_of(folder, SETTINGS[request.param]))
    return {"folder": folder, "digest": digest(trainer), "settings": SETTINGS[request.param]}


def resumed(complete, step, folder, **options):
    """Continue a run from the checkpoint of a step in a new folder, with other random states."""
    folder.mkdir()
    shutil.copy(checkpoint_of(complete["folder"], step), folder)
    random.seed(step)
    torch.manual_seed(100 + step)
    return fit(trainer_of(folder, complete["settings"]), **AUTO, **options)


@pytest.mark.parametrize("step", [0, 1, 3, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS, END - 1, END])
def test_resume_equals_the_uninterrupted_run(complete, step, tmp_path):
    trainer = resumed(complete, step, tmp_path / "run")
    assert digest(trainer) == complete["digest"]


def test_resume_at_each_step_equals_the_uninterrupted_run(complete, tmp_path):
    class StopAt(Callback):
        def on_step_end(self, state, output):
            state.stop("enough", resumable=True)

    for _ in range(END):
        trainer = fit(trainer_of(tmp_path, complete["settings"], more=[StopAt()]), **AUTO)
        assert trainer.history.stop_reason == "enough"
    trainer = fit(trainer_of(tmp_path, complete["settings"]), **AUTO)
    assert digest(trainer) == complete["digest"]
    assert epochs_in(tmp_path) == list(range(1, EPOCHS + 1))


def drop_rng(state):
    state["rng"]["cpu"] = torch.Generator().manual_seed(7).get_state()


def drop_cursor(state):
    state["position"]["batch"] -= 1


def drop_moments(state):
    for optimizer in state["optimizers"].values():
        optimizer["state"] = {}


def drop_scheduler(state):
    for scheduler in state["schedulers"].values():
        scheduler["last_epoch"] = 0


def drop_step(state):
    state["position"]["step"] = 0


@pytest.mark.filterwarnings("ignore:a schedule does not end", "ignore:other code")
def test_resume_without_a_part_of_the_state_differs(tmp_path, monkeypatch):
    run = {"folder": tmp_path / "complete", "settings": everything}
    expected = digest(fit(trainer_of(run["folder"])))
    read = tinyvae.training.checkpoints.directory.load_checkpoint
    assert digest(resumed(run, STEPS + 2, tmp_path / "control")) == expected
    for drop in (drop_rng, drop_cursor, drop_moments, drop_scheduler, drop_step):

        def read_without(file, drop=drop):
            state = read(file)
            drop(state)
            return state

        with monkeypatch.context() as patch:
            directory = tinyvae.training.checkpoints.directory
            patch.setattr(directory, "load_checkpoint", read_without)
            trainer = resumed(run, STEPS + 2, tmp_path / drop.__name__)
        assert digest(trainer) != expected, drop.__name__


# Data --------------------------------------------------------------------------------------------


class Drawn(Dataset):
    """Examples that draw from each global generator."""

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        draws = (torch.rand(()).item(), random.random(), np.random.rand())  # noqa: NPY002
        noise = torch.tensor([*draws, 0.0])
        return torch.where(noise < 0.3, 1 - DATA[index], DATA[index])


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_continues_a_dataset_that_draws(workers, tmp_path):
    complete = {"folder": tmp_path / "complete", "settings": plateau}
    expected = digest(fit(trainer_of(complete["folder"], plateau), Drawn(), workers=workers))
    for step in (2, STEPS):
        trainer = resumed(complete, step, tmp_path / f"{step}", train=Drawn(), workers=2 - workers)
        assert digest(trainer) == expected


def test_dataset_draws_differ_per_epoch_and_leave_global_generators_alone(tmp_path):
    seen = []

    class Spy(Callback):
        def on_epoch_end(self, state, row):
            seen.append(row["train/loss"])

    frozen = Optimization(optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    model = make_vae()
    after_init = torch.get_rng_state()
    Trainer(model, ELBO(), frozen, callbacks=[Spy()], progress=False, device="cpu").fit(
        Drawn(), epochs=2, batch_size=37
    )
    assert seen[0] != seen[1]
    assert torch.equal(torch.get_rng_state(), after_init)
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


class Stateful(DataLoader):
    """A DataLoader that saves its position, so that no batch is read again."""

    read = 0

    def __iter__(self):
        start, self.start = getattr(self, "start", 0), 0
        order = torch.randperm(len(DATA), generator=torch.Generator().manual_seed(self.read // 5))
        for self.position in range(start, STEPS):
            type(self).read += 1
            self.position += 1
            yield DATA[order[(self.position - 1) * 8 : self.position * 8]]
        self.position = 0

    def state_dict(self):
        return {"position": getattr(self, "position", 0)}

    def load_state_dict(self, state):
        self.start = state["position"]


def loaders():
    return {
        "shuffled": lambda: DataLoader(DATA, BATCH_SIZE, shuffle=True),
        "generator": lambda: DataLoader(
            DATA, BATCH_SIZE, shuffle=True, generator=torch.Generator().manual_seed(3)
        ),
        "stream": lambda: DataLoader(Unsized(DATA), BATCH_SIZE),
    }


@pytest.mark.parametrize("name", loaders())
def test_resume_reads_a_loader_again_up_to_its_position(name, tmp_path):
    make = loaders()[name]
    complete = {"folder": tmp_path / "complete", "settings": plateau}
    expected = digest(fit(trainer_of(complete["folder"], plateau), make()))
    for step in (0, STEPS, 2 * STEPS):
        assert digest(resumed(complete, step, tmp_path / f"{step}", train=make())) == expected
    with pytest.warns(UserWarning, match="the 2 batches that this epoch has used are read again"):
        trainer = resumed(complete, STEPS + 2, tmp_path / "within", train=make())
    assert digest(trainer) == expected


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="needs SIGCHLD")
def test_resume_after_an_error_between_steps_keeps_the_order_of_a_loader(tmp_path):
    """The handler of torch raises between two steps if a process that reads data dies."""

    def fail(signum, frame):
        raise RuntimeError("planted")

    make = loaders()["generator"]
    complete = {"folder": tmp_path / "complete", "settings": plateau}
    expected = digest(fit(trainer_of(complete["folder"], plateau), make()))
    folder = tmp_path / "run"
    send = After(STEPS + 2, lambda _: signal.raise_signal(signal.SIGCHLD))
    previous = signal.signal(signal.SIGCHLD, fail)
    try:
        with pytest.raises(RuntimeError, match="planted"):
            fit(trainer_of(folder, plateau, every_steps=99, more=[send]), make())
    finally:
        signal.signal(signal.SIGCHLD, previous)
    assert steps_in(folder)[-1] == STEPS + 2
    with pytest.warns(UserWarning, match="the 2 batches that this epoch has used are read again"):
        trainer = fit(trainer_of(folder, plateau), make(), **AUTO)
    assert digest(trainer) == expected


def test_resume_continues_a_loader_with_a_state(tmp_path):
    Stateful.read = 0
    complete = {"folder": tmp_path / "complete", "settings": plateau}
    expected = digest(fit(trainer_of(complete["folder"], plateau), Stateful(DATA, BATCH_SIZE)))
    assert Stateful.read == END
    Stateful.read = STEPS + 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = resumed(
            complete, STEPS + 2, tmp_path / "within", train=Stateful(DATA, BATCH_SIZE)
        )
    assert digest(trainer) == expected
    assert Stateful.read == END


def test_resume_warns_that_a_loader_with_a_state_does_not_restore_draws_of_workers(tmp_path):
    complete = {"folder": tmp_path / "complete", "settings": plateau}
    fit(trainer_of(complete["folder"], plateau), Stateful(DATA, BATCH_SIZE, num_workers=1))
    loader = Stateful(DATA, BATCH_SIZE, num_workers=1)
    with pytest.warns(UserWarning, match="but not the generators of its processes: if its items"):
        resumed(complete, STEPS + 2, tmp_path / "within", train=loader)


# Other runs --------------------------------------------------------------------------------------


def test_resume_refuses_another_run_before_anything_changes(tmp_path):
    fit(trainer_of(tmp_path, plateau))
    for options, data, message in (
        ({"seed": 1}, {}, r"seed = 0, got 1"),
        ({}, {"train": DATA[:33]}, r"number of examples = 37, got 33"),
        ({}, {"batch_size": 4}, r"batches per epoch = 5, got 10"),
    ):
        trainer = trainer_of(tmp_path, plateau, **options)
        before = weights_of(trainer.model)
        with pytest.raises(ValueError, match=message):
            fit(trainer, **data, **AUTO)
        assert trainer.step == 0
        assert same(trainer.model, before)


def test_resume_refuses_another_model(tmp_path):
    fit(trainer_of(tmp_path, plateau))
    with pytest.raises(CheckpointError, match=r"to another model: .* differ, first 'encoder.net"):
        fit(trainer_of(tmp_path, plateau, make_vae), **AUTO)


def test_resume_warns_about_another_mode(tmp_path):
    fit(trainer_of(tmp_path, plateau), epochs=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(UserWarning, match=rf"not bitwise: .*threads \({threads} before, now"):
            fit(trainer_of(tmp_path, plateau), epochs=1, **AUTO)
    finally:
        torch.set_num_threads(threads)


def test_resume_with_more_epochs_continues_the_run(tmp_path):
    fit(trainer_of(tmp_path, plateau), epochs=1)
    with pytest.warns(UserWarning, match="begun for 1 epochs and now continues to 3"):
        trainer = fit(trainer_of(tmp_path, plateau), **AUTO)
    assert trainer.history["epoch"] == [1, 2, 3]
    assert trainer.step == END


def test_resume_of_a_complete_run_returns_its_history(tmp_path):
    first = fit(trainer_of(tmp_path))
    again = fit(trainer_of(tmp_path), **AUTO)
    assert digest(first) == digest(again)


def test_resume_of_a_stopped_run_makes_no_step(tmp_path):
    class Enough(Callback):
        def on_epoch_end(self, state, row):
            state.stop("enough")

    trainer = fit(trainer_of(tmp_path, plateau, more=[Enough()]))
    again = fit(trainer_of(tmp_path, plateau), **AUTO)
    assert trainer.step == again.step == STEPS
    assert again.history.stop_reason == "enough"


def test_resume_needs_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match='expects a Checkpoint for resume="auto", got none'):
        Trainer(make_vae(), ELBO(), progress=False).fit(DATA, epochs=1, resume="auto")
    fit(trainer_of(tmp_path / "run", plateau))
    for resume, error, message in (
        (True, TypeError, 'got True: give resume="auto"'),
        (tmp_path / "other", FileNotFoundError, "other', which does not exist"),
    ):
        with pytest.raises(error, match=message):
            fit(trainer_of(tmp_path / "run", plateau), resume=resume)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        Trainer(make_vae(), ELBO(), progress=False).fit(DATA, epochs=1, resume=tmp_path)


def test_resume_from_a_path_or_a_folder(tmp_path):
    folder = tmp_path / "complete"
    expected = digest(fit(trainer_of(folder, plateau)))
    for name, path in {"a": folder, "b": checkpoint_of(folder, 4)}.items():
        trainer = fit(trainer_of(tmp_path / name, plateau), resume=path)
        assert digest(trainer) == expected


def test_resume_from_an_earlier_step_renames_later_files(tmp_path):
    expected = digest(fit(trainer_of(tmp_path, plateau, every_steps=4)))
    trainer = fit(trainer_of(tmp_path, plateau), resume=checkpoint_of(tmp_path, 4))
    assert digest(trainer) == expected
    assert sorted(file.name for file in tmp_path.glob("*.replaced")) == [
        "model.replaced",
        *(f"step-{step:08d}.replaced" for step in (8, 12, END)),
    ]


# Compiled ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_resume_of_a_compiled_run_is_bitwise(tmp_path):
    complete = {"folder": tmp_path / "complete", "settings": plateau}
    speed = Speed(compile=True)
    expected = digest(fit(trainer_of(complete["folder"], plateau, speed=speed)))
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(checkpoint_of(complete["folder"], STEPS + 2), folder)
    assert digest(fit(trainer_of(folder, plateau, speed=speed), **AUTO)) == expected
