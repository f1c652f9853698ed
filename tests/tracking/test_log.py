"""A log mirrors the history of a run, in every tracker, also after a resumption."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tinyvae
from tinyvae import ELBO, VAE, BernoulliLikelihood, Callback, Checkpoint, EarlyStopping, Trainer
from tinyvae.errors import NonFiniteError
from tinyvae.schedules import Linear
from tinyvae.tracking import (
    CSVWriter,
    JSONLinesWriter,
    Log,
    MLflowWriter,
    TensorBoardWriter,
    TrackioWriter,
    WandbWriter,
    Writer,
    image_figures,
)

X = (torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()
TIMES = ("time_seconds", "examples_per_second")


class MemoryWriter(Writer):
    def __init__(self):
        self.values, self.images, self.texts, self.calls = [], [], {}, []
        self.fails_at = None

    def open(self, run_id, settings, step, *, resume):
        self.calls.append(("open", run_id, step, resume))
        self.settings = settings
        return {}

    def write(self, values, step):
        if self.fails_at is not None and step >= self.fails_at:
            raise ConnectionError("the server is gone")
        self.values.append((step, values))

    def write_image(self, name, pixels, step):
        self.images.append((name, step, pixels.shape))

    def write_text(self, name, text):
        self.texts[name] = text

    def close(self):
        self.calls.append("close")


class FailAt(Callback):
    """Error after an update that no checkpoint saves."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, state, output):
        if state.step == self.step:
            raise NonFiniteError("planted")


def run(writer, *callbacks, epochs=4, resume=None, log=None, **options):
    torch.manual_seed(0)
    vae = VAE.from_shapes((1, 4, 4), latent_dim=2, likelihood=BernoulliLikelihood())
    log = Log(writer, **options) if log is None else log
    trainer = Trainer(
        vae,
        ELBO(beta=Linear(0.0, 1.0, fraction=0.5)),
        callbacks=[log, *callbacks],
        record_every=2,
        progress=False,
    )
    trainer.fit(X, X, epochs=epochs, batch_size=16, resume=resume)
    return trainer


def evaluated(model):
    return tinyvae.evaluate(model, X, progress=False)


# What is logged -----------------------------------------------------------------------------------


def test_log_has_rows_settings_figures_and_report():
    writer = MemoryWriter()
    trainer = run(
        writer,
        figures=image_figures(X[:4]),
        figure_epochs=3,
        report=evaluated,
        settings={"note": "a"},
    )
    history = trainer.history
    rows = [{n: v for n, v in row.items() if n != "step"} for row in history.epochs]
    assert [values for _, values in writer.values if "epoch" in values] == rows
    assert {"train/kl_nats", "train/beta", "validation/elbo_nats", "learning_rate"} <= rows[
        0
    ].keys()
    assert all(row["examples_per_second"] > 0 for row in rows)
    updates = [(s, v["update/loss"]) for s, v in writer.values if "update/loss" in v]
    assert updates == [(row["step"], row["loss"]) for row in history.updates]
    assert len(updates) == 8
    steps = [step for step, _ in writer.values]
    assert steps == sorted(steps)
    assert [step for name, step, _ in writer.images if name == "samples"] == [0, 12, 16]
    assert all(len(shape) == 3 and shape[2] == 3 for *_, shape in writer.images)
    assert writer.settings["objective.beta"] != ""
    assert writer.settings["optimizers.model.lr"] == 1e-3
    assert writer.settings["model.encoder.latent_dim"] == 2
    assert writer.settings["note"] == "a"
    assert writer.texts["model"].startswith("VAE of data (1, 4, 4)")
    report = evaluated(trainer.model)
    assert writer.values[-1] == (
        16,
        {f"report/{name}_nats": e.mean for name, e in report.estimates().items()},
    )
    assert writer.texts["report"] == str(report)
    assert writer.calls[-1] == "close"


def test_log_changes_no_result():
    with_log = run(MemoryWriter(), figures=image_figures(X[:4]), figure_epochs=1)
    without = run(None, log=Callback())
    for name, value in with_log.model.state_dict().items():
        assert torch.equal(value, without.model.state_dict()[name])


def test_second_fit_continues_the_log():
    writer = MemoryWriter()
    trainer = run(writer, epochs=1)
    trainer.fit(X, X, epochs=1, batch_size=16)
    (_, run_id, _, first), (_, again, step, second) = writer.calls[0], writer.calls[2]
    assert (run_id, first, second, step) == (again, False, True, 4)


def test_log_throughput_counts_training_examples(monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("tinyvae.tracking.log.time.monotonic", lambda: next(clock))
    history = run(MemoryWriter(), epochs=2).history
    assert history["examples_per_second"] == [6.4, 6.4]  # 10 s from the start to the validation


# Failures -----------------------------------------------------------------------------------------


def test_failing_writer_warns_once_and_run_continues():
    writer = MemoryWriter()
    writer.fails_at = 6
    with pytest.warns(UserWarning, match="MemoryWriter failed: ConnectionError: the server") as w:
        trainer = run(writer, figures=image_figures(X[:4]), report=evaluated)
    assert len(w) == 1
    assert trainer.epoch == 4
    assert max(step for step, _ in writer.values) == 4
    assert "report" not in writer.texts


def test_report_needs_log_before_callbacks_that_end_later():
    writer = MemoryWriter()
    late = Log(writer, report=evaluated)
    with pytest.raises(ValueError, match=r"before EarlyStopping.*callbacks=\[Log"):
        run(None, late, log=EarlyStopping())
    trainer = run(writer, EarlyStopping(patience=1, min_delta=100.0), report=evaluated)
    assert trainer.history.stop_reason
    assert writer.texts["report"] == str(evaluated(trainer.model))  # of the restored weights


def test_report_is_not_written_after_an_error():
    writer = MemoryWriter()
    with pytest.raises(NonFiniteError):
        run(writer, FailAt(6), report=evaluated)
    assert "report" not in writer.texts
    assert writer.calls[-1] == "close"


@pytest.mark.parametrize("make", [CSVWriter, JSONLinesWriter])
def test_new_run_refuses_the_folder_of_another(make, tmp_path):
    run(make(tmp_path), epochs=1)
    with pytest.raises(FileExistsError, match="give another folder"):
        run(make(tmp_path), epochs=1)


def test_log_refuses_what_is_no_writer():
    with pytest.raises(TypeError, match="Log expects a Writer, got 'runs'"):
        Log("runs")
    with pytest.raises(ValueError, match="figure_epochs"):
        Log(MemoryWriter(), figure_epochs=0)


def test_log_refuses_a_damaged_state():
    with pytest.raises(TypeError, match="identifier"):
        Log(MemoryWriter()).check_state(None, {"run_id": 3})


# Every tracker ------------------------------------------------------------------------------------


def read_csv(folder):
    with (folder / "run" / "metrics.csv").open() as file:
        rows = [
            {name: float(cell) for name, cell in row.items() if cell}
            for row in csv.DictReader(file)
        ]
    return by_name(rows)


def read_json_lines(folder):
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return by_name([json.loads(line) for line in lines])


def by_name(rows):
    values = {}
    for row in rows:
        for name in row.keys() - {"step"}:
            values.setdefault(name, []).append((row["step"], row[name]))
    return values


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "run"), size_guidance={"scalars": 0})
    events.Reload()
    assert {"model/text_summary", "settings/text_summary"} <= set(events.Tags()["tensors"])
    names = events.Tags()["scalars"]
    values = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in names}
    return values | {n: [(e.step, None) for e in events.Images(n)] for n in ("samples",)}


def read_mlflow(folder):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["optimizers.model.lr"] == "0.001"
    texts = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert {"model.txt", "report.txt"} <= texts
    history = {n: client.get_metric_history(found.info.run_id, n) for n in found.data.metrics}
    return {n: sorted((m.step, m.value) for m in metrics) for n, metrics in history.items()}


def read_wandb(folder):
    from wandb.proto.wandb_internal_pb2 import Record

    path = sorted(folder.glob("run/wandb/offline-run-*/*.wandb"))[-1]
    rows = []
    for data in wandb_records(path.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            rows.append({"step": record.history.step.num, **row})
    return by_name(rows)


def wandb_records(data):
    """Yield the records of a file in the format of LevelDB's log."""
    position, record = 7, b""
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        length, kind = (
            int.from_bytes(data[position + 4 : position + 6], "little"),
            data[position + 6],
        )
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""


def read_trackio(folder):
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("e")
    logs = SQLiteStorage.get_logs("e", name)
    return by_name([{n: v for n, v in row.items() if n != "timestamp"} for row in logs])


TRACKERS = {
    "csv": ("csv", lambda folder: CSVWriter(folder / "run"), read_csv),
    "json_lines": ("json", lambda folder: JSONLinesWriter(folder / "run"), read_json_lines),
    "tensorboard": (
        "tensorboard",
        lambda folder: TensorBoardWriter(folder / "run"),
        read_tensorboard,
    ),
    "mlflow": (
        "mlflow",
        lambda folder: MLflowWriter("e", tracking_uri=f"sqlite:///{folder}/mlflow.db"),
        read_mlflow,
    ),
    "wandb": ("wandb", lambda folder: WandbWriter("e", folder=folder / "run"), read_wandb),
    "trackio": ("trackio", lambda _: TrackioWriter("e"), read_trackio),
}


@pytest.mark.filterwarnings("default")  # trackers have warnings of their own
@pytest.mark.parametrize("tracker", TRACKERS)
def test_resumed_run_has_each_row_once(tracker, tmp_path, monkeypatch):
    package, make, read = TRACKERS[tracker]
    if package == "trackio":
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # read when trackio is imported
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    options = {"figures": image_figures(X[:4]), "figure_epochs": 2, "report": evaluated}
    with pytest.raises(NonFiniteError):
        run(make(tmp_path), FailAt(13), Checkpoint(tmp_path / "c", every_steps=5), **options)
    run(make(tmp_path), Checkpoint(tmp_path / "c"), resume="auto", **options)

    expected, reference = MemoryWriter(), {}
    run(expected, **options)
    for step, row in expected.values:
        for name, value in row.items():
            reference.setdefault(name, []).append((step, value))
    logged = read(tmp_path)
    assert reference.keys() <= logged.keys()
    for name, values in reference.items():
        assert [step for step, _ in logged[name]] == [step for step, _ in values], name
        if name not in TIMES:
            pairs = zip(logged[name], values, strict=True)
            assert all(math.isclose(a, b, rel_tol=1e-6) for (_, a), (_, b) in pairs), name
    if "samples" in logged:  # an offline folder of wandb starts again
        steps = [16] if tracker == "wandb" else [0, 8, 16]
        assert sorted(step for step, _ in logged["samples"]) == steps


SCRIPT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from tracking.test_log import *

class Kill(Callback):
    def on_step_end(self, state, output):
        if state.step == 13:
            os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[2])
run(CSVWriter(folder / "run"), Kill(), Checkpoint(folder / "c", every_steps=5))
"""


@pytest.mark.slow
def test_killed_run_has_each_row_once(tmp_path):
    arguments = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[1]), str(tmp_path)]
    child = subprocess.run(arguments, env=os.environ | {"MPLCONFIGDIR": str(tmp_path)})
    assert child.returncode == -signal.SIGKILL
    with (tmp_path / "run" / "metrics.csv").open("a") as file:
        file.write("14,43.1")  # a torn line
    trainer = run(CSVWriter(tmp_path / "run"), Checkpoint(tmp_path / "c"), resume="auto")
    logged = read_csv(tmp_path)
    assert logged["epoch"] == [(4, 1), (8, 2), (12, 3), (16, 4)]
    assert [step for step, _ in logged["update/loss"]] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert [value for _, value in logged["train/loss"]] == trainer.history["train/loss"]
