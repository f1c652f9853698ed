import torch

from tinyvae.training.acceleration.found_inf import obeys_found_inf


def test_found_inf_is_obeyed_on_a_cpu():
    assert obeys_found_inf(torch.device("cpu"))


def test_found_inf_is_ignored_on_an_apple_device(apple):
    assert not obeys_found_inf(torch.device("mps"))
