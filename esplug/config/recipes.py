"""Recipes: settings that work well together. Any other source of settings may override them."""

from collections.abc import Mapping
from typing import Any, Literal

Recipe = Literal["paper", "fast"]

#: ``paper``: the settings of ES-at-Scale (arXiv 2509.24372), which are the fields' own defaults. ``fast``: larger
#: steps that decay over the run. ``benchmarks/learning/README.md`` compares them.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper": {"alpha_schedule": "constant"},
    "fast": {"alpha_schedule": "cosine"},
}

#: Default of alpha, as a multiple of sigma.
STEPS: Mapping[Recipe, float] = {"paper": 0.5, "fast": 2.0}
