"""The README's commands and code are what is run."""

import re
from pathlib import Path

import pytest
from helpers.names import public_names

from tinyvae.testing import check_likelihood

ROOT = Path(__file__).parents[1]
# Pages of code, and files that it writes.
PAGES = {
    "quickstart": {"elbo.png", "vae.safetensors"},
    "likelihoods": set(),
    "latents": set(),
    "objectives": set(),
    "resume": {"runs"},
}
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_gate_runs_the_test_line_as_the_readme_has_it():
    (line,) = [line for block in blocks("bash") for line in block.splitlines() if "pytest" in line]
    assert line.startswith("python3 -m venv")
    assert f"\n{line} || exit 1\n" in (ROOT / ".ci" / "run").read_text()


def test_the_code_runs_and_gives_its_number(capsys: pytest.CaptureFixture[str]):
    code = blocks("python")[0]
    assert len(code.splitlines()) <= 15
    exec(code, {})
    printed = capsys.readouterr().out
    stated = re.search(r"# (-\d+\.\d+) \+- (\d+\.\d+)", code)
    measured = re.match(r"(-\d+\.\d+) \+- (\d+\.\d+)", printed)
    # Another machine rounds otherwise and so trains to slightly other weights.
    assert abs(float(measured[1]) - float(stated[1])) < float(stated[2])


def test_the_likelihood_of_ones_own_works():
    namespace: dict[str, type] = {}
    exec(blocks("python")[1], namespace)
    likelihood = namespace["GumbelLikelihood"]()
    assert likelihood.param_shape((1, 8, 8)) == (2, 1, 8, 8)
    check_likelihood(likelihood)


def test_the_table_of_the_readme_is_filled(capsys: pytest.CaptureFixture[str]):
    namespace = public_names()
    exec(blocks("python")[2], namespace)
    capsys.readouterr()
    assert namespace["filled"]["age"][0] == 41.0
    assert set(namespace["filled"]["smokes"]) <= {"no", "yes"}
    assert namespace["x"].isnan().sum() == 100


def test_the_first_code_stands_by_line_29():
    assert README[: README.index("```python")].count("\n") < 29


@pytest.mark.slow
@pytest.mark.parametrize(("page", "files"), PAGES.items())
def test_pages_run_from_top_to_bottom(page, files, tmp_path, monkeypatch: pytest.MonkeyPatch):
    text = (ROOT / "docs" / f"{page}.rst").read_text()
    snippets = re.findall(r"::\n\n((?:    .*\n|\n)+)", text)
    assert len(snippets) >= 2
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for snippet in snippets:
        code = "\n".join(line[4:] for line in snippet.splitlines())
        exec(re.sub(r"epochs=\d+", "epochs=2", code), namespace)
    assert {path.name for path in tmp_path.iterdir()} >= files


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_into_the_repository_exist(link: str):
    if "://" not in link:
        assert (ROOT / link).exists()
