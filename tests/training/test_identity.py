"""A resumed run warns of each setting that has changed since its checkpoint, and of no other."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.runs import checkpoint_of, posix
from helpers.training import BATCH_SIZE, DATA, STEPS, Unsized, binary, flip
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR, StepLR
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

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
    Trainer,
)
from tinyvae.datasets import DynamicBinarization
from tinyvae.errors import CheckpointError
from tinyvae.likelihoods import GaussianLikelihood
from tinyvae.objectives import LatentL2Regularizer
from tinyvae.schedules import Linear
from tinyvae.training.checkpoints.directory import load_checkpoint
from tinyvae.training.settings import checksum, differences, settings_of

OTHER = binary(seed=2)


def make_model(
    likelihood=BernoulliLikelihood, activation=nn.ReLU, dropout=0.1, dtype=torch.float32
):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), activation(), nn.Dropout(dropout))
    encoder = GaussianEncoder(network, latent_dim=2, features=8)
    return VAE(encoder, MLP(2, hidden=(8,), out_shape=4), likelihood()).to(dtype)


def start(folder, data=DATA, **settings):
    """Start a run of one epoch, or continue it without another step."""
    options = {"model": make_model(), "objective": ELBO(), "record_every": 4, **settings}
    fit = {name: options.pop(name) for name in FIT if name in options}
    fit = {"validation": DATA, "batch_size": BATCH_SIZE, "resume": "auto", **fit}
    callbacks = [Checkpoint(folder, every_steps=2, keep=99), *options.pop("callbacks", [])]
    trainer = Trainer(
        options.pop("model"), options.pop("objective"), callbacks=callbacks, device="cpu",
        progress=False, **options,
    )  # fmt: skip
    trainer.fit(data, epochs=1, **fit)
    return trainer


FIT = ("validation", "batch_size", "batch", "transform", "workers", "resume")


class Roll:
    """A transform that counts its calls."""

    def __init__(self, by):
        self.by, self.calls = by, 0

    def __call__(self, x, generator):
        self.calls += 1
        return x.roll(self.by, 1)


class Shift:
    """A transform that stores its argument under another name."""

    def __init__(self, by):
        self.amount = by

    def __call__(self, x, generator):
        return x.roll(self.amount, 1)


class Rows(Dataset):
    """Rows of a tensor that no attribute holds."""

    def __init__(self, x):
        self.get = x.__getitem__
        self.size = len(x)

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return self.get(index)


class Stored(Rows):
    """Rows of a tensor that is an attribute."""

    def __init__(self, x):
        super().__init__(x)
        self.x = x


class Listed(Rows):
    """Rows in a list."""

    def __init__(self, x):
        super().__init__(x)
        self.rows = 5 * list(x)


class Cached(Rows):
    """Rows of a file, which are kept, and an attribute that torch's own classes iterate."""

    def __init__(self, x, before):
        super().__init__(x)
        self.cache, self.datasets = torch.full(x.shape, before), None


class Broken(list):
    """A list that fails."""

    def __len__(self):
        raise RuntimeError("planted")


class Opaque(Rows):
    """Rows next to objects that fail at a look at them."""

    def __init__(self, x):
        super().__init__(x)
        self.rows, self.parts = Broken(), [Broken()]


class Moody(Rows):
    """Rows that differ every time, because they draw from their own generator."""

    def __init__(self, x):
        super().__init__(x)
        self.generator = torch.Generator()

    def __getitem__(self, index):
        self.generator.seed()
        return torch.bernoulli(torch.full((4,), 0.5), generator=self.generator)


class Weighted(ELBO):
    """An objective of the user's own, which stores its argument under another name."""

    def __init__(self, strength=1.0):
        super().__init__()
        self.factor = strength


class Annealed(Callback):
    """A callback with a state, whose text differs in every process."""

    def __init__(self, rate, name="a"):
        self.rate, self.name = rate, name

    def on_fit_start(self, state):
        self.value = 0.0

    def state_dict(self):
        return {"value": self.value}


def rolled(by):
    return lambda x, _: x.roll(by, 1)


class Experiment:
    """A user's configuration, with settings that change when a run continues."""

    def __init__(self, epochs, device, by=1):
        self.epochs, self.device, self.by = epochs, device, by

    def roll(self, x, generator):
        return x.roll(self.by, 1)


class Configured:
    def __init__(self, experiment):
        self.experiment = experiment

    def __call__(self, x, generator):
        return self.experiment.roll(x, generator)


def configured(experiment):
    device = experiment.device
    return lambda x, _: x.roll(experiment.by, 1) if device else x


def counting(calls):
    def count(x, generator, results=[]):  # noqa: B006
        nonlocal calls
        calls += 1
        results.append(calls)
        return x

    return count


def roll(x, generator, by=1):
    return x.roll(by, 1)


def follow(decay):
    return lambda optimizer: LambdaLR(optimizer, lambda step: decay**step)


def loader(x=DATA, batch_size=BATCH_SIZE, **options):
    return DataLoader(x, batch_size, **options)


def batched(size):
    sampler = SequentialSampler(DATA)
    return DataLoader(DATA, batch_sampler=BatchSampler(sampler, size, drop_last=False))


def weighted(weight):
    weights = torch.ones(len(DATA))
    weights[0] = weight
    return loader(sampler=WeightedRandomSampler(weights, len(DATA)))


def rate(**settings):
    return {"optimization": Optimization(**settings)}


# Settings of a run, those of the run that continues it, and the words of its warning.
CHANGES = {
    "beta": ({}, {"objective": ELBO(beta=4.0)}, "objective.beta = 4.0, was 1.0"),
    "schedule of beta": (
        {"objective": ELBO(beta=Linear(0.0, 1.0, steps=3))},
        {"objective": ELBO(beta=Linear(0.0, 1.0, steps=4))},
        "objective.beta.steps = 4, was 3",
    ),
    "start of a schedule": (
        {"objective": ELBO(beta=Linear(0.0, 1.0, steps=3))},
        {"objective": ELBO(beta=Linear(0.5, 1.0, steps=3))},
        "objective.beta.start = 0.5, was 0.0",
    ),
    "objective": ({}, {"objective": IWAE(5)}, "objective = IWAE, was ELBO"),
    "samples": ({}, {"objective": ELBO(num_samples=2)}, "objective.num_samples = 2, was 1"),
    "KL": ({}, {"objective": ELBO(kl="sample")}, "objective.kl = 'sample', was 'auto'"),
    "regularizer": (
        {"objective": ELBO() + LatentL2Regularizer(0.1)},
        {"objective": ELBO() + LatentL2Regularizer(0.2)},
        "objective.regularizers.0.weight = 0.2, was 0.1",
    ),
    "own objective": (
        {"objective": Weighted(1.0)},
        {"objective": Weighted(2.0)},
        "objective.factor = 2.0, was 1.0",
    ),
    "likelihood": (
        {},
        {"model": make_model(partial(GaussianLikelihood, 0.5))},
        "model.likelihood = GaussianLikelihood, was BernoulliLikelihood",
    ),
    "scale": (
        {"model": make_model(partial(GaussianLikelihood, 0.5))},
        {"model": make_model(partial(GaussianLikelihood, 0.25))},
        "model.likelihood.std.value = 0.25, was 0.5",
    ),
    "activation": (
        {},
        {"model": make_model(activation=nn.Tanh)},
        "model.encoder.network.1 = Tanh, was ReLU",
    ),
    "dropout": ({}, {"model": make_model(dropout=0.2)}, "model.encoder.network.2.p = 0.2, was 0.1"),
    "batch size": ({}, {"batch_size": 9}, "training data.batch_size = 9, was 8"),
    "batch size of a loader": (
        {"data": loader()},
        {"data": loader(batch_size=9)},
        "training data.batch_size = 9, was 8",
    ),
    "size of own batches": (
        {"data": batched(BATCH_SIZE)},
        {"data": batched(9)},
        "training data.batch_size = 9, was 8",
    ),
    "order of a loader": (
        {"data": loader(shuffle=True)},
        {"data": loader()},
        "training data.order = that of a DataLoader with SequentialSampler, was that of a "
        "DataLoader with RandomSampler",
    ),
    "weights of a sampler": (
        {"data": weighted(1.0)},
        {"data": weighted(5.0)},
        r"training data.sampler.weights.checksum = \S+, was \S+",
    ),
    "data": ({}, {"data": OTHER}, r"training data.values.checksum = \S+, was \S+"),
    "one number of the data": (
        {},
        {"data": DATA.index_put((torch.tensor(20), torch.tensor(2)), 1 - DATA[20, 2])},
        r"training data.values.checksum = \S+, was \S+",
    ),
    "order of the data": ({}, {"data": DATA.flip(0)}, "training data.values.checksum = "),
    "labels": (
        {"data": (DATA, torch.zeros(37)), "batch": lambda b: b[0], "validation": None},
        {"data": (DATA, torch.ones(37)), "batch": lambda b: b[0], "validation": None},
        "training data.values.1.checksum = ",
    ),
    "data of a Dataset": ({"data": Rows(DATA)}, {"data": Rows(OTHER)}, r"values\[12\].checksum = "),
    "data in a Dataset": (
        {"data": Stored(DATA)},
        {"data": Stored(OTHER), "workers": 2},
        "training data.values.arrays.x.checksum = ",
    ),
    "Dataset": (
        {"data": Rows(DATA)},
        {"data": Stored(DATA)},
        "training data.dataset = Stored, was Rows",
    ),
    "subset": (
        {"data": Subset(Rows(OTHER), range(37))},
        {"data": Subset(Rows(OTHER), [*range(36), 0])},
        "training data.values.arrays.indices = ",
    ),
    "data of a subset": (
        {"data": Subset(TensorDataset(DATA), range(37))},
        {"data": Subset(TensorDataset(OTHER), range(37))},
        "training data.values.arrays.dataset.tensors.0.checksum = ",
    ),
    "data of a loader": (
        {"data": loader()},
        {"data": loader(OTHER)},
        "training data.values.checksum = ",
    ),
    "data of a stream": (
        {"data": loader(Unsized(DATA))},
        {"data": loader(Unsized(OTHER))},
        "training data.values.arrays.x.checksum = ",
    ),
    "validation": ({}, {"validation": OTHER}, r"validation data.values.checksum = \S+, was \S+"),
    "no validation": ({}, {"validation": None}, "validation data.values = None, was array"),
    "transform": ({}, {"transform": flip}, "transform = flip, was None"),
    "other transform": ({"transform": flip}, {"transform": roll}, "transform = roll, was flip"),
    "argument of a transform": (
        {"transform": Roll(1)},
        {"transform": Roll(2)},
        "transform.by = 2, was 1",
    ),
    "attribute of a transform": (
        {"transform": Shift(1)},
        {"transform": Shift(2)},
        "transform.amount = 2, was 1",
    ),
    "closure of a transform": (
        {"transform": rolled(1)},
        {"transform": rolled(2)},
        "transform.by = 2, was 1",
    ),
    "attribute that a function reads": (
        {"transform": configured(Experiment(2, "cpu", 1))},
        {"transform": configured(Experiment(2, "cpu", 2))},
        "transform.experiment.by = 2, was 1",
    ),
    "attribute that a method reads": (
        {"transform": Experiment(2, "cpu", 1).roll},
        {"transform": Experiment(2, "cpu", 2).roll},
        "transform.self.by = 2, was 1",
    ),
    "list in a Dataset": (
        {"data": Listed(DATA)},
        {"data": Listed(OTHER), "workers": 2},
        r"training data.values.arrays.rows.\d.checksum = ",
    ),
    "argument of a partial": (
        {"transform": partial(roll, by=1)},
        {"transform": partial(roll, by=2)},
        "transform.keywords.by = 2, was 1",
    ),
    "code of a transform": (
        {"transform": lambda x, _: x.roll(1, 1)},
        {"transform": lambda x, _: x.roll(2, 1)},
        r"transform.code \(Python 3.\d+\) = \w+, was \w+",
    ),
    "levels of a binarization": (
        {"transform": DynamicBinarization(2), "data": DATA.long(), "validation": None},
        {"transform": DynamicBinarization(3), "data": DATA.long(), "validation": None},
        "transform.max_value = 3, was 2",
    ),
    "batch function": (
        {"data": (DATA, OTHER), "batch": lambda b: b[0], "validation": None},
        {"data": (DATA, OTHER), "batch": lambda b: b[1], "validation": None},
        r"batch.code \(Python 3.\d+\) = \w+, was \w+",
    ),
    "clipping": ({}, rate(clip_norm=1.0), "optimization.clip_norm = 1.0, was None"),
    "learning rate": ({}, rate(learning_rate=0.01), "keeps .*: lr = 0.001, not 0.01"),
    "rate of a part": (
        rate(learning_rates={"encoder": 0.02}),
        rate(learning_rates={"encoder": 0.01}),
        "keeps .*: lr = 0.02, not 0.01",
    ),
    "momentum": (
        rate(optimizer=lambda p: SGD(p, lr=0.1, momentum=0.9)),
        rate(optimizer=lambda p: SGD(p, lr=0.1, momentum=0.8)),
        "keeps .*: momentum = 0.9, not 0.8",
    ),
    "schedule": (
        rate(schedule="linear"),
        rate(schedule="cosine", warmup_steps=1),
        "optimization.schedule = 'cosine', was 'linear'; optimization.warmup_steps = 1, was 0",
    ),
    "scheduler": (
        rate(scheduler=lambda o: StepLR(o, 10)),
        rate(scheduler=lambda o: StepLR(o, 20)),
        "keeps .*: step_size = 10, not 20",
    ),
    "function of a scheduler": (
        rate(scheduler=follow(0.5)),
        rate(scheduler=follow(0.25)),
        "schedulers.model.lr_lambdas.0.decay = 0.25, was 0.5",
    ),
    "early stopping": (
        {"callbacks": [EarlyStopping(patience=3)]},
        {"callbacks": [EarlyStopping(patience=4)]},
        "callbacks.EarlyStopping.patience = 4, was 3",
    ),
    "column of early stopping": (
        {"callbacks": [EarlyStopping()]},
        {"callbacks": [EarlyStopping("validation/loss")]},
        "callbacks.EarlyStopping.monitor.column = 'validation/loss', was 'validation/elbo_nats'",
    ),
    "callback": (
        {"callbacks": [Annealed(1.0)]},
        {"callbacks": [Annealed(2.0)]},
        "callbacks.Annealed.rate = 2.0, was 1.0",
    ),
    "recording": ({}, {"record_every": 2}, "record_every = 2, was 4"),
}


@pytest.mark.parametrize(("before", "after", "words"), CHANGES.values(), ids=CHANGES)
def test_resume_warns_of_a_changed_setting_with_both_values(before, after, words, tmp_path):
    start(tmp_path, **before)
    with pytest.warns(UserWarning, match=words) as record:
        start(tmp_path, **after)
    assert len(record) == 1


def test_resume_names_all_changes_in_one_warning(tmp_path):
    start(tmp_path)
    with pytest.warns(UserWarning, match="changed since its checkpoint") as record:
        start(tmp_path, OTHER, objective=IWAE(3), transform=flip)
    (warning,) = record
    for words in ("objective = IWAE, was ELBO; ", "data.values.checksum = ", "; transform = flip"):
        assert words in str(warning.message)


# Changes that are none ----------------------------------------------------------------------------


def masked():
    return np.ma.masked_array(DATA.numpy(), mask=np.zeros(DATA.shape, bool))


SAME = {
    "nothing": ({}, {}),
    "number of another type": (
        {"objective": ELBO(beta=1)},
        {"objective": ELBO(beta=np.float32(1.0))},
    ),
    "array": ({}, {"data": DATA.numpy()}),
    "dtype": ({}, {"data": DATA.double()}),
    "bytes": ({}, {"data": DATA.to(torch.uint8)}),
    "table": ({}, {"data": pd.DataFrame(DATA.numpy())}),
    "masked array": ({}, {"data": masked()}),
    "a tuple": ({}, {"data": (DATA,)}),
    "TensorDataset": ({}, {"data": TensorDataset(DATA)}),
    "Dataset": ({}, {"data": Rows(DATA)}),
    "workers": ({"data": Rows(DATA)}, {"data": Rows(DATA), "workers": 2}),
    "workers of a Dataset with data": (
        {"data": Stored(DATA)},
        {"data": Stored(DATA), "workers": 2},
    ),
    "attributes that fail": ({"data": Opaque(DATA)}, {"data": Opaque(DATA), "workers": 1}),
    "random items": ({"data": Moody(DATA)}, {"data": Moody(DATA)}),
    "loader": (
        {"data": loader(shuffle=True, generator=torch.Generator().manual_seed(1))},
        {"data": loader(shuffle=True, generator=torch.Generator().manual_seed(2))},
    ),
    "workers of a loader": ({"data": loader()}, {"data": loader(num_workers=1)}),
    "rounding": (
        {"data": DATA - 0.3, "model": make_model(partial(GaussianLikelihood, 0.5))},
        {"data": DATA - 0.3 - 1e-7, "model": make_model(partial(GaussianLikelihood, 0.5))},
    ),
    "transform": ({"transform": Roll(1)}, {"transform": Roll(1)}),
    "closure": ({"transform": rolled(1)}, {"transform": rolled(1)}),
    "partial": (
        {"transform": partial(roll, by=1)},
        {"transform": partial(roll, by=1)},
    ),
    "function": ({"transform": lambda x, _: x}, {"transform": lambda x, _: x}),
    "configuration that a function refers to": (
        {"transform": configured(Experiment(2, "cpu"))},
        {"transform": configured(Experiment(3, "cuda:0"))},
    ),
    "configuration with a method": (
        {"transform": Experiment(2, "cpu").roll},
        {"transform": Experiment(3, "cuda:0").roll},
    ),
    "configuration in a transform": (
        {"transform": Configured(Experiment(2, "cpu"))},
        {"transform": Configured(Experiment(3, "cuda:0"))},
    ),
    "counter": ({"transform": counting(0)}, {"transform": counting(5)}),
    "rounding of a scale": (
        {"model": make_model(partial(GaussianLikelihood, 0.5))},
        {"model": make_model(partial(GaussianLikelihood, 0.5 + 1e-7))},
    ),
    "cache": ({"data": Cached(DATA, 0.0)}, {"data": Cached(DATA, 1.0)}),
    "callback without a state": ({"callbacks": [Callback()]}, {"callbacks": []}),
    "text of a callback": (
        {"callbacks": [Annealed(1.0, "a")]},
        {"callbacks": [Annealed(1.0, "b")]},
    ),
    "optimizer": (
        rate(optimizer=lambda p: Adam(p, lr=0.1)),
        rate(optimizer=lambda p: Adam(p, lr=0.1)),
    ),
    "scheduler": (
        rate(scheduler=lambda o: StepLR(o, 10)),
        rate(scheduler=lambda o: StepLR(o, 10)),
    ),
    "schedule": (
        {"objective": ELBO(beta=Linear(0.0, 1.0, steps=3))},
        {"objective": ELBO(beta=Linear(0.0, 1.0, steps=3))},
    ),
}


@pytest.mark.parametrize(("before", "after"), SAME.values(), ids=SAME)
def test_resume_does_not_warn_of_the_same_settings(before, after, tmp_path):
    start(tmp_path, **before)
    start(tmp_path, **after)  # warnings are errors


def test_second_fit_of_a_trainer_does_not_warn_of_changes(tmp_path):
    trainer = start(tmp_path)
    trainer.optimization = Optimization(0.5, clip_norm=1.0)
    trainer.fit(OTHER, epochs=1, batch_size=9, transform=flip, resume="auto")


SCRIPT = """
import sys, torch
from functools import partial
from helpers.training import DATA, After, binary, flip, raises
from helpers.runs import make_mlp_vae
from tinyvae import ELBO, Checkpoint, EarlyStopping, Optimization, Trainer
from tinyvae.schedules import Linear

folder, step, seed = sys.argv[1], int(sys.argv[2]), {"a", "b", "c"}
torch.rand(int(sys.argv[2]))
class Choice:
    def __init__(self, scale):
        self.factor, self.device, self.names = scale, torch.device("cpu"), {"x", "y", "z"}
        self.weights = dict.fromkeys({"x", "y", "z"}, 1.0)
        self.function, self.calls = lambda x: x in {"a", "b", "c"} or self, [object()]
    def __call__(self, x, generator):
        self.calls.append(x)
        return flip(x, generator)
def pick(batch, kinds=frozenset({"u", "v", "w"})):
    return batch[0] if "a" in {"a", "b", "c", "d"} else batch[1]
objective = ELBO(beta=Linear(0.0, 1.0, fraction=0.8))
optimization = Optimization(
    optimizer=lambda p: torch.optim.AdamW(p, lr=0.01),
    scheduler=lambda o, total: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total),
    scheduler_interval="step",
)
callbacks = [Checkpoint(folder, every_steps=1), EarlyStopping(patience=9)]
if step:
    callbacks.append(After(step, raises(KeyboardInterrupt())))
trainer = Trainer(make_mlp_vae(), objective, optimization, callbacks=callbacks, progress=False)
data = torch.utils.data.TensorDataset(DATA, torch.arange(37))
trainer.fit(data, data, epochs=2, batch_size=8, batch=pick, transform=Choice(2.0), resume="auto")
"""


@pytest.mark.slow
def test_resume_of_the_same_program_in_another_process_does_not_warn(tmp_path):
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    (tmp_path / "program.py").write_text(SCRIPT)
    for hash_seed, step in (("1", "3"), ("2", "7"), ("3", "0")):
        child = subprocess.run(
            [sys.executable, "-W", "error", tmp_path / "program.py", tmp_path / "run", step],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
        )  # fmt: skip
        assert "Warning" not in child.stderr
        assert ("KeyboardInterrupt" in child.stderr) == (step != "0"), child.stderr


# Within an epoch ----------------------------------------------------------------------------------


def within(tmp_path, **settings):
    """Leave a run in a folder that has made two steps."""
    start(tmp_path / "complete", **settings)
    (tmp_path / "run").mkdir()
    shutil.copy(checkpoint_of(tmp_path / "complete", 2), tmp_path / "run")
    return tmp_path / "run"


def test_resume_within_an_epoch_refuses_another_batch_size_and_order(tmp_path):
    folder = within(tmp_path)
    for settings, words in (
        (
            {"batch_size": 9},
            r"training data.batch_size = 8 in the epoch in which it stopped, got 9: give",
        ),
        (
            {"data": loader()},
            r"training data.order = that of fit in the epoch in which it stopped, got that of a",
        ),
    ):
        model = make_model()
        with pytest.raises(ValueError, match=words):
            start(folder, model=model, **settings)
        assert model.training  # nothing has changed


def test_resume_within_an_epoch_warns_of_other_changes_and_continues(tmp_path):
    folder = within(tmp_path)
    with pytest.warns(UserWarning, match=r"objective.beta = 4.0, was 1.0"):
        trainer = start(folder, objective=ELBO(beta=4.0))
    assert trainer.step == STEPS


def test_resume_reads_a_checkpoint_without_settings(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("tinyvae.training.preparation.describe_run", lambda *_, **__: {})
        start(tmp_path)
    assert load_checkpoint(checkpoint_of(tmp_path, STEPS))["identity"] == {}
    start(tmp_path, OTHER, objective=IWAE(3))


@pytest.mark.parametrize("identity", [{1: 2}, {"a": torch.ones(2)}, {"a": ["b"]}, {"a": {"b": 1}}])
def test_resume_refuses_settings_of_other_kinds(identity, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("tinyvae.training.preparation.describe_run", lambda *_, **__: identity)
        start(tmp_path)
    with pytest.raises(CheckpointError, match="'identity' has values that are no settings"):
        start(tmp_path)


# Settings of objects ------------------------------------------------------------------------------


@posix
def test_checksum_reads_a_part_of_a_large_array_only(tmp_path):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(10**6, 10**5))  # 400 GB of holes
    assert checksum(x) == [0.0] * 17


def test_checksum_reads_every_number_of_small_data():
    expected = checksum(DATA)
    for index in range(DATA.numel()):
        x = DATA.clone()
        x.view(-1)[index] = 1 - x.view(-1)[index]
        assert differences({"x": checksum(x)}, {"x": expected})


def test_checksum_depends_on_missing_entries():
    x = DATA.clone()
    x[3, 1] = torch.nan
    masked = np.ma.masked_array(DATA.numpy(), mask=x.isnan().numpy())
    assert checksum(masked) == checksum(x) != checksum(DATA)


def test_settings_skip_an_object_that_fails():
    class Broken:
        __slots__ = ()

        def __call__(self):
            pass

        def __repr__(self):
            raise RuntimeError("planted")

    assert settings_of({"a": 1, "b": Broken()}, "x") == {"x": "{a, b}", "x.a": 1}


def test_settings_have_no_addresses_and_no_circle():
    owner = nn.Linear(2, 2)
    owner.twin = [object(), lambda: owner, owner.forward, torch.Generator()]
    owner.itself = partial(print, owner)
    settings = settings_of(owner, "owner")
    assert "0x" not in repr(settings)
    assert settings["owner.in_features"] == 2


def test_settings_of_many_objects_are_few():
    node = Roll(1)
    for _ in range(50):  # 2**50 paths
        node = Roll([node, node])
    assert len(settings_of(node, "x")) < 300
    assert settings_of({f"{n}": n for n in range(1000)}, "x") == {"x": "1000 items"}
    assert len(settings_of(range(10**12), "x")["x.checksum"]) == 17


def test_differences_do_not_count_settings_of_other_versions():
    now = {"a": "Linear", "a.size": 1, "a.new": 2, "b": "Tanh", "b.inplace": True}
    before = {"a": "Linear", "a.size": 2, "a.old": 3, "b": "ReLU", "b.inplace": False}
    assert differences(now, before) == ["a.size", "b"]
