"""Folders of models: what is saved loads, and what is damaged is refused."""

import inspect
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tinyvae import MLP, VAE, BernoulliLikelihood, GaussianEncoder, LadderVAE, evaluate
from tinyvae.encoders import CategoricalEncoder
from tinyvae.errors import CheckpointError
from tinyvae.hub import from_pretrained, push_to_hub, save_pretrained
from tinyvae.priors import CategoricalPrior

X = (torch.rand(64, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()


def make_vae():
    return VAE.from_shapes(6, latent_dim=2, likelihood=BernoulliLikelihood())


@pytest.fixture
def folder(tmp_path):
    save_pretrained(make_vae(), tmp_path / "bits")
    return tmp_path / "bits"


def test_folder_has_weights_config_and_card(tmp_path):
    vae = make_vae()
    report = evaluate(vae, X, progress=False)
    save_pretrained(vae, tmp_path / "bits", data="Random *bits*.", license="mit", report=report)
    assert {f.name for f in (tmp_path / "bits").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    config = json.loads((tmp_path / "bits" / "config.json").read_text())
    assert config["model"] == "VAE"
    assert config["parts"]["encoder"]["config"]["latent_dim"] == 2
    card = (tmp_path / "bits" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: tinyvae\nlicense: mit\n")
    for text in ("# bits", "Random *bits*.", str(report), "lower bound on log p(x)", "(2,)"):
        assert text in card


def test_card_says_what_is_not_known(folder):
    card = (folder / "README.md").read_text()
    assert "Not described." in card
    assert "Not evaluated." in card
    assert "license: unknown" in card


def test_loaded_model_is_the_saved_one(tmp_path):
    models = [
        make_vae(),
        VAE(
            CategoricalEncoder(MLP(6, hidden=(8,)), num_classes=4, num_variables=3),
            MLP((4, 3), hidden=(8,)),
            BernoulliLikelihood(),
            CategoricalPrior(4, num_variables=3),
        ),
        LadderVAE(
            encoders=[GaussianEncoder(MLP(6, (8,)), 3), GaussianEncoder(MLP(8, (8,)), 2)],
            generators=[GaussianEncoder(MLP(2, (8,)), 3)],
            decoder=MLP(3, (8,)),
            likelihood=BernoulliLikelihood(),
        ),
    ]
    for model in models:
        save_pretrained(model, tmp_path)
        loaded = from_pretrained(tmp_path)
        assert type(loaded) is type(model)
        assert not loaded.training
        assert torch.equal(loaded.reconstruct(X), model.reconstruct(X))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"has no {name}"):
        from_pretrained(folder)


def test_flipped_byte_is_refused(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="digest"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[1]", "expected an object"),
        ('{"model": "os.system"}', "names the model 'os.system'"),
        ('{"model": "LadderVAE"}', "expected the file of a LadderVAE, got 'VAE'"),
        ('{"model": "VAE", "parts": {}}', "describes other parts"),
    ],
)
def test_damaged_config_is_refused(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(folder)


def test_unknown_place_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="user/name"):
        from_pretrained(tmp_path / "missing")


def test_nothing_is_written_if_the_model_would_not_load(tmp_path):
    vae = make_vae()
    vae.extra = nn.Linear(1, 1)
    with pytest.raises(TypeError, match="remove it"):
        save_pretrained(vae, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(TypeError, match="expects a model"):
        save_pretrained(nn.Linear(1, 1), tmp_path / "new")


def test_foreign_network_loads_by_replace(tmp_path):
    def network():
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh())

    encoder = GaussianEncoder(network(), latent_dim=2, features=5)
    vae = VAE(encoder, MLP(2, hidden=(8,)), BernoulliLikelihood(), data_shape=(6,))
    save_pretrained(vae, tmp_path)
    loaded = from_pretrained(tmp_path, replace={"encoder.network": network()})
    assert torch.equal(loaded.reconstruct(X), vae.reconstruct(X))


def test_own_class_of_models_loads_by_parts(tmp_path):
    class MyVAE(VAE):
        pass

    vae = MyVAE(GaussianEncoder(MLP(6, hidden=(4,)), latent_dim=2), MLP(2), BernoulliLikelihood())
    save_pretrained(vae, tmp_path)
    with pytest.raises(CheckpointError, match="class of your own in parts="):
        from_pretrained(tmp_path)
    assert type(from_pretrained(tmp_path, parts=[MyVAE])) is MyVAE


# The Hub ------------------------------------------------------------------------------------------


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A folder instead of the Hub. The calls must fit the signatures of the real package."""
    store = tmp_path / "hub"
    calls = []

    class HfApi:
        def __init__(self, **options):
            calls.append(("HfApi", options))

        def create_repo(self, repo_id, **options):
            calls.append(("create_repo", {"repo_id": repo_id, **options}))
            (store / repo_id).mkdir(parents=True, exist_ok=options["exist_ok"])
            return f"https://huggingface.co/{repo_id}"

        def upload_folder(self, **options):
            calls.append(("upload_folder", options))
            target = store / options["repo_id"]
            shutil.copytree(options["folder_path"], target, dirs_exist_ok=True)

    def snapshot_download(repo_id, **options):
        calls.append(("snapshot_download", {"repo_id": repo_id, **options}))
        return str(store / repo_id)

    fake = SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return calls


def test_pushed_model_comes_back_from_the_hub(fake_hub, tmp_path, monkeypatch):
    vae = make_vae()
    url = push_to_hub(vae, "user/bits", data="Bits.", license="mit", private=True, token="t")
    assert url == "https://huggingface.co/user/bits"
    assert 'from_pretrained("user/bits")' in (tmp_path / "hub/user/bits/README.md").read_text()
    loaded = from_pretrained("user/bits", revision="abc")
    assert torch.equal(loaded.reconstruct(X), vae.reconstruct(X))
    calls = dict(fake_hub)
    assert calls["HfApi"]["token"] == "t"
    assert calls["create_repo"]["private"] is True
    assert calls["snapshot_download"]["revision"] == "abc"
    push_to_hub(vae, "user/bits")  # a repository that exists

    monkeypatch.undo()
    real = pytest.importorskip("huggingface_hub")
    inspect.signature(real.HfApi.__init__).bind(None, **calls["HfApi"])
    inspect.signature(real.HfApi.create_repo).bind(None, **calls["create_repo"])
    inspect.signature(real.HfApi.upload_folder).bind(None, **calls["upload_folder"])
    inspect.signature(real.snapshot_download).bind(**calls["snapshot_download"])


def test_hub_names_the_extra_if_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"tinyvae\[hub\]"):
        from_pretrained("user/bits")
    with pytest.raises(ImportError, match=r"tinyvae\[hub\]"):
        push_to_hub(make_vae(), "user/bits")
