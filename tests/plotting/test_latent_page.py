"""The page computes in a browser what torch computes."""

import html
import json
import re
from pathlib import Path

import pytest
import torch
from helpers.browser import needs_chromium, run_chromium
from torch import nn

from tinyvae import MLP, VAE, BernoulliLikelihood, GaussianEncoder, GaussianLikelihood
from tinyvae.likelihoods import ContinuousBernoulliLikelihood
from tinyvae.plotting import latent_page

SHAPE = (1, 4, 3)


def model(decoder: nn.Module | None = None, likelihood=None, latent_dim: int = 3) -> VAE:
    torch.manual_seed(0)
    decoder = MLP(latent_dim, hidden=(9,)) if decoder is None else decoder
    encoder = GaussianEncoder(MLP(SHAPE, hidden=(8,)), latent_dim)
    return VAE(encoder, decoder, likelihood or BernoulliLikelihood())


def sequence(*activations: nn.Module) -> nn.Sequential:
    """Return a decoder with each activation once."""
    torch.manual_seed(1)
    layers = [nn.Linear(3, 12)]
    for activation in activations:
        layers += [activation, nn.Dropout(0.5), nn.Linear(12, 12)]
    return nn.Sequential(*layers, nn.Unflatten(1, SHAPE))


ACTIVATIONS = (
    *(nn.ReLU(), nn.LeakyReLU(0.2), nn.ELU(0.7), nn.GELU()),
    *(nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus(2.0, 3.0)),
)
MODELS = {
    "bernoulli": lambda: model(),
    "predicted scale": lambda: model(likelihood=GaussianLikelihood("predicted")),
    "first activations": lambda: model(sequence(*ACTIVATIONS[:4]), GaussianLikelihood()),
    "other activations": lambda: model(sequence(*ACTIVATIONS[4:]), GaussianLikelihood()),
    "double": lambda: model(MLP(3, hidden=(9,), activation=nn.Tanh)).double(),
}


def in_browser(page: Path, expression: str) -> tuple[object, list[str]]:
    """Return the value of an expression at the end of the page, and the errors of its console."""
    probe = f"<pre id=probe></pre><script>$('probe').textContent=JSON.stringify({expression})"
    page.write_text(page.read_text().replace("</body>", f"{probe}</script></body>"))
    dom, errors = run_chromium(page, "--dump-dom", profile=page.parent / "profile")
    return json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', dom)[1])), errors


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_latent_page_decodes_as_torch_does(name, tmp_path):
    vae = MODELS[name]()
    like = next(vae.parameters())
    page = latent_page(vae, tmp_path / "page.html")
    z = 2 * torch.randn(20, 3, generator=torch.Generator().manual_seed(2)).to(like)
    decoded, errors = in_browser(page, f"{z.tolist()}.map(decode)")
    with torch.no_grad():
        mean = vae.decode(z).mean.flatten(1)
    torch.testing.assert_close(torch.tensor(decoded).to(like), mean, rtol=1e-5, atol=1e-5)
    assert errors == []


@needs_chromium
@pytest.mark.slow
def test_latent_page_follows_the_pointer_and_walks(tmp_path):
    vae = model()
    data = torch.bernoulli(torch.full((5, *SHAPE), 0.5))
    page = latent_page(vae, tmp_path / "page.html", data, torch.arange(5))
    move = "map.onpointermove({buttons: 1, offsetX: map.clientWidth, offsetY: 0})"
    click = (
        "(() => { const [x, y] = position(page.points[3]), s = map.clientWidth / size; "
        "last = [x, y]; let target; const original = walk; walk = point => target = point; "
        "map.onpointerup({}); walk = original; return target; })()"
    )
    (start, moved, target), errors = in_browser(page, f"[z, ({move}, z), {click}]")
    with torch.no_grad():
        means = vae.encode(data).mean
    torch.testing.assert_close(torch.tensor(start), means[0], rtol=1e-3, atol=1e-4)
    changed = [k for k in range(3) if moved[k] != start[k]]
    assert [moved[k] for k in changed] == [3, 3]
    assert sorted(changed) == sorted(means.std(0).argsort(descending=True)[:2].tolist())
    torch.testing.assert_close(torch.tensor(target), means[3], rtol=1e-3, atol=1e-4)
    assert errors == []


def test_latent_page_is_one_small_file(tmp_path):
    text = latent_page(model(), tmp_path / "new" / "page.html", title="a < b").read_text()
    script = re.search(r"<script>\n(.*?)</script>", text, re.DOTALL)[1]
    assert len(script.splitlines()) < 60
    assert "a &lt; b" in text
    assert not re.search(r"https?:|src=|href=", text)


class Skip(nn.Sequential):
    """Layers with a shortcut."""

    def forward(self, z):
        return super().forward(z) + 1


@pytest.mark.parametrize(
    ("vae", "message"),
    [
        (lambda: model(MLP(3, hidden=(9,), normalize=True)), "LayerNorm as 'decoder.layers.1'"),
        (lambda: model(Skip(nn.Linear(3, 12), nn.Unflatten(1, SHAPE))), "got another mean"),
        (lambda: model(likelihood=ContinuousBernoulliLikelihood()), "got another mean"),
        (lambda: model(MLP(3, hidden=(9000,))), "fit into 1 MB"),
        (
            lambda: VAE.from_shapes(12, latent_dim=3, likelihood=BernoulliLikelihood()),
            r"expects images .*, got \(12,\)",
        ),
    ],
)
def test_latent_page_refuses_what_it_cannot_show(vae, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        latent_page(vae(), tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_latent_page_refuses_labels_of_other_data(tmp_path):
    with pytest.raises(ValueError, match=r"expects labels \(2,\), got \(3,\)"):
        latent_page(model(), tmp_path / "page.html", torch.zeros(2, *SHAPE), torch.zeros(3))


def test_latent_page_accepts_any_title(tmp_path):
    vae = VAE.from_shapes((1, 4, 4), latent_dim=2, likelihood=BernoulliLikelihood())
    text = latent_page(vae, tmp_path / "page.html", title="PAGE <1>").read_text()
    assert text.count("PAGE &lt;1&gt;") >= 1
    assert text.count('"layers"') == 1
