"""Evaluation: generates answers to a split's prompts on all engines, and computes figures with confidence intervals.

The code runs in the driver. :mod:`.figures` and :mod:`.statistics` are pure. May import :mod:`esplug.engines`,
:mod:`esplug.rewards`, :mod:`esplug.data` and below.
"""

from esplug.evaluation.figures import Evaluation as Evaluation
from esplug.evaluation.figures import Sample as Sample
from esplug.evaluation.figures import SplitEvaluation as SplitEvaluation
