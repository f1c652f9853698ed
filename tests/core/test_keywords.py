"""Errors for keywords of other libraries."""

import copy
import inspect
import pickle

import pytest
from helpers.cases import for_each
from helpers.training import DATA, LeastSquares, make_linear

from tinyvae import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    Checkpoint,
    ConvNet,
    EarlyStopping,
    GaussianEncoder,
    GaussianLikelihood,
    Optimization,
    Trainer,
    VampPrior,
    evaluate,
)
from tinyvae.core.keywords import ALIASES, REMEDIES
from tinyvae.likelihoods import LaplaceLikelihood


def fit(**options):
    trainer = Trainer(make_linear(), LeastSquares(), device="cpu", progress=False)
    return trainer.fit(DATA, **options)


@for_each(
    ("call", "name", "expected"),
    [
        (Optimization, "lr", "use learning_rate"),
        (Optimization, "max_grad_norm", "use clip_norm"),
        (Optimization, "weight_decay", "use optimizer=lambda parameters: AdamW"),
        (Optimization, "learning_rat", "use learning_rate"),
        (Optimization, "color", "it takes learning_rate, optimizer, learning_rates, "),
        (fit, "max_epochs", "use epochs"),
        (fit, "val_data", "use validation"),
        (fit, "lr", r"use Trainer\(..., optimization=Optimization\(learning_rate"),
        (fit, "num_workers", "use workers"),
        (Trainer, "optimizer", r"use optimization=Optimization\(optimizer"),
        (Trainer, "lr", r"use optimization=Optimization\(learning_rate"),
        (Trainer, "max_epochs", r"use fit\(train, validation, epochs="),
        (Trainer, "precision", r"use speed=Speed\("),
        (Trainer, "random_state", "use seed"),
        (MLP, "hidden_dims", "use hidden"),
        (MLP, "in_features", "use in_shape"),
        (ConvNet, "filters", "use channels"),
        (GaussianEncoder, "z_dim", "use latent_dim"),
        (GaussianEncoder, "hidden", r"use a network, GaussianEncoder\(MLP"),
        (VAE, "latent_dim", r"use VAE\.from_shapes"),
        (VAE, "beta", r"use the objective, ELBO\(beta"),
        (VAE.from_shapes, "latent_size", "use latent_dim"),
        (VAE.from_shapes, "hidden_dims", r"use networks of your own, VAE\(Gaussian"),
        (ELBO, "beta_weight", "use beta"),
        (IWAE, "k", "use num_samples"),
        (GaussianLikelihood, "sigma", "use std"),
        (LaplaceLikelihood, "std", "use scale"),
        (Checkpoint, "save_best_only", "use keep=1 and monitor="),
        (Checkpoint, "dirpath", "use folder"),
        (Checkpoint, "patience", "it takes folder, every_steps"),
        (EarlyStopping, "restore_best_weights", "use restore_best"),
        (VampPrior, "num_pseudo_inputs", "use num_components"),
        (Optimization, "gradient_clip", "use clip_norm"),
        (evaluate, "iw_samples", "use importance_samples"),
        (evaluate, "batch_size", "use batch"),
    ],
)
def test_unknown_keyword_names_the_right_one(call, name, expected):
    message = rf"^[\w.]+ got an unexpected keyword argument '{name}': {expected}"
    with pytest.raises(TypeError, match=message):
        call(**{name: 1})


def test_suggest_keywords_keeps_signatures_copies_and_subclasses():
    class Patient(EarlyStopping):
        def __init__(self, **options):
            super().__init__(patience=99, **options)

    assert list(inspect.signature(Optimization).parameters)[:2] == ["learning_rate", "optimizer"]
    assert next(iter(inspect.signature(VAE.from_shapes).parameters)) == "data_shape"
    assert Patient().patience == 99
    with pytest.raises(TypeError, match=r"EarlyStopping got .*use min_delta"):
        Patient(tol=1.0)
    optimization = Optimization(2e-3)
    assert pickle.loads(pickle.dumps(optimization)) == copy.copy(optimization) == optimization


def test_keyword_tables_have_each_name_once():
    for names in (*ALIASES.values(), *(" ".join(table) for table in REMEDIES.values())):
        assert len(set(names.split())) == len(names.split())
