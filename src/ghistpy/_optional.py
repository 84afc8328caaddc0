"""Optional dependencies: imported when they are needed, with an error that says how to get them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra of ghistpy brings it.

    Parameters
    ----------
    module
        Dotted name of the module, e.g. ``"instanseg"``.
    extra
        Extra of ghistpy that installs it, e.g. ``"instanseg"``.

    Returns
    -------
    The imported module.

    Raises
    ------
    ImportError
        The module, or something that it imports, is not installed. The message holds the pip line.

    Examples
    --------
    >>> require("json", extra="wsi").loads("[1, 2]")
    [1, 2]
    """
    try:
        return import_module(module)
    except ImportError as error:
        # A module that is there but fails inside (a broken dependency) must not read like an absent one.
        absent = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        what = "is not installed" if absent else f"is installed but does not import ({error})"
        raise ImportError(
            f"{module!r} {what}. It is an optional dependency of ghistpy: pip install 'ghistpy[{extra}]'", name=module
        ) from error
