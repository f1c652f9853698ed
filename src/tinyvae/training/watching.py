"""TabularDistribution of the history that something watches."""

from tinyvae.training.history import Row


def require_validation(who: str, monitor: str, *, has_validation: bool, else_watch: str) -> None:
    """Raise if ``who`` watches a column of validation that a run will not have."""
    if monitor.startswith("validation/") and not has_validation:
        raise ValueError(
            f"{who} watches '{monitor}', but fit was given no validation data: give them, or "
            f"watch a column such as monitor='{else_watch}'"
        )


def watched(who: str, monitor: str, row: Row) -> float:
    """Value of the column that ``who`` watches."""
    if monitor not in row:
        raise ValueError(f"{who} watches '{monitor}', expected one of {list(row)}")
    return row[monitor]
