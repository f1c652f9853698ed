"""Files of models."""

import os

import pytest
import torch
from helpers.cases import for_each
from helpers.forgeries import assert_clean
from helpers.models import (
    MODELS,
    ContextLinear,
    ContextPrior,
    binary,
    conditional_vae,
    mlp_vae,
    same_bits,
    small_vae,
    with_decoder,
)
from torch import nn

from tinyvae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    Decoder,
    GaussianEncoder,
    GaussianLikelihood,
    Likelihood,
)
from tinyvae.distributions import Normal
from tinyvae.errors import CheckpointError
from tinyvae.io import load_tensors, save_tensors
from tinyvae.likelihoods import Learned

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(params=MODELS)
def model_case(request):
    return MODELS[request.param]


@for_each("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_load_restores_every_bit(model_case, dtype, tmp_path):
    make, data_shape, _, user_parts, foreign = model_case
    vae = make().to(dtype).train()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.normal_()
    vae.save(tmp_path / "vae.safetensors")
    replacements = {name: make().get_submodule(name) for name in foreign}
    state = torch.get_rng_state()
    loaded = VAE.load(tmp_path / "vae.safetensors", parts=user_parts, replace=replacements)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float64
    assert vae.training
    assert not any(m.training for m in loaded.modules())
    assert all(p.requires_grad for p in loaded.parameters())
    assert repr(loaded) == repr(vae)
    states = vae.state_dict(), loaded.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(same_bits(t, states[1][name]) for name, t in states[0].items())
    if dtype != torch.bfloat16:
        x = binary(5, *data_shape).to(dtype)
        outputs = []
        for each in (vae, loaded):  # in one mode: evaluation mode bounds scales
            torch.manual_seed(1)
            outputs.append(each.eval()(x, num_samples=3).log_weight())
        assert same_bits(*outputs)


def test_load_keeps_mixed_dtypes(tmp_path):
    vae = mlp_vae(GaussianLikelihood(), (4,)).float()
    vae.likelihood.double()
    vae.decoder.layers[2].half()
    vae.save(tmp_path / "vae.safetensors")
    loaded = VAE.load(tmp_path / "vae.safetensors").state_dict()
    assert len({t.dtype for t in loaded.values()}) == 3
    assert all(same_bits(t, loaded[name]) for name, t in vae.state_dict().items())


def test_load_keeps_options(tmp_path):
    encoder = GaussianEncoder(MLP(4, hidden=(5, 6), activation=nn.Tanh), 3)
    decoder = MLP(3, hidden=(), out_shape=(4,))
    likelihood = GaussianLikelihood(Learned((4,), minimum=0.25))
    VAE(encoder, decoder, likelihood).save(tmp_path / "vae.safetensors")
    loaded = VAE.load(tmp_path / "vae.safetensors")
    assert loaded.likelihood.std.minimum == 0.25
    assert loaded.encoder.network.activation is nn.Tanh
    assert loaded.encoder.network.config() == encoder.network.config()


def test_load_restores_a_conditional_model(tmp_path):
    vae = conditional_vae()
    vae.save(tmp_path / "vae.safetensors")
    loaded = VAE.load(
        tmp_path / "vae.safetensors",
        parts=[ContextPrior],
        replace={"encoder.network": ContextLinear(4, 2, 6), "decoder": ContextLinear(3, 2, 4)},
    )
    x, context = torch.randn(5, 4), torch.randn(5, 2)
    assert torch.equal(loaded.reconstruct(x, context), vae.reconstruct(x, context))


class UserLikelihood(Likelihood):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def elementwise(self, *params):
        return Normal(params[0], torch.zeros(()))


class ForgetfulLikelihood(UserLikelihood):
    """A likelihood that does not store its argument."""

    def __init__(self, width=1.0):
        super().__init__()


def test_load_needs_the_classes_of_user_parts(tmp_path):
    vae = mlp_vae(UserLikelihood(2.5), (4,))
    vae.save(tmp_path / "vae.safetensors")
    message = r"vae.safetensors: .*unknown part 'UserLikelihood' as 'likelihood'.*parts=\[UserLike"
    with pytest.raises(CheckpointError, match=message):
        VAE.load(tmp_path / "vae.safetensors")
    loaded = VAE.load(tmp_path / "vae.safetensors", parts=[UserLikelihood])
    assert type(loaded.likelihood) is UserLikelihood
    assert loaded.likelihood.scale == 2.5


def test_save_names_an_argument_that_is_not_stored(tmp_path):
    vae = mlp_vae(ForgetfulLikelihood(2.5), (4,))
    with pytest.raises(
        TypeError, match=r"ForgetfulLikelihood needs.*store each argument.*self.width = width"
    ):
        vae.save(tmp_path / "vae.safetensors")
    assert not list(tmp_path.iterdir())


def test_load_needs_a_replacement_for_a_foreign_module(tmp_path):
    vae = VAE(
        GaussianEncoder(nn.Identity(), 3, features=4), MLP(3, out_shape=4), BernoulliLikelihood()
    )
    vae.save(tmp_path / "vae.safetensors")
    message = r"'encoder.network' \(a Identity\).*replace=\{'encoder.network': module\}"
    for replace in (None, {"network": nn.Identity()}):
        with pytest.raises(CheckpointError, match=message):
            VAE.load(tmp_path / "vae.safetensors", replace=replace)


def test_load_refuses_a_replacement_of_other_shapes(tmp_path):
    vae = with_decoder(lambda: nn.Linear(3, 4))()
    vae.save(tmp_path / "vae.safetensors")
    wrong = nn.Linear(3, 5)
    before = wrong.weight
    message = r"2 tensors do not fit .* 'decoder.bias': expected \(5,\), got \(4,\)"
    with pytest.raises(CheckpointError, match=message):
        VAE.load(tmp_path / "vae.safetensors", replace={"decoder": wrong})
    assert wrong.weight is before


def test_load_refuses_a_replacement_that_it_does_not_need(tmp_path):
    vae = VAE(GaussianEncoder(MLP(4), 2), MLP(2, out_shape=4), BernoulliLikelihood())
    vae.save(tmp_path / "vae")
    with pytest.raises(ValueError, match=r"replace names \['decoder'\]"):
        VAE.load(tmp_path / "vae", replace={"decoder": MLP(2, out_shape=4)})


class SmallVAE(VAE):
    """A VAE with its own constructor."""

    def __init__(self, width=5):
        encoder = GaussianEncoder(MLP(4, (width,)), 2)
        super().__init__(encoder, MLP(2, (width,)), BernoulliLikelihood())
        self.width = width


class ForgetfulVAE(SmallVAE):
    def __init__(self, units=5):
        super().__init__(units)


class ChangingLikelihood(UserLikelihood):
    """A likelihood whose configuration does not build an equal one."""

    def __init__(self, scale=1.0):
        super().__init__(scale)
        self.weight = nn.Parameter(torch.zeros(3 if scale == 1.0 else 2))

    def config(self):
        return {"scale": 1.0}


def test_load_restores_a_subclass_with_its_own_constructor(tmp_path):
    vae = SmallVAE(3)
    vae.save(tmp_path / "vae")
    assert vae.description() == {"model": "SmallVAE", "parts": {"width": 3}}
    loaded = SmallVAE.load(tmp_path / "vae")
    assert loaded.width == 3
    x = binary(5, 4)
    assert torch.equal(loaded.reconstruct(x), vae.reconstruct(x))
    with pytest.raises(CheckpointError, match="expected the file of a VAE, got 'SmallVAE'"):
        VAE.load(tmp_path / "vae")


def test_save_refuses_a_model_that_would_not_load(tmp_path):
    extra, normalized = small_vae(), small_vae()
    extra.encoder.teacher = nn.Linear(2, 2)
    nn.utils.parametrizations.weight_norm(normalized.decoder.layers[0])
    changing = mlp_vae(ChangingLikelihood(2.0), (4,))
    cases = [
        (extra, r"2 tensors do not fit .* 'encoder.teacher.bias': expected none, got \(2,\); keep"),
        (normalized, r"would not load: 3 tensors do not fit .* 'decoder.layers.0.par.*; apply a"),
        (
            changing,
            r"1 tensors do not fit .* 'likelihood.weight': expected \(3,\), got \(2,\)",
        ),
        (ForgetfulVAE(3), r"ForgetfulVAE needs .*: store each argument .* self.units = units"),
    ]
    for vae, message in cases:
        with pytest.raises(TypeError, match=message):
            vae.save(tmp_path / "vae")
    assert not list(tmp_path.iterdir())


class Squashed(nn.Module):
    def forward(self, weight):
        return weight.tanh()


def registered(layer):
    nn.utils.parametrize.register_parametrization(layer, "weight", Squashed())
    return layer


PARAMETRIZATIONS = {
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "own": registered,
    "old spectral_norm": nn.utils.spectral_norm,
}


class ParametrizedDecoder(Decoder):
    def __init__(self, name):
        super().__init__()
        self.name = name
        self.layer = PARAMETRIZATIONS[name](nn.Linear(3, 4))

    def forward(self, z, context=None):
        return self.layer(z)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_load_restores_parametrized_layers(name, tmp_path):
    for decoder, options in (
        (ParametrizedDecoder(name), {"parts": [ParametrizedDecoder]}),
        (
            PARAMETRIZATIONS[name](nn.Linear(3, 4)),
            {"replace": {"decoder": PARAMETRIZATIONS[name](nn.Linear(3, 4))}},
        ),
    ):
        vae = with_decoder(lambda decoder=decoder: decoder)()
        vae(binary(5, 4)).log_px.sum().backward()  # moves the vectors of spectral_norm
        vae.eval().save(tmp_path / "vae")
        z = torch.randn(5, 3)
        loaded = VAE.load(tmp_path / "vae", **options)
        assert torch.equal(loaded.decode(z).mean, vae.decode(z).mean)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_save_refuses_a_parametrized_layer_of_a_part_until_it_is_removed(name, tmp_path):
    vae = small_vae()
    layer = PARAMETRIZATIONS[name](vae.decoder.layers[0])
    with pytest.raises(TypeError, match=r"remove it before saving, .*remove_parametrizations\("):
        vae.save(tmp_path / "vae")
    z, vae = torch.randn(5, 3), vae.eval()
    mean = vae.decode(z).mean
    if name.startswith("old"):
        nn.utils.remove_spectral_norm(layer)
    else:
        nn.utils.parametrize.remove_parametrizations(layer, "weight")
    vae.save(tmp_path / "vae")
    torch.testing.assert_close(VAE.load(tmp_path / "vae").decode(z).mean, mean)


class ExtraState(nn.Linear):
    def get_extra_state(self):
        return {"a": 1}


class ConstantBuffer(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("mask", torch.tensor(-torch.inf))


def test_save_refuses_state_that_a_file_cannot_hold(tmp_path):
    for decoder, message in (
        (ExtraState(3, 4), "expects a tensor for 'decoder._extra_state', got dict"),
        (ConstantBuffer(3, 4), r"finite values in 'decoder.mask'.*buffer with persistent=False"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            with_decoder(lambda decoder=decoder: decoder)().save(tmp_path / "vae")
    assert not list(tmp_path.iterdir())


def test_load_refuses_an_uninitialized_replacement(tmp_path):
    vae = with_decoder(lambda: nn.Linear(3, 4))()
    vae.save(tmp_path / "vae")
    with pytest.raises(CheckpointError, match=r"'decoder.bias': expected an uninitialized tensor"):
        VAE.load(tmp_path / "vae", replace={"decoder": nn.LazyLinear(4)})


def test_save_does_not_draw(tmp_path):
    vae, state = small_vae(), torch.get_rng_state()
    vae.save(tmp_path / "vae")
    assert torch.equal(torch.get_rng_state(), state)


def test_save_refuses_shared_parameters_and_extra_modules(tmp_path):
    shared = nn.Linear(4, 4)
    encoder = GaussianEncoder(shared, 4, features=4)
    with pytest.raises(TypeError, match="are one parameter, which a file cannot describe"):
        VAE(encoder, shared, BernoulliLikelihood()).save(tmp_path / "shared")
    vae = VAE(GaussianEncoder(MLP(4), 2), MLP(2, out_shape=4), BernoulliLikelihood())
    vae.teacher = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"got also \['teacher'\]"):
        vae.save(tmp_path / "teacher")
    assert not list(tmp_path.iterdir())


def write_forged_file(path, change):
    """Write a file with a valid digest and a changed description."""
    small_vae().save(path)
    tensors, info = load_tensors(path)
    change(info)
    save_tensors(path, tensors, info)


def set_config(part, **values):
    def change(info):
        *parents, last = part.split(".")
        description = info["parts"]
        for name in parents:
            description = description[name]["config"]
        description[last]["config"].update(values)

    return change


# name: (change of the file's description, message)
FORGERIES = {
    "a billion units": (
        set_config("decoder", hidden=[10**9]),
        r"expected \(1000000000,\), got \(6,\)",
    ),
    "a billion times a billion": (
        set_config("decoder", hidden=[10**9, 10**9]),
        "tensors do not fit|cannot be built",
    ),
    "too many to count": (
        set_config("decoder", hidden=[2**62, 2**62]),
        "cannot be built from",
    ),
    "more than an index": (set_config("decoder", hidden=[10**30]), "cannot be built from"),
    "a billion latents": (
        set_config("encoder", latent_dim=10**9),
        "tensors do not fit|do not form a VAE",
    ),
    "another latent": (set_config("encoder", latent_dim=2), r"parts do not form a VAE: .*\(2,\)"),
    "negative size": (set_config("decoder", hidden=[-5]), "sizes of at least 1"),
    "text for a size": (set_config("encoder", latent_dim="many"), "cannot be built from"),
    "unknown argument": (set_config("decoder", eval="x"), "cannot be built from"),
    "unknown activation": (
        set_config("encoder.network", activation={"class": "Module"}),
        "unknown part 'Module' as 'encoder.network.activation'",
    ),
    "import path": (
        lambda info: info["parts"].update(decoder={"part": "os.system", "config": {}}),
        "unknown part 'os.system' as 'decoder'",
    ),
    "no part": (lambda info: info["parts"].update(decoder={"a": 1}), "'decoder' has an invalid"),
    "number for a part": (lambda info: info["parts"].update(decoder=5), "parts do not form a VAE"),
    "missing part": (lambda info: info["parts"].pop("decoder"), "parts do not form a VAE"),
    "surplus part": (lambda info: info["parts"].update(more=5), "parts do not form a VAE"),
    "swapped parts": (
        lambda info: info["parts"].update(encoder=info["parts"]["decoder"]),
        "parts do not form a VAE",
    ),
    "no parts": (lambda info: info.pop("parts"), "expected the file of a VAE, got 'VAE'"),
    "another model": (lambda info: info.update(model="GAN"), "file of a VAE, got 'GAN'"),
}


def test_load_refuses_a_forged_description(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "vae.safetensors"
    state = torch.get_rng_state()
    for change, message in FORGERIES.values():
        write_forged_file(path, change)
        torch.set_rng_state(state)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(CheckpointError, match=message) as caught:
            VAE.load(path)
        assert str(caught.value).startswith(str(path))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100 * 2**10  # KiB
        assert torch.equal(torch.get_rng_state(), state)


def test_load_refuses_other_than_modules_as_parts_and_replacements(tmp_path):
    path = tmp_path / "vae.safetensors"
    vae = with_decoder(lambda: nn.Linear(3, 4))()
    vae.save(path)
    for part in (os.system, "VAE", dict, vae):
        with pytest.raises(TypeError, match=r"parts expects subclasses of torch\.nn\.Module, got"):
            VAE.load(path, parts=[part], replace={"decoder": nn.Linear(3, 4)})
    with pytest.raises(TypeError, match="replace expects a module for 'decoder', got <built-in"):
        VAE.load(path, replace={"decoder": os.system})


def test_load_never_calls_a_function_that_a_file_names(tmp_path):
    path, marker = tmp_path / "vae.safetensors", tmp_path / "executed"
    call = {"part": "system", "config": {"command": f"touch {marker}"}}
    write_forged_file(path, lambda info: info["parts"].update(decoder=call))
    for parts in ([os.system], []):
        with pytest.raises((TypeError, CheckpointError), match=r"torch\.nn\.Module|unknown part"):
            VAE.load(path, parts=parts)
    assert not marker.exists()


def test_load_compares_dtypes(tmp_path):
    path = tmp_path / "vae.safetensors"
    small_vae().save(path)
    tensors, info = load_tensors(path)
    for dtype in (torch.int64, torch.uint8, torch.bool):
        bias = torch.ones_like(tensors["decoder.layers.0.bias"]).to(dtype)
        save_tensors(path, {**tensors, "decoder.layers.0.bias": bias}, info)
        message = rf"'decoder.layers.0.bias': expected \(6,\), got \(6,\) of {dtype}"
        with pytest.raises(CheckpointError, match=message):
            VAE.load(path)


def test_load_refuses_a_float_in_place_of_an_integer(tmp_path):
    path = tmp_path / "vae.safetensors"
    with_decoder(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))().save(path)
    tensors, info = load_tensors(path)
    count = tensors["decoder.1.num_batches_tracked"]
    save_tensors(path, {**tensors, "decoder.1.num_batches_tracked": count.float()}, info)
    decoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(CheckpointError, match=r"expected \(\) of torch.int64, got \(\)"):
        VAE.load(path, replace={"decoder": decoder})


SIZES = {
    "layers": set_config("decoder", hidden=[1] * 100_000),
    "dimensions": lambda info: info["parts"].update(
        prior={
            "part": "VampPrior",
            "config": {"latent_dim": 3, "input_shape": [1] * 100_000, "num_components": 3},
        }
    ),
}


def test_load_builds_few_modules_of_a_small_file(tmp_path, monkeypatch):
    made, init = [], nn.Module.__init__

    def counted(self, *args, **options):
        made.append(type(self))
        init(self, *args, **options)

    monkeypatch.setattr(nn.Module, "__init__", counted)
    for change in SIZES.values():
        write_forged_file(tmp_path / "vae.safetensors", change)
        made.clear()
        message = "more than 1,080 modules, parameters and buffers|at most 64 dimensions"
        with pytest.raises(CheckpointError, match=message):
            VAE.load(tmp_path / "vae.safetensors")
        assert len(made) < 3000


def test_save_refuses_a_model_of_too_many_modules(tmp_path):
    deep = mlp_vae(data=(4,))
    deep.decoder = MLP(3, hidden=(2,) * 30_000, out_shape=4)
    with pytest.raises(TypeError, match="more than 100,000 modules"):
        deep.save(tmp_path / "vae")


def test_load_error_has_no_terminal_codes_of_a_file(tmp_path):
    path, name = tmp_path / "vae.safetensors", "\x1b[2J\n" + "x" * 5000
    changes = [
        lambda info: info["parts"].update({name: info["parts"]["decoder"]}),
        lambda info: info["parts"].update(decoder={"part": name, "config": {}}),
        lambda info: info["parts"].update(decoder={"foreign": name}),
        lambda info: info.update(model=name),
        set_config("decoder", **{name: 1}),
        set_config("decoder", activation={"class": name}),
    ]
    for change in changes:
        write_forged_file(path, change)
        with pytest.raises(CheckpointError) as caught:
            VAE.load(path)
        assert_clean(str(caught.value), path)
    small_vae().save(path)
    tensors, info = load_tensors(path)
    save_tensors(path, {**tensors, name: torch.zeros(1)}, info)
    with pytest.raises(CheckpointError) as caught:
        VAE.load(path)
    assert_clean(str(caught.value), path)


def test_load_refuses_missing_and_surplus_tensors(tmp_path):
    path = tmp_path / "vae.safetensors"
    small_vae().save(path)
    tensors, info = load_tensors(path)
    bias = tensors.pop("decoder.layers.0.bias")
    save_tensors(path, tensors, info)
    with pytest.raises(CheckpointError, match=r"'decoder.layers.0.bias': expected \(6,\), got no"):
        VAE.load(path)
    save_tensors(path, {**tensors, "decoder.layers.0.bias": bias, "more": bias}, info)
    with pytest.raises(CheckpointError, match=r"'more': expected none, got \(6,\)"):
        VAE.load(path)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_load_refuses_a_truncated_file(keep, tmp_path):
    path = tmp_path / "vae.safetensors"
    small_vae().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError):
        VAE.load(path)


def test_save_refuses_layers_that_the_constructors_do_not_make(tmp_path):
    changes = (
        (lambda layers: layers.__setitem__(1, nn.Tanh()), "'decoder.layers.1' is Tanh.*make ReLU"),
        (lambda layers: layers.append(nn.Dropout(0.5)), r"is Dropout\(p=0\.5.*make None"),
    )
    for change, message in changes:
        vae = VAE(GaussianEncoder(MLP(4), 2), MLP(2, (5,), 4), BernoulliLikelihood())
        change(vae.decoder.layers)
        with pytest.raises(TypeError, match=message):
            vae.save(tmp_path / "vae.safetensors")
