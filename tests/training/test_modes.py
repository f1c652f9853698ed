"""Training and evaluation mode during and after ``fit``."""

import pytest
import torch
from helpers.training import DATA, make_vae, run
from torch import nn

from tinyvae import ELBO, Callback


def modes(*modules):
    return [m.training for module in modules for m in module.modules()]


def with_batch_norm():
    model = make_vae(dropout=0.5)
    model.encoder.network.append(nn.BatchNorm1d(model.encoder.features))
    return model


def test_fit_keeps_the_modes_if_it_refuses_to_start():
    model, objective = make_vae(dropout=0.2), ELBO().eval()
    model.decoder.eval()
    before = modes(model, objective)
    with pytest.raises(ValueError, match="expects values in"):
        run(model, objective, 9 * DATA)
    assert modes(model, objective) == before


@pytest.mark.parametrize("frozen", [False, True])
def test_fit_runs_frozen_parts_alone_in_evaluation_mode(frozen):
    """Modes that the user sets before do not matter. A second call does the same."""

    class Seen(Callback):
        def on_step_end(self, state, output):
            seen.add((state.model.training, state.model.decoder.training, normalization.training))

    model, seen = with_batch_norm(), set()
    normalization = model.encoder.network[-1]
    model.encoder.network.requires_grad_(not frozen)
    before = normalization.running_mean.clone()
    for _ in range(2):
        normalization.eval()
        run(model, ELBO(), callbacks=[Seen()])
    assert seen == {(True, True, not frozen)}
    assert torch.equal(normalization.running_mean, before) is frozen


def test_fit_is_the_same_if_a_callback_looks_at_the_model():
    class Look(Callback):
        def on_step_end(self, state, output):
            with torch.random.fork_rng():
                state.model.sample(1)
                state.model.encode(DATA).sample()
                state.model.eval()  # as users of other libraries do

        def on_fit_end(self, state):
            assert not any(modes(state.model))

    first, second = with_batch_norm(), with_batch_norm()
    run(first, ELBO())
    run(second, ELBO(), callbacks=[Look()])
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
