"""Every module of `fedtalk_ray.privacy` opens with what it guarantees, and its examples run."""

import doctest
import importlib
import pkgutil

import pytest

from fedtalk_ray import privacy

MODULES = sorted(module.name for module in pkgutil.iter_modules(privacy.__path__))

WITHOUT_EXAMPLE = {"client_ledger", "client_record", "ledger", "protocol", "secure_server"}
"""They need files, keys or a configuration; `rehearsal` and the tests show them at work."""


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    module = importlib.import_module(f"fedtalk_ray.privacy.{name}")
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
    assert (result.attempted == 0) == (name in WITHOUT_EXAMPLE)


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"protocol", "rehearsal"}))
def test_a_module_says_what_it_guarantees(name: str) -> None:
    assert "Guarantee" in (importlib.import_module(f"fedtalk_ray.privacy.{name}").__doc__ or "")
