"""Loads the packages of the extra `evaluate`, or says how to get them."""

from importlib import import_module
from typing import Any

from twinlens.errors import MissingExtra

# The name to install, where it is not the name to import.
_PACKAGES = {"sklearn": "scikit-learn"}


def need(module_name: str, *, purpose: str = "this evaluation") -> Any:
    """The imported module: `need("sklearn.linear_model")`, `need("scipy.stats")`.

    Raises MissingExtra, which names the package, `purpose` and the command that installs it.
    """
    try:
        return import_module(module_name)
    except ModuleNotFoundError as error:
        top = module_name.partition(".")[0]
        if error.name != top:  # It is there, but something that it needs itself is not.
            raise
        raise MissingExtra(_PACKAGES.get(top, top), "evaluate", purpose) from error
