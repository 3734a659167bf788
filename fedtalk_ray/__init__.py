"""Federated talking-head diffusion on Ray."""

__version__ = "0.1.0"
