import copy

import pytest
import torch
from torch import nn

from tinyvae import MLP, Decoder, TransposedConvNet, TransposedResNet
from tinyvae.networks import ConcatContext
from tinyvae.testing import check_decoder
from tinyvae.testing.contract import ContractError

CONTEXT = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))

# name: (decoder, latent shape, output shape, context)
DECODERS = {
    "MLP": (lambda: MLP(3, (5,), (2, 1, 4)), 3, (2, 1, 4), None),
    "MLP without a shape": (lambda: MLP((3, 2), (5,)), (3, 2), 4, None),
    "TransposedConvNet": (lambda: TransposedConvNet(3, channels=(4,)), 3, (1, 5, 3), None),
    "TransposedResNet": (
        lambda: TransposedResNet((2, 3, 2), channels=(4,)),
        (2, 3, 2),
        (1, 5, 3),
        None,
    ),
    "numbers": (lambda: ConcatContext(MLP(5, (5,)), context_dim=2), 3, 4, CONTEXT),
    "classes": (
        lambda: ConcatContext(MLP(5, (5,)), num_classes=2),
        3,
        4,
        torch.tensor([0, 1, 1, 0, 1]),
    ),
    "any module": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh()), 3, 4, None),
    "own decoder": (lambda: Sound(3, 4), 3, 4, None),
}


class Sound(Decoder):
    """A decoder of one linear layer."""

    def __init__(self, latent_dim, data_dim):
        super().__init__()
        self.latent_dim, self.data_dim = latent_dim, data_dim
        self.linear = nn.Linear(latent_dim, data_dim)
        self.calls = 0

    def forward(self, z, context=None):
        return self.linear(z)


class NormalizedOverBatch(Sound):
    def forward(self, z, context=None):
        output = super().forward(z)
        return output - output.mean(0)


class Random(Sound):
    def forward(self, z, context=None):
        output = super().forward(z)
        return output + torch.randn_like(output)


class Detached(Sound):
    def forward(self, z, context=None):
        return super().forward(z.detach())


class Idle(Sound):
    def __init__(self, latent_dim, data_dim):
        super().__init__(latent_dim, data_dim)
        self.idle = nn.Parameter(torch.zeros(3))


class Single(Sound):
    def forward(self, z, context=None):
        return super().forward(z).float()


class Tupled(Sound):
    def forward(self, z, context=None):
        return (super().forward(z),)


class Infinite(Sound):
    def forward(self, z, context=None):
        return super().forward(z) / 0


class WrongGradient(Sound):
    def forward(self, z, context=None):
        output = super().forward(z)
        return output + (output - output.detach())


class Forgetful(Sound):
    def __init__(self, latent_dim, width):
        super().__init__(latent_dim, width)
        del self.data_dim


class NeverBuilt(Sound):
    needs_out_shape = True

    def build(self, out_shape):
        pass


FAULTS = {
    NormalizedOverBatch: "rows depend on each other",
    Random: "two calls in evaluation mode differ",
    Detached: "no gradient in latent",
    Idle: "no gradient reaches idle",
    Single: "float64 weights give torch.float32",
    Tupled: "returns a tuple",
    Infinite: "the output is not finite",
    WrongGradient: "differs from finite differences",
    Forgetful: "a file cannot describe it.*self.width = width",
    NeverBuilt: "needs_out_shape: still true",
}


@pytest.mark.parametrize("name", DECODERS)
def test_check_decoder_accepts_sound_decoders(name):
    make, latent_dim, out_shape, context = DECODERS[name]
    decoder = make()
    before, state = copy.deepcopy(decoder.state_dict()), torch.get_rng_state()
    check_decoder(decoder, latent_dim, out_shape, context=context)
    assert torch.equal(torch.get_rng_state(), state)
    after = decoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


@pytest.mark.parametrize("faulty", FAULTS)
def test_check_decoder_names_the_fault(faulty):
    with pytest.raises(ContractError, match=FAULTS[faulty]):
        check_decoder(faulty(3, 4), 3, 4)


def test_check_decoder_names_another_shape():
    with pytest.raises(ContractError, match=r"expected shape \(1, 5\), got \(1, 4\)"):
        check_decoder(Sound(3, 4), 3, 5)


def test_check_decoder_needs_rows_of_context():
    with pytest.raises(ValueError, match="context of >= 5 rows, got 4"):
        check_decoder(ConcatContext(MLP(5), context_dim=2), 3, 4, context=CONTEXT[:4])
