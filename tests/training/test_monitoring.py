"""Direction of a watched column: EarlyStopping, Checkpoint and ReduceLROnPlateau."""

import math

import pytest
from helpers.cases import for_each
from helpers.training import DATA, STEPS, Adversarial, LeastSquares, make_linear, make_vae, run
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tinyvae import ELBO, IWAE, Callback, Checkpoint, EarlyStopping, Optimization
from tinyvae.objectives import DIPRegularizer, RenyiBound
from tinyvae.schedules import Linear


class Column(Callback):
    """Sets a column of the history."""

    def __init__(self, name, *values):
        self.name, self.values = name, values

    def on_epoch_end(self, state, row):
        row[self.name] = self.values[state.epoch - 1]


def watch(column, *values, objective, callbacks=(), **options):
    """Run one epoch per value, with these values in the column."""
    make = make_linear if isinstance(objective, LeastSquares | Adversarial) else make_vae
    return run(
        make(), objective, DATA, DATA,
        epochs=len(values), callbacks=[Column(column, *values), *callbacks], **options,
    )  # fmt: skip


@for_each(
    ("objective", "column", "best"),
    [
        (LeastSquares(), "validation/loss", 2),
        (LeastSquares(), "train/loss", 2),
        (Adversarial(), "validation/loss_model", 2),
        (ELBO(), "validation/loss", 2),
        (ELBO(), "validation/elbo_nats", 3),
        (ELBO(beta=Linear(0.0, 1.0, steps=9)), "validation/elbo_nats", 3),
        (IWAE(3), "train/iwae_nats", 3),
        (IWAE(3, beta=Linear(0.0, 1.0, steps=9)), "train/iwae_nats", 3),
        (IWAE(3), "train/log_likelihood_nats", 3),
        (IWAE(3) + DIPRegularizer(1.0), "validation/iwae_nats", 3),
        (RenyiBound(3, alpha=0.5), "validation/renyi_nats", 3),
    ],
)
def test_monitor_knows_the_direction_of_losses_and_bounds(objective, column, best, tmp_path):
    folder = tmp_path / f"{type(objective).__name__}-{column.replace('/', '-')}-{id(objective)}"
    stopping, checkpoint = EarlyStopping(column), Checkpoint(folder, monitor=column)
    watch(column, 2.0, 1.0, 3.0, objective=objective, callbacks=[stopping, checkpoint])
    assert stopping.best_epoch == best
    assert checkpoint.best_step == best * STEPS


@for_each(
    ("objective", "column"),
    [
        (ELBO(), "score"),
        (ELBO(), "learning_rate"),
        (ELBO(), "validation/kl_nats"),
        (ELBO(), "elbo_nats"),
        (LeastSquares(), "validation/error_nats"),
        (Adversarial(), "validation/loss_discriminator"),
        (RenyiBound(3, alpha=Linear(0.0, 1.0, steps=4)), "validation/renyi_nats"),
    ],
)
def test_monitor_asks_for_a_direction_that_is_not_known(objective, column, tmp_path):
    for callback in (EarlyStopping(column), Checkpoint(tmp_path, monitor=column)):
        message = f"{type(callback).__name__} expects the direction of '{column}', .*mode='max'"
        with pytest.raises(ValueError, match=message):
            watch(column, 1.0, objective=objective, callbacks=[callback])
    stopping = EarlyStopping(column, mode="min")
    watch(column, 2.0, 1.0, 3.0, objective=objective, callbacks=[stopping])
    assert stopping.best_epoch == 2


@for_each(
    ("column", "mode", "message"),
    [
        ("validation/loss", "max", "mode='min' for 'validation/loss', whose smaller values"),
        ("train/elbo_nats", "min", "mode='max' for 'train/elbo_nats', whose larger values"),
    ],
)
def test_monitor_refuses_a_direction_that_is_wrong(column, mode, message, tmp_path):
    plateau = Optimization(
        scheduler=lambda o: ReduceLROnPlateau(o, mode=mode, threshold_mode="abs"), monitor=column
    )
    for options in (
        {"callbacks": [EarlyStopping(column, mode=mode)]},
        {"callbacks": [Checkpoint(tmp_path, monitor=column, mode=mode)]},
        {"optimization": plateau},
    ):
        with pytest.raises(ValueError, match=message):
            watch(column, 1.0, objective=ELBO(), **options)


def test_monitor_warns_of_a_loss_whose_weights_change():
    objective = ELBO(beta=Linear(0.0, 1.0, steps=9))
    with pytest.warns(UserWarning, match=r"EarlyStopping compares 'train/loss' .* which beta"):
        watch("train/loss", 1.0, 2.0, objective=objective, callbacks=[EarlyStopping("train/loss")])


def test_monitor_ignores_values_that_are_not_finite():
    stopping = EarlyStopping("train/elbo_nats")
    values = (-3.0, -2.0, math.inf, math.nan, -math.inf, -2.5)
    watch("train/elbo_nats", *values, objective=ELBO(), callbacks=[stopping])
    assert (stopping.best_epoch, stopping.best) == (2, -2.0)


def test_early_stopping_forgets_another_column_in_a_resumed_run(tmp_path):
    def fit(epochs, stopping):
        return run(
            make_vae(), ELBO(), epochs=epochs, fit={"resume": "auto"},
            callbacks=[
                Checkpoint(tmp_path),
                Column("first", 9.0, 0.0, 0.0),
                Column("second", 1.0, 2.0, 3.0),
                stopping,
            ],
        )  # fmt: skip

    fit(1, EarlyStopping("first", mode="max"))
    stopping = EarlyStopping("second", mode="max")
    with (
        pytest.warns(UserWarning, match="column = 'second', was 'first'"),
        pytest.warns(UserWarning, match="begun for 1 epochs"),
    ):
        fit(3, stopping)
    assert (stopping.best_epoch, stopping.best) == (3, 3.0)


def test_plateau_warns_of_a_relative_threshold_of_negative_values():
    column, values = "train/elbo_nats", (-10.0, -10.0, -10.0)
    rates = {}
    for mode in ("rel", "abs"):
        optimization = Optimization(
            scheduler=lambda o, mode=mode: ReduceLROnPlateau(
                o, mode="max", patience=0, factor=0.5, threshold_mode=mode
            ),
            monitor=column,
        )
        if mode == "rel":
            with pytest.warns(UserWarning, match=r"takes worse values .*threshold_mode='abs'"):
                watch(column, *values, objective=ELBO(), optimization=optimization)
        else:
            trainer = watch(column, *values, objective=ELBO(), optimization=optimization)
            rates = trainer.history["learning_rate"]
    assert rates == [1e-3, 1e-3, 5e-4]
