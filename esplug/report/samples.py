"""Samples for the report: answers to the same prompt before and after training, largest changes first."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from esplug.evaluation.figures import Sample, SplitEvaluation


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt's answers before and after training; ``before`` is ``None`` if there is only one evaluation."""

    before: Sample | None
    after: Sample

    @property
    def gain(self) -> float:
        """Increase of the reward."""
        return self.after.reward - self.before.reward if self.before else 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """The first few of ``count`` samples, of ``total`` in all, that the title describes."""

    title: str
    count: int
    total: int
    pairs: tuple[Pair, ...]


def groups(
    before: Mapping[str, SplitEvaluation], after: Mapping[str, SplitEvaluation], most: int | None = 4
) -> list[Group]:
    """Choose the samples of all splits that improved or worsened most; the best and worst if none changed.

    Args:
        before, after: the first and the last evaluation, by split.
        most: samples per group; ``None`` for all samples of the evaluation.
    """
    pairs = [pair for name in after for pair in _pairs(before.get(name), after[name])]
    better = sorted((pair for pair in pairs if pair.gain > 0), key=lambda pair: -pair.gain)
    worse = sorted((pair for pair in pairs if pair.gain < 0), key=lambda pair: pair.gain)
    chosen = [("Improved", better), ("Worsened", worse)]
    if not better and not worse:
        ranked = sorted(pairs, key=lambda pair: -pair.after.reward)
        if pairs and ranked[0].after.reward == ranked[-1].after.reward:
            chosen = [("All the same reward", ranked)]
        else:
            top, bottom = (ranked[end].after.reward for end in (0, -1)) if ranked else (0.0, 0.0)
            best = [pair for pair in ranked if pair.after.reward == top]
            chosen = [("Best", best), ("Worst", [pair for pair in ranked if pair.after.reward == bottom])]
    if most is None:
        listed = [pair for _, found in chosen for pair in found]
        chosen.append(("Others", [pair for pair in pairs if pair not in listed]))
    return [Group(title, len(found), len(pairs), tuple(found[:most])) for title, found in chosen if found]


def _pairs(before: SplitEvaluation | None, after: SplitEvaluation) -> Iterable[Pair]:
    if before is None or before is after:
        return [Pair(None, sample) for sample in after.samples]
    earlier = {(sample.index, sample.sample): sample for sample in before.samples}
    found = ((earlier.get((sample.index, sample.sample)), sample) for sample in after.samples)
    return [Pair(one, two) for one, two in found if one is not None and one.prompt == two.prompt]
