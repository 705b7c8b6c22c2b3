"""What is installed: its version, its types, its names and their documentation."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest

import ubatch
from ubatch import errors

PUBLIC = {name: getattr(ubatch, name) for name in ubatch.__all__ if not name.startswith("_")}
MEMBERS = {
    f"{name}.{attribute}": member
    for name, cls in PUBLIC.items()
    if isinstance(cls, type)
    for attribute, member in vars(cls).items()
    if not attribute.startswith("_")
    and (inspect.isfunction(member) or isinstance(member, classmethod | staticmethod | property))
}


def test_the_version_is_the_distributions():
    """What the package says of itself is what was installed."""
    assert ubatch.__version__ == importlib.metadata.version("ubatch")


def test_type_checkers_find_the_types():
    """`py.typed` is shipped."""
    assert files("ubatch").joinpath("py.typed").is_file()


def test_the_package_is_the_one_to_be_tested():
    """Where `UBATCH_EXPECT_SITE` says which installation that is, no other one is picked up by accident."""
    site = os.environ.get("UBATCH_EXPECT_SITE")
    assert site is None or Path(site).resolve() in Path(ubatch.__file__).resolve().parents


def test_all_names_everything_public():
    """Each name once, classes before functions, and all that the package shows of its own."""
    assert ubatch.__all__ == sorted(set(ubatch.__all__), key=lambda name: (not name[0].isupper(), name))
    own = {
        name
        for name, value in vars(ubatch).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and getattr(value, "__module__", "").startswith("ubatch")
    }
    assert own == set(PUBLIC)


def test_every_error_is_public():
    """Who must catch an error can import it from the package."""
    defined = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert defined <= set(PUBLIC)


@pytest.mark.parametrize("name", [*PUBLIC, *MEMBERS])
def test_public_names_are_documented(name):
    """Classes, functions, methods and properties each say what they do, in words of their own."""
    assert ({**PUBLIC, **MEMBERS}[name].__doc__ or "").strip()
