"""Models as folders, also on the Hugging Face Hub."""

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tinyvae import models
from tinyvae._version import __version__
from tinyvae.errors import CheckpointError
from tinyvae.evaluation import Report
from tinyvae.hub.card import model_card
from tinyvae.io import write_atomically, write_json
from tinyvae.models.base import DecoderModel

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
MODELS = {
    name: cls
    for name, cls in vars(models).items()
    if isinstance(cls, type) and issubclass(cls, DecoderModel) and cls is not DecoderModel
}
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


def save_pretrained(
    model: DecoderModel,
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    data: str | None = None,
    license: str | None = None,  # noqa: A002 - the name of the field on the Hub
    report: Report | None = None,
) -> None:
    """Write a model to a folder: weights, description and model card.

    Files of the same names are replaced, others stay.

    Args:
        model: The model.
        folder: Folder. A missing one is made.
        name: Name in the card, by default the folder's.
        data: See :func:`model_card`, also for the other arguments.
        license: See :func:`model_card`.
        report: See :func:`model_card`.

    Raises:
        TypeError: If a file cannot describe the model, so that it would not load.

    Example:
        >>> from tinyvae.hub import from_pretrained, save_pretrained
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(vae, folder, data="Random bits.", license="mit")
        ...     loaded = from_pretrained(folder)
        >>> torch.equal(loaded.reconstruct(x), vae.reconstruct(x))
        True
    """
    if not isinstance(model, DecoderModel):
        raise TypeError(
            f"save_pretrained expects a model, such as a VAE, got a {type(model).__name__}: "
            "save the model itself"
        )
    folder = Path(folder)
    description = model.description()  # raises before anything is written
    card = model_card(
        model, name or folder.resolve().name, data=data, license=license, report=report
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / WEIGHTS)
    write_json(folder / CONFIG, {"library": "tinyvae", "version": __version__, **description})
    write_atomically(folder / CARD, card.encode())


def from_pretrained(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    parts: Iterable[type[nn.Module]] = (),
    replace: Mapping[str, nn.Module] | None = None,
) -> Any:
    """Read a model from a folder, or from the Hugging Face Hub, on the CPU, in evaluation mode.

    No code of the folder runs, and no file is a pickle.

    Args:
        name: Folder that :func:`save_pretrained` wrote, or the name of a repository of the Hub,
            ``"user/name"``. A folder has priority.
        revision: Branch, tag or commit on the Hub. Name a commit to get the same weights always.
        parts: Your own classes that the file names, also a class of models.
        replace: See ``load`` of the model.

    Returns:
        The model, of the class that was saved.

    Raises:
        CheckpointError: If a file is missing, damaged, or contradicts the other one.
        FileNotFoundError: If there is neither such a folder nor a valid name of a repository.
        ImportError: If huggingface_hub is missing (extra ``hub``), for a repository.
    """
    parts, folder = tuple(parts), Path(name)
    if not folder.is_dir():
        if not REPOSITORY.fullmatch(os.fspath(name)):
            raise FileNotFoundError(
                f"from_pretrained expects a folder or a repository 'user/name', got {name}, "
                "which is neither"
            )
        files = [WEIGHTS, CONFIG]
        snapshot = _hub().snapshot_download(
            os.fspath(name), revision=revision, allow_patterns=files, library_name="tinyvae"
        )
        folder = Path(snapshot)
    config = _read_config(folder / CONFIG)
    known = MODELS | {cls.__name__: cls for cls in parts if issubclass(cls, DecoderModel)}
    if config.get("model") not in known:
        raise CheckpointError(
            f"{folder / CONFIG} names the model {config.get('model')!r:.80}, expected one of "
            f"{sorted(known)}: pass a class of your own in parts="
        )
    try:
        model = known[config["model"]].load(folder / WEIGHTS, parts=parts, replace=replace)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {WEIGHTS}: save or download it again") from error
    if replace is None and model.description()["parts"] != config.get("parts"):
        raise CheckpointError(
            f"{folder / CONFIG} describes other parts than {WEIGHTS}, which holds the model: "
            "restore the file that save_pretrained wrote"
        )
    return model


def push_to_hub(
    model: DecoderModel,
    repository: str,
    *,
    token: str | None = None,
    private: bool = False,
    data: str | None = None,
    license: str | None = None,  # noqa: A002 - the name of the field on the Hub
    report: Report | None = None,
) -> str:
    """Upload what :func:`save_pretrained` writes to a repository of the Hugging Face Hub.

    A missing repository is made. An upload replaces the model card.

    Args:
        model: The model.
        repository: Name, ``"user/name"``.
        token: Access token. By default that of ``hf auth login``.
        private: True to make a new repository private.
        data: See :func:`model_card`, also for the other arguments.
        license: See :func:`model_card`.
        report: See :func:`model_card`.

    Returns:
        Address of the repository.

    Raises:
        ImportError: If huggingface_hub is missing (extra ``hub``).
        TypeError: If a file cannot describe the model, so that it would not load.
    """
    api = _hub().HfApi(token=token, library_name="tinyvae", library_version=__version__)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, name=repository, data=data, license=license, report=report)
        url = api.create_repo(repository, private=private, exist_ok=True)
        message = f"Upload a {type(model).__name__} of tinyvae {__version__}"
        api.upload_folder(folder_path=folder, repo_id=repository, commit_message=message)
    return str(url)


def _read_config(path: Path) -> Any:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} has no {CONFIG}: read a single file by VAE.load(path)"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is damaged: expected an object, got {config!r:.80}")
    return config


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            "the Hugging Face Hub needs huggingface_hub: install the extra, pip install "
            "'tinyvae[hub]'"
        ) from error
    return huggingface_hub
