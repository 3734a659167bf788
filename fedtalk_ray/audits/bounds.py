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

from fedtalk_ray.audits.attack import Figure, NotFinite
from fedtalk_ray.errors import RunError

CONFIDENCE = 0.95
FPR = 0.01
SHUFFLES = 200


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

    The curve is the best that thresholds drawn at random between two others can do (its hull), so of few people even
    scores that mean nothing reach more than one half: what they reach is told as chance, the mean over `SHUFFLES` of
    who is inside. Intervals are bootstrapped over both groups.
    """
    found = auditor(inside, outside)
    resampled = auditing().BootstrapParams.confidence_interval(1000, CONFIDENCE, seed=0)
    rng, both = np.random.default_rng(0), np.concatenate([inside, outside])
    shuffled = [
        auditor(order[: len(inside)], order[len(inside) :]) for order in rng.permuted([both] * SHUFFLES, axis=1)
    ]
    figures = []
    for what, measure in (
        ("AUC", lambda scores, **more: scores.attack_auroc(**more)),
        ("TPR at 1% FPR", lambda scores, **more: scores.tpr_at_given_fpr(FPR, **more)),
    ):
        low, high = measure(found, bootstrap_params=resampled)
        chance = float(np.mean([measure(each) for each in shuffled]))
        figures.append(Figure(f"{name}: {what}", float(measure(found)), float(low), float(high), chance))
    return figures


def proportion(name: str, hits: int, trials: int, chance: float) -> Figure:
    """A share of hits with its Clopper-Pearson interval."""
    from scipy.stats import binomtest

    bounds = binomtest(hits, trials).proportion_ci(CONFIDENCE, method="exact")
    return Figure(name, hits / trials, float(bounds.low), float(bounds.high), chance)
