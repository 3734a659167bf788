"""Every module of `fedtalk_ray.privacy` opens with what it guarantees, and its examples run."""

import doctest
import importlib
import pkgutil

from fedtalk_ray import privacy

WITHOUT_EXAMPLE = {"client_ledger", "client_record", "ledger", "protocol", "secure_server"}
"""They need files, keys or a configuration; `rehearsal` and the tests show them at work."""


def test_the_examples_of_all_modules_run_and_each_says_what_it_guarantees() -> None:
    without = set()
    for name in (module.name for module in pkgutil.iter_modules(privacy.__path__)):
        module = importlib.import_module(f"fedtalk_ray.privacy.{name}")
        result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
        assert result.failed == 0, name
        without |= {name} if result.attempted == 0 else set()
        assert "Guarantee" in (module.__doc__ or "") or name in ("protocol", "rehearsal"), name
    assert without == WITHOUT_EXAMPLE
