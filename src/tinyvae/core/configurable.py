"""Objects that return the arguments that built them."""

import inspect
from typing import Any


class Configurable:
    """An object whose constructor's arguments are its configuration.

    The constructor stores each argument under its name, or the class has a property of that name.
    Files and copies are built from :meth:`config`.

    Example:
        >>> StandardNormal(2).config()
        {'latent_dim': 2}
    """

    def config(self) -> dict[str, Any]:
        """Return the arguments that build an equal object, by name."""
        return {name: getattr(self, name) for name in argument_names(type(self))}


def argument_names(cls: type) -> list[str]:
    """Return the names of a constructor's arguments, without ``*args`` and ``**kwargs``."""
    parameters = inspect.signature(cls).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.kind not in variadic]
