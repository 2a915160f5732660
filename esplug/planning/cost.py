"""What a run costs: answers and tokens by counting, seconds from what a probe has measured. Pure arithmetic."""

import math
from dataclasses import dataclass

from esplug.config import RunConfig
from esplug.es.update import momentum_weights


@dataclass(frozen=True, slots=True)
class Work:
    """What a run has to do.

    Attributes:
        iterations: still to be made.
        evaluations: to be made in that time.
        prompts: of a batch.
        answers: of an iteration.
        evaluation_answers: of one evaluation.
        max_tokens: of an answer.
    """

    iterations: int
    evaluations: int
    prompts: int
    answers: int
    evaluation_answers: int
    max_tokens: int

    @property
    def all_answers(self) -> int:
        """Answers of the whole run."""
        return self.iterations * self.answers + self.evaluations * self.evaluation_answers


@dataclass(frozen=True, slots=True)
class Speed:
    """What a probe has measured on the engines of the run. All times are in seconds.

    Attributes:
        engines: that worked at the same time.
        members: that each answered with.
        prompts: that each member answered.
        tokens: of an answer, on average.
        tokens_per_second: of all engines together.
        start: until the engines were ready.
        switch: to write the weights of one engine's members.
        generate: to answer, after that.
        grade: to wait for the last grades.
        update: of the weights by no members.
        update_member: in addition, by each member.
        evaluation_answer: of one engine, for an answer of an evaluation; 0 where there is none.
    """

    engines: int
    members: int
    prompts: int
    tokens: float
    tokens_per_second: float
    start: float
    switch: float
    generate: float
    grade: float
    update: float
    update_member: float
    evaluation_answer: float


@dataclass(frozen=True, slots=True)
class Times:
    """Estimated seconds: the phases of an iteration, an evaluation, and the whole run with its start."""

    generate: float
    switch: float
    grade: float
    update: float
    evaluation: float
    run: float

    @property
    def iteration(self) -> float:
        """All phases together."""
        return self.generate + self.switch + self.grade + self.update


def work_of(config: RunConfig, prompts: int, evaluation_rows: int, done: int = 0) -> Work:
    """Count what a run has to do.

    Args:
        config: of the run.
        prompts: of a batch.
        evaluation_rows: of all splits together.
        done: iterations that an earlier process has made.
    """
    last, every = config.n_iterations, config.eval_freq
    if every:
        evaluations = (last - 1) // every - (done - 1) // every + 1 if last else 1
    else:
        evaluations = 2 if last and not done else 1
    return Work(
        iterations=last - done,
        evaluations=evaluations if evaluation_rows else 0,
        prompts=prompts,
        answers=config.population_size * prompts if last else 0,
        evaluation_answers=evaluation_rows * config.eval_n_samples,
        max_tokens=config.max_tokens,
    )


def times_of(config: RunConfig, work: Work, speed: Speed, n_engines: int, chunk: int) -> Times:
    """Estimate times. Answering and grading are taken to grow with the number of prompts.

    Args:
        config: of the run.
        work: what there is to do.
        speed: what was measured.
        n_engines: of the run.
        chunk: answers that evaluations hand to an engine at a time.
    """
    rounds: float = math.ceil(config.population_size / speed.members) / n_engines
    if work.prompts <= config.mini_batch_size:  # engines do not help one another with a member
        rounds = math.ceil(rounds)
    larger = work.prompts / speed.prompts
    busy = max(1, min(n_engines, math.ceil(work.evaluation_answers / chunk)))
    evaluation = speed.evaluation_answer * work.evaluation_answers / busy
    updates = config.population_size * _momentum_updates(config)
    times = Times(
        generate=rounds * speed.generate * larger,
        switch=rounds * speed.switch,
        grade=speed.grade * larger,
        update=speed.update + updates * speed.update_member,
        evaluation=evaluation,
        run=0.0,
    )
    run = speed.start + work.iterations * times.iteration + work.evaluations * evaluation
    return Times(times.generate, times.switch, times.grade, times.update, evaluation, run)


def _momentum_updates(config: RunConfig) -> float:
    """Return how many updates' noise an update adds on average over the run, which momentum makes more than one."""
    most, n = len(momentum_weights(config.momentum)), max(1, config.n_iterations)
    growing = min(n, most)
    return (growing * (growing + 1) / 2 + (n - growing) * most) / n
