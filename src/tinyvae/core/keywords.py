"""Errors that name the right keyword for one that another library uses."""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])

# Keywords of this library, and their names in torch, Lightning, Keras, scikit-learn and others.
ALIASES = {
    "activation": "act act_fn activation_fn nonlinearity",
    "batch_size": "bs train_batch_size",
    "beta": "beta_weight kl_beta kl_coef kl_weight kld_weight",
    "channels": "filters hidden_channels num_channels num_filters",
    "clip_norm": "clip clipnorm grad_clip gradient_clip gradient_clip_val max_grad_norm max_norm",
    "data_shape": "image_shape img_size in_shape input_dim input_shape input_size",
    "device": "accelerator cuda devices gpu gpus",
    "epochs": "max_epochs max_iter n_epochs n_iter nb_epochs num_epochs",
    "every_minutes": "train_time_interval",
    "every_steps": "every every_n_train_steps save_every save_freq save_steps",
    "folder": "checkpoint_dir ckpt_dir directory dirpath filepath path save_dir",
    "hidden": "hidden_dim hidden_dims hidden_layer_sizes hidden_layers hidden_size hidden_sizes "
    "hidden_units layers units",
    "importance_samples": "iw_samples k num_importance_samples num_iw_samples",
    "in_shape": "in_channels in_dim in_features input_dim input_shape input_size n_features",
    "keep": "keep_last max_to_keep save_top_k save_total_limit",
    "latent_dim": "latent latent_dims latent_shape latent_size n_components n_latent z_dim z_size",
    "learning_rate": "lr",
    "min_delta": "delta threshold tol",
    "model": "module net network vae",
    "network": "backbone body net",
    "normalize": "batch_norm layer_norm norm",
    "num_components": "K k n_components num_inputs num_mixtures num_pseudo_inputs num_pseudoinputs",
    "num_samples": "K k mc_samples n_samples num_draws num_particles",
    "objective": "criterion loss loss_fn",
    "out_shape": "out_channels out_dim out_features output_dim output_shape output_size",
    "optimizer": "optim optimizers",
    "patience": "n_iter_no_change",
    "progress": "enable_progress_bar progress_bar verbose",
    "record_every": "log_every_n_steps log_interval",
    "restore_best": "load_best_model_at_end restore_best_weights",
    "resume": "checkpoint ckpt_path resume_from resume_from_checkpoint",
    "scale": "b noise noise_scale sigma std",
    "schedule": "lr_schedule",
    "scheduler": "lr_scheduler",
    "seed": "random_seed random_state",
    "std": "noise noise_std scale sigma stddev",
    "train": "X data dataset train_data train_dataloader train_dataloaders train_loader x x_train",
    "validation": "X_val eval_set val val_data val_dataloaders val_loader valid validation_data",
    "warmup_steps": "num_warmup_steps warmup",
    "workers": "n_jobs num_workers",
}
EPOCHS, HIDDEN = f"epochs {ALIASES['epochs']}", f"hidden channels {ALIASES['hidden']}"
RATE = f"learning_rate {ALIASES['learning_rate']}"
# What to write for keywords that have no counterpart in the same call.
REMEDIES = {
    "Checkpoint": {
        "save_best_only": "keep=1 and monitor='validation/elbo_nats', which also keeps the best",
        "every_n_epochs period": "every_steps, in updates",
    },
    "EarlyStopping": {"maximize": "mode", "verbose": "Trainer(..., progress=...)"},
    "GaussianEncoder": {
        f"{HIDDEN} in_shape {ALIASES['in_shape']}": "a network, GaussianEncoder(MLP(in_shape, "
        "hidden=...), latent_dim=...)"
    },
    "Optimization": {
        "betas eps momentum nesterov weight_decay": "optimizer=lambda parameters: "
        "AdamW(parameters, weight_decay=...)",
    },
    "Trainer": {
        RATE: "optimization=Optimization(learning_rate=...)",
        "optim optimizer optimizers weight_decay": "optimization=Optimization(optimizer=...)",
        "lr_scheduler schedule scheduler": "optimization=Optimization(scheduler=...)",
        f"clip_norm {ALIASES['clip_norm']}": "optimization=Optimization(clip_norm=...)",
        "amp compile mixed_precision precision": "speed=Speed(compile=..., precision=...)",
        f"batch_size data train validation {EPOCHS}": "fit(train, validation, epochs=..., "
        "batch_size=...)",
    },
    "VAE": {
        f"{HIDDEN} latent_dim {ALIASES['latent_dim']}": "VAE.from_shapes(data_shape, "
        "latent_dim=...), or networks of your own, GaussianEncoder(MLP(...), latent_dim=...)",
        f"beta {ALIASES['beta']}": "the objective, ELBO(beta=...)",
    },
    "fit": {
        f"{RATE} optimizer": "Trainer(..., optimization=Optimization(learning_rate=...))",
        "callbacks": "Trainer(..., callbacks=[...])",
        "shuffle": "a DataLoader, which has an order of its own",
        "verbose": "Trainer(..., progress=...)",
    },
    "from_shapes": {
        f"{HIDDEN} activation {ALIASES['channels']}": "networks of your own, "
        "VAE(GaussianEncoder(MLP(...), latent_dim=...), decoder, likelihood)",
        f"beta {ALIASES['beta']}": "the objective, ELBO(beta=...)",
    },
}


def suggest_keywords(target: T) -> T:
    """Decorate a function or a class: the error for an unknown keyword then names the right one.

    Example:
        >>> @suggest_keywords
        ... def fit(*, epochs):
        ...     return epochs
        >>> fit(max_epochs=3)
        Traceback (most recent call last):
        ...
        TypeError: fit got an unexpected keyword argument 'max_epochs': use epochs
    """
    function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    parameters = [
        name for name in inspect.signature(function).parameters if name not in ("self", "cls")
    ]

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        for name in options:
            if name not in parameters:
                owner = target.__qualname__
                raise TypeError(
                    f"{owner} got an unexpected keyword argument '{name}': "
                    f"{_remedy(owner.rpartition('.')[2], name, parameters)}"
                )
        return function(*args, **options)

    if isinstance(target, type):
        setattr(target, "__init__", call)  # noqa: B010 - mypy refuses an assignment
        return target
    return call  # type: ignore[return-value]


def _remedy(owner: str, name: str, parameters: list[str]) -> str:
    for names, remedy in REMEDIES.get(owner, {}).items():
        if name in names.split():
            return f"use {remedy}"
    right = [known for known in parameters if name in ALIASES.get(known, "").split()]
    right = right or get_close_matches(name, parameters, 1)
    return f"use {right[0]}" if right else f"it takes {', '.join(parameters)}"
