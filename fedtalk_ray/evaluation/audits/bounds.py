"""What scores of an attack say: areas, rates and lower bounds on epsilon, by jax-privacy's `auditing`.

That module needs numpy, scipy and dp-accounting alone, so it is loaded by its file: its package would bring in JAX.
"""

import importlib.util
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fedtalk_ray.errors import RunError
from fedtalk_ray.evaluation.audits.attack import Figure, NotFinite

CONFIDENCE = 0.95
FPR = 0.01


@cache
def auditing() -> ModuleType:
    """jax-privacy's module. Raises `RunError` where it is not installed."""
    name = "jax_privacy_auditing"
    package = importlib.util.find_spec("jax_privacy")
    if package is None or not package.submodule_search_locations:
        raise RunError("the audit's bounds come from jax-privacy, which is missing: pip install 'fedtalk-ray[audit]'")
    file = Path(next(iter(package.submodule_search_locations))) / "auditing.py"
    found = importlib.util.spec_from_file_location(name, file)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    # Its dataclasses look themselves up by the module's name.
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


def auditor(inside: Sequence[float] | np.ndarray, outside: Sequence[float] | np.ndarray) -> Any:
    """A `CanaryScoreAuditor`: higher scores say "inside". Raises `NotFinite`."""
    for scores in (inside, outside):
        if not len(scores) or not np.isfinite(scores).all():
            raise NotFinite("an attack's scores must be finite numbers, at least one on each side")
    return auditing().CanaryScoreAuditor(np.asarray(inside, float), np.asarray(outside, float))


def separation(inside: Sequence[float] | np.ndarray, outside: Sequence[float] | np.ndarray, name: str) -> list[Figure]:
    """How well scores tell the two apart: the area under the curve, and the true positives at 1% of false ones.

    Intervals are bootstrapped over both groups.
    """
    found = auditor(inside, outside)
    resampled = auditing().BootstrapParams.confidence_interval(1000, CONFIDENCE, seed=0)
    low, high = found.attack_auroc(bootstrap_params=resampled)
    area = Figure(f"{name}: AUC", float(found.attack_auroc()), float(low), float(high), chance=0.5)
    low, high = found.tpr_at_given_fpr(FPR, bootstrap_params=resampled)
    rate = Figure(f"{name}: TPR at 1% FPR", float(found.tpr_at_given_fpr(FPR)), float(low), float(high), chance=FPR)
    return [area, rate]


def proportion(name: str, hits: int, trials: int, chance: float) -> Figure:
    """A share of hits with its Clopper-Pearson interval."""
    from scipy.stats import binomtest

    bounds = binomtest(hits, trials).proportion_ci(CONFIDENCE, method="exact")
    return Figure(name, hits / trials, float(bounds.low), float(bounds.high), chance)
