import json
import math

import pytest
import torch
from helpers.training import DATA, STEPS, After, LeastSquares, make_linear, make_vae, run

from tinyvae import ELBO, History
from tinyvae.core import ObjectiveOutput
from tinyvae.training.history import named_values
from tinyvae.training.running_mean import RunningMean


@pytest.fixture
def history():
    """Return a history of three epochs, the last one without validation."""
    history = History()
    for epoch in (1, 2, 3):
        row = {"epoch": epoch, "train/elbo_nats": -10.0 / epoch, "train/loss": 10.0 / epoch}
        history.epochs.append(row | ({"validation/elbo_nats": -20.0 / epoch} if epoch < 3 else {}))
    history.updates.append({"step": 5, "loss": 0.1})
    history.stop_reason = "enough"
    return history


def outputs(*values):
    return [ObjectiveOutput({"model": torch.tensor(v)}, {}) for v in values]


# Rows of a run -----------------------------------------------------------------------------------


def test_history_columns_of_a_run():
    trainer = run(make_vae(), ELBO(), DATA, DATA, epochs=3)
    terms = ["loss", "elbo_nats", "log_likelihood_nats", "kl_nats"]
    assert list(trainer.history.epochs[0]) == [
        "epoch",
        "step",
        "learning_rate",
        *(f"train/{term}" for term in terms),
        *(f"validation/{term}" for term in terms),
        "time_seconds",
    ]
    assert trainer.history["epoch"] == [1, 2, 3]
    assert trainer.history["step"] == [STEPS, 2 * STEPS, 3 * STEPS]
    assert [*trainer.history] == trainer.history.epochs
    assert len(trainer.history) == 3
    assert trainer.history.updates == []
    for row in trainer.history:
        for part in ("train", "validation"):
            assert row[f"{part}/loss"] == -row[f"{part}/elbo_nats"]


def test_history_records_every_nth_update():
    every, third = (
        run(make_linear(), LeastSquares(), record_every=n).history.updates for n in (1, 3)
    )
    assert [row["step"] for row in every] == list(range(1, 2 * STEPS + 1))
    assert third == every[2::3]
    assert list(third[0]) == ["step", "loss", "error_nats"]


def test_history_records_the_loss_of_each_step():
    history = run(make_linear(), LeastSquares(), epochs=1, record_every=1).history
    sizes = [8, 8, 8, 8, 5]
    mean = sum(n * row["loss"] for n, row in zip(sizes, history.updates, strict=True)) / 37
    assert history["train/loss"] == [pytest.approx(mean, rel=1e-12)]


def test_history_stop_reason_is_that_of_the_last_fit():
    trainer = run(
        make_linear(), LeastSquares(), callbacks=[After(2, lambda t: t.stop("enough for now"))]
    )
    assert trainer.history.stop_reason == "enough for now"
    trainer.fit(DATA, epochs=1)
    assert trainer.history.stop_reason is None


def test_running_mean_weights_batches_by_examples():
    mean = RunningMean()
    for output, weight in zip(outputs(1.0, 2.0), (2**24, 1), strict=True):
        mean.add(output, weight)
    assert mean.row("train") == {"train/loss": (2**24 + 2) / (2**24 + 1)}  # not in float32
    assert RunningMean().row("train") == {}


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_running_mean_continues_from_its_state(num_steps):
    values = [0.1, 1 / 3, 1e9, -2.0]
    mean, restored = RunningMean(), RunningMean()
    for output in outputs(*values[:num_steps]):
        mean.add(output, 7)
    state = json.loads(json.dumps(mean.state_dict()))
    restored.load_state_dict(state, torch.device("cpu"))
    for output in outputs(*values[num_steps:]):
        mean.add(output, 9)
        restored.add(output, 9)
    assert restored.row("train") == mean.row("train") != {}


def test_named_values_name_several_losses_by_group():
    one = ObjectiveOutput({"model": torch.tensor(1.0)}, {"kl_nats": torch.tensor(2.0)})
    two = ObjectiveOutput({"model": torch.tensor(1.0), "critic": torch.tensor(2.0)}, {})
    assert list(named_values(one)) == ["loss", "kl_nats"]
    assert list(named_values(two)) == ["loss_model", "loss_critic"]
    trained = ObjectiveOutput({"model": torch.ones((), requires_grad=True)}, {})
    assert not named_values(trained)["loss"].requires_grad


# Reading ----------------------------------------------------------------------------------------


def test_history_column_is_none_where_an_epoch_lacks_it(history):
    assert history["validation/elbo_nats"] == [-20.0, -10.0, None]


def test_history_error_names_the_columns(history):
    with pytest.raises(KeyError, match=r"no column 'elbo': use one of \['epoch', "):
        history["elbo"]


def test_history_to_dict_returns_columns(history):
    assert history.to_dict() == {
        "epochs": {
            "epoch": [1, 2, 3],
            "train/elbo_nats": [-10.0, -5.0, -10.0 / 3],
            "train/loss": [10.0, 5.0, 10.0 / 3],
            "validation/elbo_nats": [-20.0, -10.0, None],
        },
        "updates": {"step": [5], "loss": [0.1]},
        "stop_reason": "enough",
    }


def test_history_save_writes_its_dict(history, tmp_path):
    history.save(tmp_path / "history.json")
    assert json.loads((tmp_path / "history.json").read_text()) == history.to_dict()


def test_history_save_keeps_all_digits(tmp_path):
    history = run(make_vae(), ELBO(), DATA, DATA, record_every=1).history
    history.save(tmp_path / "history.json")
    assert json.loads((tmp_path / "history.json").read_text()) == history.to_dict()


def test_history_save_writes_nan_as_null(history, tmp_path):
    history.epochs[0]["train/loss"] = math.nan
    history.save(tmp_path / "history.json")
    saved = json.loads((tmp_path / "history.json").read_text())
    assert saved["epochs"]["train/loss"] == [None, 5.0, 10.0 / 3]


def test_history_repr_names_the_columns(history):
    assert repr(history).startswith("History(3 epochs, columns ['epoch', 'train/elbo_nats'")


# Plotting ----------------------------------------------------------------------------------------


def lines_of(figure):
    return [line.get_xydata().tolist() for line in figure.axes[0].lines]


def test_history_plot_draws_training_and_validation(history):
    pytest.importorskip("matplotlib")
    figure = history.plot()
    (axes,) = figure.axes
    assert axes.get_xlabel() == "epoch"
    assert axes.get_ylabel() == "elbo [nats per datum]"
    assert {"train", "validation"} <= {text.get_text() for text in axes.texts}
    expected = [[[1, -10], [2, -5], [3, -10 / 3]], [[1, -20], [2, -10]]]
    assert [line for line in lines_of(figure) if line in expected] == expected


def test_history_plot_labels_a_metric_without_unit(history):
    pytest.importorskip("matplotlib")
    axes = history.plot("loss").axes[0]
    assert axes.get_ylabel() == "loss"
    assert [[1, 10], [2, 5], [3, 10 / 3]] in lines_of(axes.figure)


def test_history_plot_error_names_the_metrics(history):
    with pytest.raises(KeyError, match=r"no metric 'kl_nats': use one of .*'elbo_nats'"):
        history.plot("kl_nats")


def test_running_mean_follows_the_names_of_metrics():
    class Shuffled(LeastSquares):
        """Objective that changes the order of its metrics from batch to batch."""

        def forward(self, model, batch):
            output = super().forward(model, batch)
            metrics = {"one": torch.tensor(1.0), "two": torch.tensor(2.0)}
            self.turn = not getattr(self, "turn", False)
            order = list(metrics) if self.turn else list(metrics)[::-1]
            return ObjectiveOutput(output.losses, {name: metrics[name] for name in order})

    history = run(make_linear(), Shuffled()).history
    assert (history["train/one"], history["train/two"]) == ([1.0, 1.0], [2.0, 2.0])


def test_history_is_a_table_of_the_last_epochs_in_a_notebook():
    history = History()
    history.epochs = [{"epoch": n, "train/loss": n / 4} for n in range(1, 13)]
    text = history._repr_html_()
    assert text.startswith("<p>12 epochs</p><table><tr><td>epoch</td><td>train/loss</td></tr>")
    assert text.count("<tr>") == 11
    assert text.endswith("<tr><td>12</td><td>3</td></tr></table>")


def test_history_without_epochs_is_a_table_in_a_notebook():
    assert History()._repr_html_() == "<p>0 epochs</p><table><tr></tr></table>"
