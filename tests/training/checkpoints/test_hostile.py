"""Damaged and forged checkpoints are refused before the run changes.

A checkpoint with a correct digest may hold anything. A state whose structure differs from that of
the run is a CheckpointError. A state of the same structure may hold other numbers, and the run
continues with them.
"""

import copy
import io
import json
import math
import os
import pickle
import random
import re
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.forgeries import seal, split_file
from helpers.runs import forge_checkpoint
from helpers.training import BATCH_SIZE, DATA, make_vae
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from tinyvae import ELBO, Callback, Checkpoint, EarlyStopping, Optimization, Trainer
from tinyvae.errors import CheckpointError
from tinyvae.schedules import Linear
from tinyvae.training.checkpoints.directory import load_checkpoint

# The resumed runs have no Checkpoint, and a warning says so.
pytestmark = pytest.mark.filterwarnings("ignore:the checkpoint has state for callbacks")

IS_SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
MUTATIONS = 100_000 if IS_SOAK else 300
FLIPS = 5_000 if IS_SOAK else 1_000
EPOCHS, STEP = 3, 7  # a checkpoint within the second epoch
MEGABYTES = 200


class Continued(Exception):
    """The run was about to continue from the checkpoint."""


class Gate(Callback):
    """Stops a run before its first step: a step from a forged state may crash the process."""

    is_open = False

    def on_safe_point(self, state, *, last):
        if not self.is_open:
            raise Continued


def make_loader():
    generator = torch.Generator().manual_seed(3)
    return DataLoader(DATA, BATCH_SIZE, shuffle=True, generator=generator)


def trainer_of(*callbacks, **options):
    optimization = Optimization(0.02, schedule="cosine")
    callbacks = [*callbacks, EarlyStopping(patience=9)]
    objective = ELBO(beta=Linear(0.0, 1.0, fraction=0.8))
    options = {"callbacks": callbacks, "progress": False, "device": "cpu", **options}
    return Trainer(make_vae(), objective, optimization, **options)


def fit(trainer, train=DATA, **options):
    return trainer.fit(train, DATA, epochs=EPOCHS, batch_size=BATCH_SIZE, **options)


def write_checkpoint(folder, train=DATA):
    fit(trainer_of(Checkpoint(folder, every_steps=1, every_minutes=None, keep=99)), train)
    return folder / f"step-{STEP:08d}.safetensors"


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """A checkpoint as a run writes it."""
    return write_checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def valid_of_loader(tmp_path_factory):
    """A checkpoint of a run whose data are a DataLoader with a generator."""
    return write_checkpoint(tmp_path_factory.mktemp("run"), make_loader())


def peak_memory():
    """Return the peak memory of the process in megabytes."""
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def weights_of(trainer):
    modules = (trainer.model, trainer.objective)
    return [t.clone() for module in modules for t in module.state_dict().values()]


def assert_refused(trainer, path, train=DATA):
    """Assert that resuming raises a CheckpointError, takes little memory and changes nothing."""
    before, random_state = weights_of(trainer), torch.get_rng_state()
    memory = peak_memory()
    with pytest.raises(CheckpointError) as caught:
        fit(trainer, train, resume=path)
    assert peak_memory() - memory < MEGABYTES
    assert len(str(caught.value)) < 1000 + len(str(path))
    assert all(map(torch.equal, before, weights_of(trainer)))
    assert torch.equal(random_state, torch.get_rng_state())
    assert (trainer.step, trainer.epoch, len(trainer.history)) == (0, 0, 0)


# Controls ----------------------------------------------------------------------------------------


def test_resume_continues_from_a_valid_checkpoint(valid):
    trainer = trainer_of()
    assert fit(trainer, resume=valid)["epoch"] == [1, 2, 3]
    with pytest.raises(Continued):
        fit(trainer_of(Gate()), resume=valid)


def test_resume_continues_from_a_rewritten_checkpoint(valid, tmp_path):
    forged = forge_checkpoint(valid, load_checkpoint(valid), tmp_path / "f")
    with pytest.raises(Continued):
        fit(trainer_of(Gate()), resume=forged)
    header, body = split_file(valid)
    forged.write_bytes(seal(header, body))
    assert forged.read_bytes() == valid.read_bytes()


def test_fit_starts_a_run_after_a_refused_checkpoint(valid, tmp_path):
    state = load_checkpoint(valid)
    del state["position"]
    trainer = trainer_of()
    assert_refused(trainer, forge_checkpoint(valid, state, tmp_path / "f"))
    other = trainer_of()
    assert fit(trainer)["train/loss"] == fit(other)["train/loss"]


def test_resume_continues_after_a_refused_checkpoint(valid, tmp_path):
    state = load_checkpoint(valid)
    state["optimizers"]["model"]["state"][0]["exp_avg"] = torch.zeros(1)
    gate = Gate()
    trainer = trainer_of(gate)
    assert_refused(trainer, forge_checkpoint(valid, state, tmp_path / "f"))
    gate.is_open = True
    assert fit(trainer, resume=valid)["train/loss"] == fit(trainer_of(), resume=valid)["train/loss"]


# Damage ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_load_checkpoint_detects_flipped_bits(valid, tmp_path):
    data = valid.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    bits = random.Random(0).sample(range(len(data) * 8), FLIPS)
    assert 0.1 < sum(bit < 8 * end for bit in bits) / FLIPS < 0.9  # header and tensors
    file = tmp_path / valid.name
    for bit in [*bits, *range(64)]:  # and each bit of the length field
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        file.unlink(missing_ok=True)
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=re.escape(str(file))):
            load_checkpoint(file)


# Files -------------------------------------------------------------------------------------------


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def payload(folder):
    return pickle.dumps(Trap(folder / "executed"))


def saved_by_torch(file, folder):
    buffer = io.BytesIO()
    torch.save({"state": Trap(folder / "executed")}, buffer)
    return buffer.getvalue()


def zip_bomb(file, folder):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", payload(folder))
        archive.writestr("archive/data/0", bytes(300 * 2**20))
    return buffer.getvalue()


def claiming(count):
    def write(file, folder):
        header, body = split_file(file)
        header["model.encoder.head.bias"]["shape"] = [count]
        return seal(header, body)

    return write


def of_version(version):
    def write(file, folder):
        header, body = split_file(file)
        header["__metadata__"]["format_version"] = version
        return seal(header, body)

    return write


def with_info(old, new):
    def write(file, folder):
        header, body = split_file(file)
        info = header["__metadata__"]["info"]
        assert info.count(old) == 1
        header["__metadata__"]["info"] = info.replace(old, new)
        return seal(header, body)

    return write


def nested(depth):
    return with_info(
        '["fingerprint",', '["fingerprints",' + "[" * depth + "]" * depth + '],["fingerprint",'
    )


FILES = {
    "empty": lambda *_: b"",
    "pickle": lambda _, folder: payload(folder),
    "saved by torch": saved_by_torch,
    "zip bomb": zip_bomb,
    "a model": lambda file, _: file.with_name("model.safetensors").read_bytes(),
    "a tensor of 10^9 elements": claiming(10**9),
    "a tensor of 2^62 elements": claiming(2**62),
    "future version": of_version("2"),
    "no state": with_info('"state":', '"estate":'),
    "state is a string": with_info('"state":', '"state":"model","estate":'),
    "state is a list": with_info('"state":', '"state":[],"estate":'),
    "a missing tensor": with_info('"rng.cpu"', '"rng.cpV"'),
    "a part twice": with_info('["fingerprint",', '["fingerprint",null],["fingerprint",'),
    **{f"{depth} levels": nested(depth) for depth in (2_000, 100_000)},
}


@pytest.mark.parametrize("case", FILES)
def test_resume_refuses_a_hostile_file_without_executing_it(case, valid, tmp_path):
    file = tmp_path / "f"
    file.write_bytes(FILES[case](valid, tmp_path))
    assert_refused(trainer_of(Gate()), file)
    assert not (tmp_path / "executed").exists()


def test_trap_of_these_tests_executes_code(tmp_path):
    pickle.loads(payload(tmp_path))
    assert (tmp_path / "executed").exists()


def test_resume_does_not_execute_a_pickle_in_tensors(valid, tmp_path):
    state = load_checkpoint(valid)
    state["history"]["rows"] = torch.frombuffer(bytearray(payload(tmp_path)), dtype=torch.uint8)
    assert_refused(trainer_of(Gate()), forge_checkpoint(valid, state, tmp_path / "f"))
    assert not (tmp_path / "executed").exists()


# States ------------------------------------------------------------------------------------------


def put(value, *path):
    """Return a change of a state: another value at a path."""

    def change(state):
        for key in path[:-1]:
            state = state[key]
        assert isinstance(state, list) or path[-1] in state
        state[path[-1]] = value

    return change


def add(value, *path):
    """Return a change of a state: a value at a new path."""

    def change(state):
        for key in path[:-1]:
            state = state[key]
        assert path[-1] not in state
        state[path[-1]] = value

    return change


def drop(*path):
    """Return a change of a state: no value at a path."""

    def change(state):
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


def put_rows(value):
    """Return a change of a state: other bytes as history."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return put(torch.tensor(list(data), dtype=torch.uint8), "history", "rows")


RNG = torch.get_rng_state()
PARTS = ["fingerprint", "mode", "plan", "position", "model", "objective", "optimizers"]
PARTS += ["schedulers", "callbacks", "history", "running_means", "rng", "data"]
FIRST = ("optimizers", "model", "state", 0)
GROUP = ("optimizers", "model", "param_groups", 0)
EARLY = ("callbacks", "EarlyStopping")
WEIGHT = ("model", "encoder.head.bias")
STATES = {
    **{f"{part} missing": drop(part) for part in PARTS},
    "a part is a list": put([], "optimizers"),
    "version missing": drop("state_version"),
    "version of the future": put(99, "state_version"),
    "version is a string": put("1", "state_version"),
    "seed missing": drop("fingerprint", "seed"),
    "threads are a tensor": put(RNG, "mode", "threads"),
    "fast path is a string": put("fast", "mode", "resolved_speed"),
    "fast path of an unknown kind": add("x", "mode", "resolved_speed", "kernel"),
    "fast path of an unknown product": put("mkl", "mode", "resolved_speed", "matmul"),
    "weight of another shape": put(torch.zeros(5), *WEIGHT),
    "weight of another dtype": put(torch.zeros(4, dtype=torch.int64), *WEIGHT),
    "extra weight": add(torch.zeros(1), "model", "_metadata"),
    "weight missing": drop(*WEIGHT),
    "buffer of another shape": put(torch.zeros(2), "objective", "beta.value"),
    **{
        f"step is {value!r:.20}": put(value, "position", "step")
        for value in ("1", None, -1, 1.5, True, 10**30, torch.ones(()))
    },
    "batch beyond the epoch": put(6, "position", "batch"),
    "seconds are not a number": put(math.nan, "position", "seconds"),
    "plan that starts after its position": put(2, "plan", "start_epoch"),
    "plan of no epochs": put(0, "plan", "scheduled_epochs"),
    "plan without the length of schedules": put(None, "plan", "schedule_steps"),
    "rng of another dtype": put(RNG.float(), "rng", "cpu"),
    "rng too short": put(RNG[:-1], "rng", "cpu"),
    "optimizer of another name": add({}, "optimizers", "other"),
    "optimizer without state": drop("optimizers", "model", "state"),
    "optimizer with another number of groups": put([{}, {}], "optimizers", "model", "param_groups"),
    "group of other parameters": put([0] * 8, *GROUP, "params"),
    "rate is a tensor": put(torch.zeros(3), *GROUP, "lr"),
    "option of another kind": put("x", *GROUP, "foreach"),
    "extra option": add(True, *GROUP, "post_hook"),
    "moment of another shape": put(torch.zeros(1), *FIRST, "exp_avg"),
    "moment of more elements": put(torch.zeros(99, 99), *FIRST, "exp_avg_sq"),
    "moment missing": drop(*FIRST, "exp_avg_sq"),
    "moments of a parameter missing": drop(*FIRST),
    "scheduler with another method": add("x", "schedulers", "model", "step"),
    "scheduler at a string": put("x", "schedulers", "model", "last_epoch"),
    "scheduler at a huge number": put(10**400, "schedulers", "model", "last_epoch"),
    "callback with a value missing": drop(*EARLY, "best"),
    "callback with other weights": put({"x": torch.zeros(1)}, *EARLY, "best_weights"),
    "callback with weights of another dtype": lambda state: state["callbacks"][
        "EarlyStopping"
    ].update(best_weights={name: t.long() for name, t in state["model"].items()}),
    "reason is a number": put(3, "history", "stop_reason"),
    "rows are not JSON": put_rows(b"\x00\xff{]"),
    "rows of epochs are numbers": put_rows({"epochs": [1, 2], "updates": []}),
    "rows are deeply nested": put_rows(
        b'{"epochs":[],"updates":' + b"[" * 10**5 + b"]" * 10**5 + b"}"
    ),
}


@pytest.mark.parametrize("case", STATES)
@pytest.mark.filterwarnings("ignore:the run continues, but not bitwise")
@pytest.mark.filterwarnings("ignore:the run was begun for")
def test_resume_refuses_a_forged_state_before_anything_changes(case, valid, tmp_path):
    state = load_checkpoint(valid)
    STATES[case](state)
    assert_refused(trainer_of(Gate()), forge_checkpoint(valid, state, tmp_path / "f"))


def test_resume_refuses_other_texts_of_a_scheduler_of_torch(tmp_path):
    def trainer(*callbacks):
        optimization = Optimization(
            scheduler=lambda o, total: OneCycleLR(o, 0.1, total), scheduler_interval="step"
        )
        return Trainer(make_vae(), ELBO(), optimization, callbacks=callbacks, progress=False)

    fit(trainer(Checkpoint(tmp_path, every_steps=1, every_minutes=None, keep=99)))
    valid = tmp_path / f"step-{STEP:08d}.safetensors"
    state = load_checkpoint(valid)
    put("cubic", "schedulers", "model", "_anneal_func_type")(state)
    assert_refused(trainer(), forge_checkpoint(valid, state, tmp_path / "f"))


def test_resume_refuses_means_of_another_objective(valid, tmp_path):
    state = load_checkpoint(valid)
    totals = state["running_means"]["totals"]
    totals["other"] = totals.pop("loss")
    trainer = trainer_of()
    with pytest.raises(ValueError, match=r"run had means of .*'other'.*the same objective"):
        fit(trainer, resume=forge_checkpoint(valid, state, tmp_path / "f"))


LOADERS = {
    "missing": {},
    "none": {"generators": [], "loader": None},
    "two": {"generators": [RNG, RNG], "loader": None},
    "a string": {"generators": "x", "loader": None},
    "strings": {"generators": ["x"], "loader": None},
    "of another dtype": {"generators": [RNG.float()], "loader": None},
    "too short": {"generators": [RNG[:-8]], "loader": None},
}


@pytest.mark.filterwarnings("ignore:the data cannot restore their position")
@pytest.mark.parametrize("case", LOADERS)
def test_resume_refuses_forged_generators_of_a_loader(case, valid_of_loader, tmp_path):
    with pytest.raises(Continued):
        fit(trainer_of(Gate()), make_loader(), resume=valid_of_loader)
    state = load_checkpoint(valid_of_loader)
    state["data"] = LOADERS[case]
    assert_refused(
        trainer_of(Gate()), forge_checkpoint(valid_of_loader, state, tmp_path / "f"), make_loader()
    )


def test_resume_refuses_a_forged_state_in_a_folder_and_keeps_the_file(valid, tmp_path):
    state = load_checkpoint(valid)
    del state["plan"]
    file = forge_checkpoint(valid, state, tmp_path / valid.name)
    data = file.read_bytes()
    assert_refused(trainer_of(Gate(), Checkpoint(tmp_path)), "auto")
    assert file.read_bytes() == data


# Mutations ---------------------------------------------------------------------------------------

WORDS = ["null", "true", "-1", "0", "1e30", "9" * 30, "[]", '""', '"x"', "{}", '{"dict":[]}']
WORDS += ['{"float":"nan"}', '{"tuple":[]}', '{"tensor":"rng.cpu"}', "1.5", "[" * 500]
VALUE = re.compile(r'-?\d[\d.e+-]*|true|false|null|"[^"]*"|\[\]|\{"tensor":"[^"]*"\}')


def mutate(text, source):
    """Return the text with one to three bytes, values or spans changed."""
    for _ in range(source.choice([1, 1, 2, 3])):
        start = source.randrange(len(text))
        end = min(start + source.choice([1, 1, 2, 8, 60]), len(text))
        match source.randrange(6):
            case 0:  # a byte
                text = text[:start] + chr(source.randrange(256)) + text[start + 1 :]
            case 1:  # a missing span
                text = text[:start] + text[end:]
            case 2:  # a repeated span
                text = text[:end] + text[start:end] + text[end:]
            case 3 | 4:  # a word in place of a value
                if match := VALUE.search(text, start):
                    text = text[: match.start()] + source.choice(WORDS) + text[match.end() :]
            case 5:  # another value in place of a value
                one = VALUE.search(text, start)
                two = VALUE.search(text, source.randrange(len(text)))
                if one and two:
                    text = text[: one.start()] + two[0] + text[one.end() :]
    return text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_resume_refuses_a_mutated_state_or_continues(valid, tmp_path):
    header, body = split_file(valid)
    info = header["__metadata__"]["info"]
    state = info.index('"state"')
    source = random.Random(None if IS_SOAK else 0)
    file, trainer, ends, wrong = tmp_path / "f", trainer_of(Gate()), {}, {}
    for _ in range(MUTATIONS):
        forged = copy.deepcopy(header)
        text = info[:state] + mutate(info[state:], source)
        forged["__metadata__"]["info"] = text
        file.unlink(missing_ok=True)
        file.write_bytes(seal(forged, body))
        before = weights_of(trainer)
        end = resume_outcome(trainer, file)
        ends[end] = ends.get(end, 0) + 1
        if end not in ("refused", "another run", "continued"):
            wrong.setdefault(end, difference(info, text))
        elif end != "continued" and not all(map(torch.equal, before, weights_of(trainer))):
            wrong.setdefault(f"{end}, but changed", difference(info, text))
        if end not in ("refused", "another run"):
            trainer = trainer_of(Gate())
    assert wrong == {}
    assert ends["refused"] > MUTATIONS / 10
    assert ends["continued"] > MUTATIONS / 100


def resume_outcome(trainer, file):
    """Resume a run from a file, and return how that ended."""
    try:
        fit(trainer, resume=file)
    except CheckpointError:
        return "refused"
    except Continued:
        return "continued"
    except ValueError as error:
        is_refused = str(error).startswith("the checkpoint's run had")
        return "another run" if is_refused else f"ValueError: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ended"


def difference(old, new):
    """Return the first difference of two texts with some context."""
    pairs = enumerate(zip(old, new, strict=False))
    start = next((i for i, (a, b) in pairs if a != b), 0)
    return f"{old[max(start - 40, 0) : start + 20]} -> {new[max(start - 40, 0) : start + 20]}"
