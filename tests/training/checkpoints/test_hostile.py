"""Checkpoints that are damaged or forged are refused before anything of a run has changed.

A checkpoint with a correct digest may hold anything. What is not of the make of the run's own state
is a CheckpointError; what is may hold other numbers, and the run goes on with them.
"""

import copy
import hashlib
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
from helpers.training import BATCH_SIZE, DATA, make_vae
from torch.utils.data import DataLoader

from tinyvae import ELBO, Callback, Checkpoint, EarlyStopping, Optimization, Trainer
from tinyvae.errors import CheckpointError
from tinyvae.io import encode_state, load_tensors, save_tensors
from tinyvae.schedules import Linear
from tinyvae.training.checkpoints.directory import load_checkpoint

# The runs that go on have no Checkpoint, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:the checkpoint has state for callbacks")

IS_SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
MUTATIONS = 100_000 if IS_SOAK else 300
EPOCHS, STEP = 3, 7  # a checkpoint within the second epoch
MEGABYTES = 200


class Began(Exception):
    """The run was about to go on from the checkpoint."""


class Gate(Callback):
    """Lets no run go on, for a step from a forged state may break the process."""

    is_open = False

    def on_safe_point(self, trainer, *, last):
        if not self.is_open:
            raise Began


def loader():
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


def written(folder, train=DATA):
    fit(trainer_of(Checkpoint(folder, every_steps=1, every_minutes=None, keep=99)), train)
    return folder / f"step-{STEP:08d}.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A checkpoint as a run writes it."""
    return written(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def sound_of_loader(tmp_path_factory):
    """A checkpoint of a run whose data are a DataLoader with a generator."""
    return written(tmp_path_factory.mktemp("run"), loader())


def forge(file, state, into):
    """A checkpoint with the description of ``file`` and another state, by the library's writer."""
    form, tensors = encode_state(state, "state")
    info = {**load_tensors(file)[1], "state": form}
    save_tensors(into, tensors, info)
    return into


def parts(file):
    """Header and body of a file."""
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def sealed(header, body):
    """A file with a correct digest around any header."""
    header["__metadata__"] |= {"sha256": "0" * 64}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = len(text).to_bytes(8, "little") + text + body
    key = b'"sha256":"'
    digest = hashlib.sha256(data).hexdigest().encode()
    return data.replace(key + b"0" * 64, key + digest, 1)


def peak():
    """Most memory that the process has had, in megabytes."""
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def weights_of(trainer):
    modules = (trainer.model, trainer.objective)
    return [t.clone() for module in modules for t in module.state_dict().values()]


def assert_refused(trainer, path, train=DATA):
    """Refused by a CheckpointError, in little memory, and with nothing changed."""
    before, random_state = weights_of(trainer), torch.get_rng_state()
    memory = peak()
    with pytest.raises(CheckpointError) as caught:
        fit(trainer, train, resume=path)
    assert peak() - memory < MEGABYTES
    assert len(str(caught.value)) < 1000 + len(str(path))
    assert all(map(torch.equal, before, weights_of(trainer)))
    assert torch.equal(random_state, torch.get_rng_state())
    assert (trainer.step, trainer.epoch, len(trainer.history)) == (0, 0, 0)


# The controls -------------------------------------------------------------------------------------


def test_the_sound_checkpoint_goes_on(sound):
    trainer = trainer_of()
    assert fit(trainer, resume=sound)["epoch"] == [1, 2, 3]
    with pytest.raises(Began):
        fit(trainer_of(Gate()), resume=sound)


def test_a_state_that_was_rewritten_unchanged_goes_on(sound, tmp_path):
    forged = forge(sound, load_checkpoint(sound), tmp_path / "f")
    with pytest.raises(Began):
        fit(trainer_of(Gate()), resume=forged)
    header, body = parts(sound)
    forged.write_bytes(sealed(header, body))
    assert forged.read_bytes() == sound.read_bytes()


def test_after_a_refusal_a_run_can_begin(sound, tmp_path):
    state = load_checkpoint(sound)
    del state["position"]
    trainer = trainer_of()
    assert_refused(trainer, forge(sound, state, tmp_path / "f"))
    other = trainer_of()
    assert fit(trainer)["train/loss"] == fit(other)["train/loss"]


def test_after_a_refusal_the_sound_checkpoint_goes_on(sound, tmp_path):
    state = load_checkpoint(sound)
    state["optimizers"]["model"]["state"][0]["exp_avg"] = torch.zeros(1)
    gate = Gate()
    trainer = trainer_of(gate)
    assert_refused(trainer, forge(sound, state, tmp_path / "f"))
    gate.is_open = True
    assert fit(trainer, resume=sound)["train/loss"] == fit(trainer_of(), resume=sound)["train/loss"]


# Damage -------------------------------------------------------------------------------------------


def test_a_thousand_flipped_bits_are_found(sound, tmp_path):
    data = sound.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    bits = random.Random(0).sample(range(len(data) * 8), 1000)
    assert 100 < sum(bit < 8 * end for bit in bits) < 900  # header and tensors
    file = tmp_path / sound.name
    for bit in [*bits, *range(64)]:  # and each bit of the length field
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        file.unlink(missing_ok=True)
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=re.escape(str(file))):
            load_checkpoint(file)


# Files --------------------------------------------------------------------------------------------


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
        header, body = parts(file)
        header["model.encoder.head.bias"]["shape"] = [count]
        return sealed(header, body)

    return write


def of_version(version):
    def write(file, folder):
        header, body = parts(file)
        header["__metadata__"]["format_version"] = version
        return sealed(header, body)

    return write


def with_info(old, new):
    def write(file, folder):
        header, body = parts(file)
        info = header["__metadata__"]["info"]
        assert info.count(old) == 1
        header["__metadata__"]["info"] = info.replace(old, new)
        return sealed(header, body)

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
    "state is a word": with_info('"state":', '"state":"model","estate":'),
    "state is a list": with_info('"state":', '"state":[],"estate":'),
    "a tensor that is not there": with_info('"rng.cpu"', '"rng.cpV"'),
    "a part twice": with_info('["fingerprint",', '["fingerprint",null],["fingerprint",'),
    **{f"{depth} levels": nested(depth) for depth in (900, 100_000)},
}


@pytest.mark.parametrize("case", FILES)
def test_a_hostile_file_is_refused_and_not_executed(case, sound, tmp_path):
    file = tmp_path / "f"
    file.write_bytes(FILES[case](sound, tmp_path))
    assert_refused(trainer_of(Gate()), file)
    assert not (tmp_path / "executed").exists()


def test_the_trap_of_these_tests_works(tmp_path):
    pickle.loads(payload(tmp_path))
    assert (tmp_path / "executed").exists()


def test_tensors_that_are_a_pickle_are_not_executed(sound, tmp_path):
    state = load_checkpoint(sound)
    state["history"]["rows"] = torch.frombuffer(bytearray(payload(tmp_path)), dtype=torch.uint8)
    assert_refused(trainer_of(Gate()), forge(sound, state, tmp_path / "f"))
    assert not (tmp_path / "executed").exists()


# States -------------------------------------------------------------------------------------------


def put(value, *path):
    """A change of a state: the value at a path."""

    def change(state):
        for key in path[:-1]:
            state = state[key]
        assert isinstance(state, list) or path[-1] in state
        state[path[-1]] = value

    return change


def add(value, *path):
    """A change of a state: another value, where there was none."""

    def change(state):
        for key in path[:-1]:
            state = state[key]
        assert path[-1] not in state
        state[path[-1]] = value

    return change


def drop(*path):
    """A change of a state: nothing at a path."""

    def change(state):
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


def rows(value):
    """A change of a state: other bytes as history."""
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
    "version is a word": put("1", "state_version"),
    "seed missing": drop("fingerprint", "seed"),
    "threads are a tensor": put(RNG, "mode", "threads"),
    "fast path is a word": put("fast", "mode", "resolved_speed"),
    "fast path of an unknown kind": add("x", "mode", "resolved_speed", "kernel"),
    "fast path of an unknown product": put("mkl", "mode", "resolved_speed", "matmul"),
    "weight of another shape": put(torch.zeros(5), *WEIGHT),
    "weight of another dtype": put(torch.zeros(4, dtype=torch.int64), *WEIGHT),
    "weight too many": add(torch.zeros(1), "model", "_metadata"),
    "weight too few": drop(*WEIGHT),
    "buffer of another shape": put(torch.zeros(2), "objective", "beta"),
    **{
        f"step is {value!r:.20}": put(value, "position", "step")
        for value in ("1", None, -1, 1.5, True, 10**30, torch.ones(()))
    },
    "batch beyond the epoch": put(6, "position", "batch"),
    "seconds are not a number": put(math.nan, "position", "seconds"),
    "plan that starts after its position": put(2, "plan", "start_epoch"),
    "plan without the length of schedules": put(None, "plan", "schedule_steps"),
    "rng of another dtype": put(RNG.float(), "rng", "cpu"),
    "rng too short": put(RNG[:-1], "rng", "cpu"),
    "optimizer of another name": add({}, "optimizers", "other"),
    "optimizer without state": drop("optimizers", "model", "state"),
    "optimizer of a group too many": put([{}, {}], "optimizers", "model", "param_groups"),
    "group of other parameters": put([0] * 8, *GROUP, "params"),
    "rate is a tensor": put(torch.zeros(3), *GROUP, "lr"),
    "option too many": add(True, *GROUP, "post_hook"),
    "moment of another shape": put(torch.zeros(1), *FIRST, "exp_avg"),
    "moment of more elements": put(torch.zeros(99, 99), *FIRST, "exp_avg_sq"),
    "moment missing": drop(*FIRST, "exp_avg_sq"),
    "moments of a parameter missing": drop(*FIRST),
    "scheduler with another method": add("x", "schedulers", "model", "step"),
    "scheduler at a word": put("x", "schedulers", "model", "last_epoch"),
    "callback with a value missing": drop(*EARLY, "best"),
    "callback with other weights": put({"x": torch.zeros(1)}, *EARLY, "best_weights"),
    "reason is a number": put(3, "history", "stop_reason"),
    "rows are no JSON": rows(b"\x00\xff{]"),
    "rows of epochs are numbers": rows({"epochs": [1, 2], "updates": []}),
    "rows are deep": rows(b'{"epochs":[],"updates":' + b"[" * 10**5 + b"]" * 10**5 + b"}"),
}


@pytest.mark.parametrize("case", STATES)
@pytest.mark.filterwarnings("ignore:the run continues, but not bitwise")
@pytest.mark.filterwarnings("ignore:the run was begun for")
def test_a_forged_state_is_refused_before_anything_changes(case, sound, tmp_path):
    state = load_checkpoint(sound)
    STATES[case](state)
    assert_refused(trainer_of(Gate()), forge(sound, state, tmp_path / "f"))


LOADERS = {
    "missing": {},
    "none": {"generators": [], "loader": None},
    "two": {"generators": [RNG, RNG], "loader": None},
    "a word": {"generators": "x", "loader": None},
    "words": {"generators": ["x"], "loader": None},
    "of another dtype": {"generators": [RNG.float()], "loader": None},
    "too short": {"generators": [RNG[:-8]], "loader": None},
}


@pytest.mark.filterwarnings("ignore:the data cannot restore their position")
@pytest.mark.parametrize("case", LOADERS)
def test_forged_generators_of_a_loader_are_refused(case, sound_of_loader, tmp_path):
    with pytest.raises(Began):
        fit(trainer_of(Gate()), loader(), resume=sound_of_loader)
    state = load_checkpoint(sound_of_loader)
    state["data"] = LOADERS[case]
    assert_refused(trainer_of(Gate()), forge(sound_of_loader, state, tmp_path / "f"), loader())


def test_in_a_folder_a_forged_state_is_refused_and_stays_there(sound, tmp_path):
    state = load_checkpoint(sound)
    del state["plan"]
    file = forge(sound, state, tmp_path / sound.name)
    data = file.read_bytes()
    assert_refused(trainer_of(Gate(), Checkpoint(tmp_path)), "auto")
    assert file.read_bytes() == data


# Mutations ----------------------------------------------------------------------------------------

WORDS = ["null", "true", "-1", "0", "1e30", "9" * 30, "[]", '""', '"x"', "{}", '{"dict":[]}']
WORDS += ['{"float":"nan"}', '{"tuple":[]}', '{"tensor":"rng.cpu"}', "1.5", "[" * 500]
VALUE = re.compile(r'-?\d[\d.e+-]*|true|false|null|"[^"]*"|\[\]|\{"tensor":"[^"]*"\}')


def mutated(text, source):
    """Text with one to three bytes, values or spans changed."""
    for _ in range(source.choice([1, 1, 2, 3])):
        start = source.randrange(len(text))
        end = min(start + source.choice([1, 1, 2, 8, 60]), len(text))
        match source.randrange(6):
            case 0:  # a byte
                text = text[:start] + chr(source.randrange(256)) + text[start + 1 :]
            case 1:  # a span less
                text = text[:start] + text[end:]
            case 2:  # a span twice
                text = text[:end] + text[start:end] + text[end:]
            case 3 | 4:  # a value by a word
                if found := VALUE.search(text, start):
                    text = text[: found.start()] + source.choice(WORDS) + text[found.end() :]
            case 5:  # a value by another
                one, two = (
                    VALUE.search(text, start),
                    VALUE.search(text, source.randrange(len(text))),
                )
                if one and two:
                    text = text[: one.start()] + two[0] + text[one.end() :]
    return text


@pytest.mark.filterwarnings("ignore")
def test_a_mutated_state_is_refused_or_goes_on(sound, tmp_path):
    header, body = parts(sound)
    info = header["__metadata__"]["info"]
    state = info.index('"state"')
    source = random.Random(None if IS_SOAK else 0)
    file, trainer, ends, wrong = tmp_path / "f", trainer_of(Gate()), {}, {}
    for _ in range(MUTATIONS):
        forged = copy.deepcopy(header)
        text = info[:state] + mutated(info[state:], source)
        forged["__metadata__"]["info"] = text
        file.unlink(missing_ok=True)
        file.write_bytes(sealed(forged, body))
        before = weights_of(trainer)
        end = outcome(trainer, file)
        ends[end] = ends.get(end, 0) + 1
        if end not in ("refused", "another run", "went on"):
            wrong.setdefault(end, difference(info, text))
        elif end != "went on" and not all(map(torch.equal, before, weights_of(trainer))):
            wrong.setdefault(f"{end}, but changed", difference(info, text))
        if end not in ("refused", "another run"):
            trainer = trainer_of(Gate())
    assert wrong == {}
    assert ends["refused"] > MUTATIONS / 10
    assert ends["went on"] > MUTATIONS / 100


def outcome(trainer, file):
    """What became of a run that was to go on from a file."""
    try:
        fit(trainer, resume=file)
    except CheckpointError:
        return "refused"
    except Began:
        return "went on"
    except ValueError as error:
        is_said = str(error).startswith("the checkpoint's run had")
        return "another run" if is_said else f"ValueError: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ended"


def difference(old, new):
    """Where two texts differ, with a little around."""
    pairs = enumerate(zip(old, new, strict=False))
    start = next((i for i, (a, b) in pairs if a != b), 0)
    return f"{old[max(start - 40, 0) : start + 20]} -> {new[max(start - 40, 0) : start + 20]}"
