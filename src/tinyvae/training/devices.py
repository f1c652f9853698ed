"""Where a run runs."""

import torch


def choose_device(device: str | torch.device) -> torch.device:
    """The device of a name; ``"auto"`` takes cuda, else mps, else the CPU."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
