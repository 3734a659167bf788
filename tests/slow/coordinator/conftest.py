"""The gate of the quick tests."""

from tests.unit.coordinator.conftest import standing

__all__ = ["standing"]
