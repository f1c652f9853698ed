"""The parameters that each loss trains."""

from collections.abc import Mapping

from torch import nn

from tinyvae.core.objective import Objective

Groups = Mapping[str, list[nn.Parameter]]


def parameter_groups(objective: Objective, model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Parameters by the name of their loss.

    Raises:
        ValueError: If one is in two groups.
    """
    groups = {n: list(g) for n, g in objective.parameter_groups(model).items()}
    every = [p for group in groups.values() for p in group]
    if len(set(every)) < len(every):
        raise ValueError(
            f"expected parameter groups without a common parameter, got {list(groups)} with "
            f"{len(every) - len(set(every))} of them twice"
        )
    return groups


def same_groups(first: Groups, second: Groups) -> bool:
    """Whether groups have the same names and the very same parameters."""
    return first.keys() == second.keys() and all(
        [id(p) for p in first[name]] == [id(p) for p in second[name]] for name in first
    )


def named_parameters(objective: Objective, model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of the model, and those of the objective as ``objective.*``."""
    own = objective.named_parameters(prefix="objective")
    return dict(model.named_parameters()) | dict(own)
