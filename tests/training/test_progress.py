import contextlib
import io
import re
import sys

import pytest
from helpers.training import (
    DATA,
    STEPS,
    After,
    LeastSquares,
    Unsized,
    make_linear,
    make_vae,
    raises,
    run,
    same,
)

from tinyvae import ELBO
from tinyvae._version import __version__
from tinyvae.training import progress


class Terminal(io.StringIO):
    """Stream that tqdm treats as a terminal. ``states`` are the successive contents of a line."""

    def isatty(self):
        return True

    @property
    def states(self):
        return re.split(r"[\r\n]+", self.getvalue().strip())


class Eager(progress.Bar):
    """Bar of unlimited width that is drawn at every step."""

    def __init__(self, **options):
        super().__init__(**{**options, "mininterval": 0.0, "miniters": 1, "dynamic_ncols": False})


def fit(stderr=None, *, model=None, objective=None, **options):
    with contextlib.redirect_stderr(stderr) if stderr else contextlib.nullcontext():
        return run(
            model or make_linear(), objective or LeastSquares(), **{"progress": True, **options}
        )


@pytest.fixture
def terminal(monkeypatch):
    """Return a terminal on which bars are drawn at every step."""
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(progress, "Bar", Eager)
    return Terminal()


# Plain lines --------------------------------------------------------------------------------------


def test_progress_prints_lines_without_a_terminal(capsys):
    history = fit(model=make_vae(), objective=ELBO(), validation=DATA, epochs=2, seed=7).history
    out, err = capsys.readouterr()
    assert out == ""
    head, *lines = err.splitlines()
    size = sum(p.numel() for p in make_vae().parameters())
    assert head == (
        f"tinyvae {__version__} on cpu, seed 7: {size} parameters, 37 examples, 2 epochs of 5 "
        "steps; ELBO, beta 1, 1 draw, analytic KL: a lower bound on log p(x)"
    )
    assert len(lines) == 2
    for epoch, (line, row) in enumerate(zip(lines, history, strict=True), start=1):
        terms = ", ".join(
            f"{name} {row[f'train/{metric}']:.4g} ({row[f'validation/{metric}']:.4g})"
            for name, metric in (
                ("elbo", "elbo_nats"),
                ("log likelihood", "log_likelihood_nats"),
                ("kl", "kl_nats"),
            )
        )
        expected = f"epoch {epoch}/2: {terms} | "
        assert line.startswith(expected)
        assert re.fullmatch(r"\d\d:\d\d left", line.removeprefix(expected))


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (3, [1, 2, 3]),
        (20, list(range(1, 21))),
        (100, list(range(5, 101, 5))),
        (47, [*range(2, 47, 2), 47]),
    ],
)
def test_progress_prints_about_twenty_lines(capsys, epochs, expected):
    fit(train=DATA[:2], epochs=epochs)
    lines = capsys.readouterr().err.splitlines()[1:]
    assert [int(re.match(r"epoch (\d+)/", line)[1]) for line in lines] == expected
    assert {re.match(r"epoch \d+/(\d+): error \d", line)[1] for line in lines} == {str(epochs)}


def test_progress_prints_lines_of_a_second_fit(capsys):
    trainer = fit(epochs=2)
    capsys.readouterr()
    trainer.fit(Unsized(DATA), epochs=2)
    head, first, second = capsys.readouterr().err.splitlines()
    assert "? examples, 2 epochs of ? steps, continuing after step 10; LeastSquares" in head
    assert first.startswith("epoch 3/4: ")
    assert second.startswith("epoch 4/4: ")


def test_progress_prints_the_reason_of_an_early_end(capsys):
    fit(callbacks=[After(STEPS + 1, lambda trainer: trainer.stop("enough"))], epochs=9)
    assert capsys.readouterr().err.splitlines()[-1] == "stopped after step 6: enough"


def test_progress_false_prints_nothing(capfd):
    fit(progress=False, validation=DATA)
    assert capfd.readouterr() == ("", "")


def test_progress_changes_nothing(terminal):
    shown = fit(terminal, model=make_vae(), objective=ELBO(), validation=DATA)
    assert terminal.getvalue()
    silent = fit(model=make_vae(), objective=ELBO(), validation=DATA, progress=False)
    assert same(shown.model, silent.model)


# A bar --------------------------------------------------------------------------------------------


def test_progress_draws_one_bar_on_a_terminal(terminal, capsys):
    fit(terminal, validation=DATA)
    head, *states = terminal.states
    assert head.startswith(f"tinyvae {__version__} on cpu, seed 0: 20 parameters")
    counts = [re.search(r"(\d+)/10 ", state)[1] for state in states]
    assert set(map(int, counts)) == set(range(11))
    # The last line is a full bar with the terms of both parts.
    assert re.match(
        r"epoch 2/2 100%\|[█#]+\| 10/10 [\d:<]+, error [\d.]+ \([\d.]+\)$",
        states[-1],
    )
    assert terminal.getvalue().count("\n") == 2  # one of the headline, one of the bar
    assert capsys.readouterr() == ("", "")


def test_progress_bar_shows_the_terms_of_its_step(terminal):
    losses = []

    class Watched(LeastSquares):
        def forward(self, model, batch):
            output = super().forward(model, batch)
            losses.append(f"error {output.losses['model'].item():.4g}")
            return output

    fit(terminal, objective=Watched(), epochs=1)
    shown = {re.search(r"error .*", state)[0] for state in terminal.states if "error" in state}
    assert set(losses) <= shown


def test_progress_bar_of_unknown_length(terminal):
    fit(terminal, train=Unsized(DATA))
    assert re.match(r"epoch 2/2 10 steps [\d:]+, error [\d.]+$", terminal.states[-1])


@pytest.mark.parametrize("error", [RuntimeError("planted"), KeyboardInterrupt()])
def test_progress_bar_is_closed_after_an_error(terminal, error):
    with pytest.raises(type(error)):
        fit(terminal, callbacks=[After(3, raises(error))])
    *_, bar, reason = terminal.states
    assert " 3/10 " in bar
    assert reason.startswith(f"stopped after step 3: {type(error).__name__}")
    assert terminal.getvalue().endswith("\n")
    assert not progress.Bar._instances


def test_progress_shows_the_loss_without_metrics():
    values = {"loss": 1.0}
    assert progress._terms(values, {}) == "loss 1"
    assert progress._terms(values | {"kl_nats": 0.25}, {}) == "kl 0.25"


def test_progress_opens_a_bar_in_a_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    bars = []

    class Recorded(progress.Bar):
        def __init__(self, **options):
            bars.append(options["bar_format"])
            super().__init__(**options)

    monkeypatch.setattr(progress, "Bar", Recorded)
    fit(io.StringIO())
    assert ["{bar}" in text for text in bars] == [True]
