"""The code and the commands of the README and of the documentation's pages run as they are."""

import re
import tomllib
from pathlib import Path

import pytest
from helpers.names import public_names

from tinyvae.datasets import mnist14

ROOT = Path(__file__).parents[1]
# Pages whose code runs, and the files that it writes.
PAGES = {
    "quickstart": {"latent.png", "vae.safetensors"},
    "your_data": {"images", "rows.dat"},
    "own_networks": set(),
    "installation": set(),
    "latent_page": {"latent.html"},
    "migrating": set(),
    "likelihoods": set(),
    "latents": set(),
    "objectives": set(),
    "training": set(),
    "large_data": {"x.npy", "x.h5", "x-0.tar"},
    "tables": {"table.safetensors"},
    "evaluation": set(),
    "metrics": {"traversals.png", "interpolations.png", "neighbors.png"},
    "evaluation_checks": set(),
    "compression": set(),
    "checkpointing": {"runs"},
    "several_processes": {"runs"},
    "tracking": {"runs"},
    "sharing": {"digits", "encoder.pt2", "decoder.pt2"},
    "extending": set(),
}
NEEDED = {"large_data": ("datasets.arrow_dataset", "h5py", "webdataset")}  # not in the group "test"
README = (ROOT / "README.md").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REPOSITORY = PYPROJECT["project"]["urls"]["Repository"]
FILES = [  # addresses of the repository's files, and of images
    f"{REPOSITORY}/blob/main/",
    f"{REPOSITORY.replace('github', 'raw.githubusercontent')}/main/",
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_ci_runs_the_development_commands_of_the_readme():
    (block,) = [block for block in blocks("bash") if "pytest" in block]
    assert block.startswith("python3 -m venv")
    assert f"\n{block}\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.slow
def test_first_example_prints_its_number(capsys: pytest.CaptureFixture[str]):
    code = blocks("python")[0]
    assert len(code.splitlines()) <= 15
    exec(code, {})
    printed = capsys.readouterr().out
    stated = re.search(r"# (-\d+\.\d+) \+- (\d+\.\d+)", code)
    measured = re.match(r"(-\d+\.\d+) \+- (\d+\.\d+)", printed)
    # Another machine rounds differently and so trains slightly different weights.
    assert abs(float(measured[1]) - float(stated[1])) < 3 * float(stated[2])


def test_first_example_is_on_the_first_screen():
    assert README[: README.index("```python")].count("\n") < 29


def test_composition_example_makes_a_model():
    train = mnist14()[0].images[:200]
    namespace = public_names() | {"train": train}
    exec(blocks("python")[1], namespace)
    assert namespace["vae"].sample(2).shape == (2, 1, 14, 14)


def test_table_of_numbers_agrees_with_the_page_of_mnist():
    page = (ROOT / "docs" / "mnist.rst").read_text()
    rows = re.findall(r"mnist_vae.py.*\| (-[\d.]+), (-[\d.]+), (-[\d.]+) \|", README)
    assert len(rows) == 2
    for row in rows:
        assert " / ".join(row) in page


@pytest.mark.slow
@pytest.mark.parametrize(("page", "files"), PAGES.items())
def test_page_code_runs_from_top_to_bottom(page, files, tmp_path, monkeypatch: pytest.MonkeyPatch):
    for package in NEEDED.get(page, ()):
        pytest.importorskip(package)
    text = (ROOT / "docs" / f"{page}.rst").read_text()
    snippets = re.findall(r"::\n\n((?:    .*\n|\n)+)", text)
    assert snippets
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": page}
    for snippet in snippets:
        code = "\n".join(line[4:] for line in snippet.splitlines())
        exec(re.sub(r"epochs=\d+", "epochs=2", code), namespace)
    assert {path.name for path in tmp_path.iterdir()} >= files


def test_source_distribution_holds_what_the_readme_and_tests_name():
    sdist = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]
    included = {*sdist["include"], "/LICENSE", "/README.md"}  # always there
    links = re.findall(rf"\]\({FILES[0]}(\w+)", README)
    needed = {*links, "src", "tests", "tools", "examples", "benchmarks", "constraints", ".ci"}
    missing = {name for name in needed if not any(i.startswith(f"/{name}") for i in included)}
    assert missing == set()


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_link_works_on_the_index_of_packages(link: str):
    assert link.startswith("https://")  # a page of PyPI has no files next to it
    for start in FILES:
        if link.startswith(start):
            assert (ROOT / link.removeprefix(start)).exists()
