"""Versions of the state in a checkpoint: newer, older, with more fields, with fewer."""

import pytest
from helpers.runs import AUTO, checkpoint_of, digest, fit, forge_checkpoint, trainer_of
from helpers.training import STEPS

import tinyvae.training.checkpoints.compatibility
import tinyvae.training.state
from tinyvae.errors import CheckpointError
from tinyvae.training.checkpoints.compatibility import ADDED, FIELDS, upgrade
from tinyvae.training.checkpoints.directory import load_checkpoint
from tinyvae.training.state import STATE_VERSION

STEP = STEPS + 2


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A complete run: its folder with a checkpoint per step, and its digest."""
    folder = tmp_path_factory.mktemp("run")
    return folder, digest(fit(trainer_of(folder, every_steps=1, keep=99)))


def forged_run(complete, folder, change):
    """Put a changed checkpoint into a new folder."""
    folder.mkdir()
    file = checkpoint_of(complete[0], STEP)
    state = load_checkpoint(file)
    change(state)
    return forge_checkpoint(file, state, checkpoint_of(folder, STEP))


def set_version(monkeypatch, version, **migrations):
    """Raise the version of the state, with migrations ``from_1``, ``from_2`` and so on."""
    functions = {int(name.removeprefix("from_")): f for name, f in migrations.items()}
    for module in (tinyvae.training.checkpoints.compatibility, tinyvae.training.state):
        monkeypatch.setattr(module, "STATE_VERSION", version)
        monkeypatch.setattr(module, "MIGRATIONS", functions)


def test_resume_refuses_a_newer_state_version_by_name(complete, tmp_path):
    newer = STATE_VERSION + 1
    file = forged_run(complete, tmp_path / "run", lambda s: s.update(state_version=newer))
    trainer = trainer_of(tmp_path / "other")
    message = rf"{file.name}: .*version {newer}, .* up to {STATE_VERSION}: upgrade tinyvae"
    with pytest.raises(CheckpointError, match=message):
        fit(trainer, resume=file)
    assert trainer.step == 0


def test_resume_migrates_an_older_state_version_bitwise(complete, tmp_path, monkeypatch):
    """In version 2 "place" becomes "position", in version 3 "means" become "running_means"."""

    def make_old(state):
        state["place"], state["means"] = state.pop("position"), state.pop("running_means")

    def to_2(state):
        versions.append(1)
        return {"position" if name == "place" else name: part for name, part in state.items()}

    def to_3(state):
        versions.append(2)
        assert "place" not in state
        return {"running_means" if name == "means" else name: p for name, p in state.items()}

    versions = []
    file = forged_run(complete, tmp_path / "run", make_old)
    with pytest.raises(CheckpointError, match=r"expected 'position' with .*'epoch'"):
        load_checkpoint(file)
    set_version(monkeypatch, 3, from_1=to_2, from_2=to_3)
    trainer = fit(trainer_of(tmp_path / "run", every_steps=1, keep=99), **AUTO)
    assert versions == [1, 2]
    assert digest(trainer) == complete[1]
    newest = load_checkpoint(checkpoint_of(tmp_path / "run", STEP + 1))
    assert newest["state_version"] == 3
    assert versions == [1, 2]  # a new file needs no migration


def test_resume_ignores_an_unknown_field_with_a_warning_bitwise(complete, tmp_path):
    forged_run(complete, tmp_path / "run", lambda s: s.update(ema={"decay": 0.9}, notes={}))
    with pytest.warns(UserWarning, match=r"unknown fields \['ema', 'notes'\]: they are ignored"):
        trainer = fit(trainer_of(tmp_path / "run"), **AUTO)
    assert digest(trainer) == complete[1]


def test_resume_ignores_an_unknown_entry_of_a_field_with_a_warning_bitwise(complete, tmp_path):
    def add_entries(state):
        state["plan"]["world"] = "two"
        state["position"]["part"] = [1]

    forged_run(complete, tmp_path / "run", add_entries)
    with pytest.warns(UserWarning, match=r"unknown fields \['plan.world', 'position.part'\]"):
        trainer = fit(trainer_of(tmp_path / "run"), **AUTO)
    assert digest(trainer) == complete[1]


def test_resume_refuses_a_missing_field_by_name(complete, tmp_path):
    for index, name in enumerate(FIELDS.keys() - {*ADDED}):
        file = forged_run(complete, tmp_path / f"{index}", lambda s, name=name: s.pop(name))
        trainer = trainer_of(tmp_path / "other")
        with pytest.raises(CheckpointError, match=f"{file.name}: expected '{name}' with"):
            fit(trainer, resume=file)
        assert trainer.step == 0


def test_upgrade_refuses_missing_and_invalid_entries_by_name(complete):
    file = checkpoint_of(complete[0], STEP)
    for name, entries in FIELDS.items():
        for key in entries:
            state = load_checkpoint(file)
            del state[name][key]
            if key == "processes":  # earlier versions trained in one
                assert upgrade(state)[name][key] == 1
                continue
            with pytest.raises(CheckpointError, match=f"expected '{name}' with .*'{key}'"):
                upgrade(state)
            state[name][key] = b"bytes"
            with pytest.raises(CheckpointError, match=rf"field '{name}\.{key}' has an invalid"):
                upgrade(state)


def test_upgrade_refuses_what_is_not_a_versioned_state(complete):
    with pytest.raises(CheckpointError, match="expected a dictionary as state, got a list"):
        upgrade([])
    state = load_checkpoint(checkpoint_of(complete[0], STEP))
    for version in (None, "1", 0, -1, 1.0):
        with pytest.raises(CheckpointError, match="expected state_version as an integer >= 1"):
            upgrade({**state, "state_version": version})
