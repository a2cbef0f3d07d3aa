"""ByzFL's aggregators under our rules' names, where ByzFL is installed (`pip install --no-deps byzfl==0.0.11`).

Its package imports a training framework with dependencies of its own, of which the aggregators need none, so only they
are imported.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[Any]


@cache
def byzfl_aggregators() -> ModuleType | None:
    """Return the module of ByzFL's aggregators; None where it is not installed."""
    spec = importlib.util.find_spec("byzfl")
    if spec is None or spec.submodule_search_locations is None:
        return None
    if "byzfl" not in sys.modules:
        package = ModuleType("byzfl")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["byzfl"] = package
    return importlib.import_module("byzfl.aggregators")


def peer(rule: str, pre: Sequence[str], f: int, options: Mapping[str, Any]) -> Callable[[Vectors], Vectors] | None:
    """Return ByzFL's aggregation of vectors (n, d) by a rule and its pre-aggregators; None if it has none like it."""
    chain = stages(rule, pre, f, options)
    if chain is None:
        return None

    def aggregate(vectors: Vectors) -> Vectors:
        for stage in chain:
            vectors = stage(vectors.copy())  # some of them write into what they are given
        return np.asarray(vectors)

    return aggregate


def stages(rule: str, pre: Sequence[str], f: int, options: Mapping[str, Any]) -> list[Callable[[Any], Any]] | None:
    """Return ByzFL's pre-aggregators and its rule, each of numpy's or torch's vectors (n, d); None as `peer`."""
    module = byzfl_aggregators()
    if module is None:
        return None
    rules: dict[str, Callable[[], Any]] = {
        "mean": lambda: module.Average(),
        "median": lambda: module.Median(),
        "trimmed-mean": lambda: module.TrMean(f),
        "krum": lambda: module.Krum(f),
        "multi-krum": lambda: module.MultiKrum(f),
        "geometric-median": lambda: module.GeometricMedian(),
        "mean-around-median": lambda: module.Meamed(f),
        "mda": lambda: module.MDA(f),
    }
    if "tau" in options:
        rules["centred-clipping"] = lambda: module.CenteredClipping(L=options.get("iterations", 3), tau=options["tau"])
    mixing: dict[str, Callable[[], Any]] = {
        "nnm": lambda: module.NNM(f),
        "arc": lambda: module.ARC(f),
        "bucketing": lambda: module.Bucketing(options.get("bucket_size", 2)),
    }
    if "clip_norm" in options:
        mixing["clip"] = lambda: module.Clipping(options["clip_norm"])
    if rule not in rules or any(name not in mixing for name in pre):
        return None
    return [*(mixing[name]() for name in pre), rules[rule]()]
