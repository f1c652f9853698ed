"""Rows of a long history are in a file that only grows: resumed, torn, damaged, missing, copied."""

import hashlib
import io
import json
import shutil

import pytest
import torch
from helpers.runs import (
    AUTO,
    END,
    checkpoint_of,
    contents,
    digest,
    epochs_in,
    fit,
    load_newest,
    make_mlp_vae,
    steps_in,
)
from helpers.training import After, raises, same
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvae import ELBO, Callback, Checkpoint, History, Trainer
from tinyvae.training.checkpoints import history_file
from tinyvae.training.checkpoints.directory import load_checkpoint
from tinyvae.training.checkpoints.history_file import BLOCK_ROWS, HistoryFile, with_earlier_rows
from tinyvae.training.rows import Block, Rows, encode_block, read_block, read_line


def trainer_of(folder, *callbacks, **options):
    checkpoint = Checkpoint(folder, **{"every_minutes": None, **options})
    return Trainer(
        make_mlp_vae(),
        ELBO(),
        callbacks=[checkpoint, *callbacks],
        record_every=1,
        device="cpu",
        progress=False,
    )


@pytest.fixture
def _short_blocks(monkeypatch):
    """Let a block hold three rows, so that short runs have many."""
    monkeypatch.setattr(history_file, "BLOCK_ROWS", 3)


@pytest.fixture
def complete(_short_blocks, tmp_path):
    """An uninterrupted run with a checkpoint of each step: its folder and its digest."""
    folder = tmp_path / "complete"
    return folder, digest(fit(trainer_of(folder, every_steps=1, keep=99)))


# Numbers ------------------------------------------------------------------------------------------

NUMBERS = st.floats() | st.integers(-(2**63), 2**63 - 1) | st.booleans()
COLUMNS = st.dictionaries(st.text(), NUMBERS, max_size=3)
STEP = st.fixed_dictionaries({"step": st.integers(0, 2**40)})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(COLUMNS, STEP, COLUMNS)), st.integers(0, 3))
def test_blocks_round_trip_is_bitwise(parts, num_epochs):
    rows = [{**first, **step, **last} for first, step, last in parts]
    epochs = [{"epoch": i, "time_seconds": -0.0, **row} for i, row in enumerate(rows[:num_epochs])]
    previous = Block(7, "digest", 1, 2)
    file = io.BytesIO(encode_block(Rows(epochs, rows), previous)[0])
    restored, address = read_block(read_line(file)[0], file)
    assert repr(restored) == repr(Rows(epochs, rows))  # also types, orders, NaN and -0.0
    assert address == previous
    assert file.read() == b""


def test_blocks_hold_the_bits_of_a_nan():
    (nan,) = torch.tensor([0x7FF8_0000_0000_1234]).view(torch.float64).tolist()
    file = io.BytesIO(encode_block(Rows([], [{"step": 1, "loss": nan}]), None)[0])
    restored, _ = read_block(read_line(file)[0], file)
    bits = torch.tensor([restored.updates[0]["loss"]], dtype=torch.float64).view(torch.int64)
    assert bits.item() == 0x7FF8_0000_0000_1234


def test_blocks_name_a_column_that_is_not_a_number():
    with pytest.raises(TypeError, match="expects numbers in column 'loss', got a str"):
        encode_block(Rows([], [{"step": 1, "loss": "low"}]), None)


def test_history_refuses_an_integer_beyond_64_bits(tmp_path):
    class Large(Callback):
        def on_epoch_end(self, state, row):
            row["large"] = 2**63

    with pytest.raises(TypeError, match="expects a number in column 'large', got 9223372036854"):
        fit(trainer_of(tmp_path, Large()))


# Growth -------------------------------------------------------------------------------------------


def test_checkpoint_writes_as_much_after_many_updates_as_after_few(tmp_path):
    sizes = {}
    for count in (0, 1, 7, 40):
        folder = tmp_path / f"{count}"
        trainer = fit(trainer_of(folder, every_steps=1), epochs=1)
        row = trainer.history.updates[-1]
        trainer.history.updates[:0] = [dict(row) for _ in range(count * BLOCK_ROWS)]
        fit(trainer, epochs=1)
        first, last = (checkpoint_of(folder, step).stat().st_size for step in steps_in(folder))
        assert 0 < last - first < 500  # the row of an update
        sizes[count] = last
        again = fit(trainer_of(folder, every_steps=1), **AUTO)
        assert again.history.updates == trainer.history.updates
        assert len(again.history.updates) == count * BLOCK_ROWS + END
    assert max(sizes.values()) - min(sizes.values()) < 500  # the address of a block


def test_history_file_gets_each_row_once(complete, tmp_path):
    folder, _ = complete
    blocks = (folder / "history.bin").read_bytes().count(b'{"previous":')
    assert blocks == (END + 2) // 3  # updates and epochs
    before = contents(folder)["history.bin"]
    fit(trainer_of(folder), **AUTO)
    assert contents(folder)["history.bin"] == before


def test_short_history_needs_no_file(tmp_path):
    fit(trainer_of(tmp_path))
    assert not (tmp_path / "history.bin").exists()


# Resuming -----------------------------------------------------------------------------------------


def test_resume_of_a_checkpoint_restores_its_rows(complete, tmp_path):
    for step in steps_in(complete[0])[::2]:
        folder = shutil.copytree(complete[0], tmp_path / f"{step}")
        trainer = fit(trainer_of(folder), resume=checkpoint_of(folder, step))
        assert digest(trainer) == complete[1]
        trainer = fit(trainer_of(tmp_path / f"other {step}"), resume=checkpoint_of(folder, step))
        assert digest(trainer) == complete[1]
        again = fit(trainer_of(tmp_path / f"other {step}"), **AUTO)
        assert digest(again) == complete[1]


def test_resume_of_an_archived_checkpoint_restores_its_rows(complete, tmp_path):
    folder, expected = complete
    fit(trainer_of(folder), resume=checkpoint_of(folder, 3))
    for step in range(4, END):
        archived = folder / f"step-{step:08d}.replaced"
        trainer = fit(trainer_of(tmp_path / f"{step}"), resume=archived)
        assert digest(trainer) == expected


def test_resume_at_each_step_adds_each_row_once(complete, tmp_path):
    folder = tmp_path / "run"
    for step in range(1, END):
        crash = After(step + 1, raises(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            fit(trainer_of(folder, crash, every_steps=1), **AUTO)
        with (folder / "history.bin").open("ab") as file:
            file.write(b'{"previous":')  # a kill has torn a block
    assert digest(fit(trainer_of(folder), **AUTO)) == complete[1]
    blocks = (folder / "history.bin").read_bytes().count(b'"sha256":"')
    assert blocks == (END + 2) // 3


@pytest.mark.usefixtures("_short_blocks")
def test_second_fit_continues_in_its_file_and_in_a_new_folder(tmp_path):
    trainer = fit(trainer_of(tmp_path / "first"))
    fit(trainer)
    trainer.callbacks = [Checkpoint(tmp_path / "second")]
    fit(trainer)
    again = fit(trainer_of(tmp_path / "second"), epochs=6, **AUTO)
    assert again.history.updates == trainer.history.updates
    assert again.history.epochs == trainer.history.epochs


@pytest.mark.usefixtures("_short_blocks")
def test_resume_restores_only_rows_that_were_not_removed(tmp_path):
    clear = After(6, lambda state: state.history.updates.clear())
    trainer = fit(trainer_of(tmp_path, clear, every_steps=1))
    assert [row["step"] for row in trainer.history.updates] == list(range(7, END + 1))
    again = fit(trainer_of(tmp_path), **AUTO)
    assert again.history.updates == trainer.history.updates
    assert again.history.epochs == trainer.history.epochs


# Damage -------------------------------------------------------------------------------------------


def cut(file):
    file.write_bytes(file.read_bytes()[:-9])


def flip(position):
    def change(file):
        data = bytearray(file.read_bytes())
        data[position % len(data)] ^= 1
        file.write_bytes(data)

    return change


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut": cut,
    "first digest": flip(40),
    "first number": flip(400),
    "last number": flip(-1),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_resume_with_a_damaged_history_continues_with_the_later_rows(case, complete, tmp_path):
    folder = shutil.copytree(complete[0], tmp_path / "run")
    file, start = folder / "history.bin", b'{"previous":'
    file.write_bytes(start.join(file.read_bytes().split(start)[:3]))  # the blocks of step 7
    DAMAGES[case](file)
    lines = (folder / "history.jsonl").read_text()
    message = r"without its first \d+ epochs and \d+ recorded updates, .*history\.bin: .*"
    with pytest.warns(UserWarning, match=message) as record:
        trainer = fit(trainer_of(folder, every_steps=1), resume=checkpoint_of(folder, 7))
    assert len(record) == 1
    assert record[0].filename == fit.__code__.co_filename  # the call of fit
    assert trainer.step == END
    assert same(trainer.model, load_checkpoint(checkpoint_of(complete[0], END))["model"])
    steps = [row["step"] for row in trainer.history.updates]
    assert steps == list(range(steps[0], END + 1))
    assert 1 < steps[0] <= 7
    if 1 not in trainer.history["epoch"]:
        assert (folder / "history.replaced").read_text() == lines
    again = fit(trainer_of(folder), **AUTO)  # without a warning
    assert again.history.updates == trainer.history.updates


def test_resume_of_a_copied_checkpoint_warns_that_rows_are_missing(complete, tmp_path):
    shutil.copy(checkpoint_of(complete[0], 7), tmp_path)
    with pytest.warns(UserWarning, match=r"put the history\.bin of the run's folder next to"):
        trainer = fit(trainer_of(tmp_path / "run"), resume=checkpoint_of(tmp_path, 7))
    assert same(trainer.model, load_newest(complete[0])["model"])
    assert epochs_in(tmp_path / "run") == [2]


def test_history_without_its_earlier_rows_saves_the_later_ones(complete):
    first, second = History(), History()
    first.load_state_dict(load_checkpoint(checkpoint_of(complete[0], 7))["history"])
    second.load_state_dict(first.state_dict())
    assert second.updates == first.updates
    assert [row["step"] for row in second.updates] == [6, 7]


def sealed(form, body):
    """Return a block with any line, and the address of it."""
    line = json.dumps(form).encode() + b"\n"
    digest_of_line = read_line(io.BytesIO(line))[1]
    return line + body, Block(0, digest_of_line, 1, 1)


BODY = bytes(16)  # two numbers
USUAL = {"previous": None, "epochs": [], "updates": [], "sha256": hashlib.sha256(BODY).hexdigest()}
FORGED = {
    "numbers of another digest": {**USUAL, "updates": [[{"step": "q"}, 1]]},
    "not an object": [],
    "another key": {**USUAL, "more": 1},
    "table is a number": {**USUAL, "epochs": 3},
    "run is a number": {**USUAL, "epochs": [3]},
    "columns are a list": {**USUAL, "updates": [[["step"], 0]]},
    "no step": {**USUAL, "updates": [[{"loss": "d"}, 2]]},
    "no time": {**USUAL, "epochs": [[{"epoch": "q", "step": "q"}, 1]]},
    "unknown kind": {**USUAL, "updates": [[{"step": "object"}, 2]]},
    "no rows": {**USUAL, "updates": [[{"step": "q"}, 0]]},
    "rows below zero": {**USUAL, "updates": [[{"step": "q"}, -1]]},
    "more rows than bytes": {**USUAL, "updates": [[{"step": "q"}, 2**50]]},
    "rows as a fraction": {**USUAL, "updates": [[{"step": "q"}, 0.5]]},
    "previous is a number": {**USUAL, "updates": [[{"step": "q"}, 2]], "previous": 3},
    "previous before the file": {
        **USUAL,
        "updates": [[{"step": "q"}, 2]],
        "previous": {"offset": -1, "digest": "", "epochs": 0, "updates": 0},
    },
}


@pytest.mark.parametrize("case", FORGED)
def test_resume_refuses_forged_blocks(case, complete, tmp_path):
    block, address = sealed(FORGED[case], BODY)
    (tmp_path / "history.bin").write_bytes(block)
    with pytest.warns(UserWarning, match="without its first 1 epochs and 1 recorded updates"):
        assert HistoryFile(tmp_path).read(address) == Rows()
    state = load_newest(complete[0])
    state["history"]["rows"] = torch.tensor(list(block), dtype=torch.uint8)
    state = with_earlier_rows(state, tmp_path / "step")
    with pytest.raises(ValueError, match=r"expected|damaged|cut off"):
        History().load_state_dict(state["history"])


def test_history_file_refuses_a_block_before_its_previous_one(tmp_path):
    def read_two(offset, next_offset):
        data, line_digest = encode_block(Rows([], [{"step": 1}]), None)
        first = Block(offset, line_digest, 0, 1)
        next_data, line_digest = encode_block(Rows([], [{"step": 2}]), first)
        blocks = {offset: data, next_offset: next_data}
        (tmp_path / "history.bin").write_bytes(blocks[0].ljust(500) + blocks[500])
        return HistoryFile(tmp_path).read(Block(next_offset, line_digest, 0, 2)).updates

    assert read_two(0, 500) == [{"step": 1}, {"step": 2}]
    with pytest.warns(UserWarning, match="a block follows the next one"):
        assert read_two(500, 0) == [{"step": 2}]
