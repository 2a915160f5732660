"""Settings that were found to go well together. Who names a recipe may say otherwise about any of them."""

from collections.abc import Mapping
from typing import Any, Literal

Recipe = Literal["paper", "fast"]

#: ``paper``: the settings of ES-at-Scale (arXiv 2509.24372), which are the fields' own defaults. ``fast``: larger
#: steps, which shrink over the run. What either was seen to learn stands in ``benchmarks/README.md``.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper": {"alpha_schedule": "constant"},
    "fast": {"alpha_schedule": "cosine"},
}

#: What alpha is by default, as a multiple of sigma.
STEPS: Mapping[Recipe, float] = {"paper": 0.5, "fast": 2.0}
