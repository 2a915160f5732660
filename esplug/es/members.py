"""Members of a population: their seeds and signs."""

from dataclasses import dataclass

from esplug.noise.full_rank import member_seed


@dataclass(frozen=True, slots=True)
class Member:
    """One perturbation of the population: ``master + sign * sigma * eps(seed)``."""

    index: int
    seed: int
    sign: int


def population(run_seed: int, iteration: int, size: int, *, antithetic: bool) -> list[Member]:
    """Draw the members of an iteration. With ``antithetic``, members 2k and 2k+1 mirror each other."""
    if not antithetic:
        return [Member(i, member_seed(run_seed, iteration, i), +1) for i in range(size)]
    return [Member(i, member_seed(run_seed, iteration, i // 2), +1 - 2 * (i % 2)) for i in range(size)]
