"""Runs and evaluations in several threads of a process."""

import json

import pytest
import torch
from helpers.threads import in_threads
from helpers.training import DATA, After, make_vae, run, same

from tinyvae import ELBO, Callback
from tinyvae.evaluation import active_units, evaluate, impute, log_marginal


def train(model=None, **options):
    return run(make_vae() if model is None else model, ELBO(), DATA, DATA, **options).model


def test_fit_refuses_a_second_fit_in_another_thread():
    alone, model, second = train(), make_vae(), make_vae()
    errors = []
    action = After(3, lambda _: errors.extend(in_threads(lambda: train(second))))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert same(train(model, callbacks=[action]), alone)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(second, make_vae())
    message = r"fit expects that no other thread draws .* got a running fit .*: call one after"
    with pytest.raises(RuntimeError, match=message):
        raise errors[0]
    assert same(train(second), alone)  # the lock is free again


def test_fits_at_the_same_time_are_refused_or_equal_to_one_alone():
    alone, models = train(epochs=5), [make_vae() for _ in range(4)]
    before = torch.get_rng_state()
    calls = [lambda model=model: train(model, epochs=5) for model in models]
    results = in_threads(*calls)
    assert torch.equal(torch.get_rng_state(), before)
    done = [result for result in results if not isinstance(result, RuntimeError)]
    assert done
    assert all(same(model, alone) for model in done)
    for model, result in zip(models, results, strict=True):
        assert result is model or same(model, make_vae())


@pytest.mark.parametrize("function", [evaluate, log_marginal, impute, active_units])
def test_evaluation_is_refused_while_another_thread_trains(function):
    other = make_vae().train()
    modes, errors = [], []

    def look():
        options = {} if function is evaluate else {"progress": False}
        return function(other, DATA, **options)

    def act(state):
        errors.extend(in_threads(look))
        modes.append(state.model.training)

    assert same(train(callbacks=[After(3, act)]), train())
    assert str(errors[0]).startswith(f"{function.__name__} expects that no other thread draws")
    assert modes == [True]
    assert other.training


def test_sample_is_refused_while_another_thread_trains():
    model, errors = make_vae(), []
    action = After(3, lambda _: errors.extend(in_threads(lambda: model.sample(5))))
    assert same(train(callbacks=[action]), train())
    assert str(errors[0]).startswith("VAE.sample expects that no other thread draws")
    assert model.sample(5).shape == (5, 4)


def test_save_is_refused_while_another_thread_trains(tmp_path):
    model, file, errors = make_vae(), tmp_path / "model.safetensors", []
    train(callbacks=[After(3, lambda _: errors.extend(in_threads(lambda: model.save(file))))])
    assert "torch's default generators" in str(errors[0])
    assert "constructor" not in str(errors[0])
    model.save(file)


def test_evaluations_in_threads_equal_one_alone():
    model = make_vae()

    def look():
        report = evaluate(model, DATA, elbo_samples=4, importance_samples=20, progress=False)
        return json.dumps(report.to_dict())  # NaN equals itself as text

    expected, before = look(), torch.get_rng_state()
    model.train()
    assert in_threads(*[look] * 6) == [expected] * 6
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


class Nested(Callback):
    """Evaluates the model, and fits another one, in the thread of the run."""

    def on_epoch_end(self, state, row):
        evaluate(state.model, DATA, elbo_samples=2, importance_samples=5, progress=False)
        train(epochs=1)
        state.model.sample(2)

    on_validation_start = on_fit_start = lambda self, state: self.on_epoch_end(state, {})


def test_callbacks_may_evaluate_and_fit_in_the_thread_of_the_run():
    assert same(train(callbacks=[Nested()]), train())


def test_fit_warns_of_a_seed_from_elsewhere():
    class Seeds(ELBO):
        def forward(self, model, batch):
            if model.training and torch.is_grad_enabled():
                in_threads(lambda: torch.manual_seed(0))
            return super().forward(model, batch)

    with pytest.warns(UserWarning, match="has seeded torch's default generator during this epoch"):
        run(make_vae(), Seeds(), epochs=1)
