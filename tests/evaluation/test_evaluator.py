"""The evaluator: which answers it asks for, with which seeds, and what it makes of what comes back."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esplug.config import make_config
from esplug.data.splits import EvaluationSplit
from esplug.engines import Job
from esplug.engines.messages import Completion, Generation, Sampling, Weights
from esplug.evaluation.evaluator import CHUNK, Evaluator, sampling_seed
from esplug.evaluation.figures import SplitEvaluation
from esplug.hookspecs import Reward
from esplug.rewards import Graded
from esplug.utils.progress import LiveProgress


class Engines:
    """Answers with prompt and seed, the last job first."""

    def __init__(self) -> None:
        self.jobs: list[Job[int]] = []

    def run(self, jobs: Iterable[Job[int]], rows: Any) -> Iterator[tuple[int, Generation]]:
        self.jobs = list(jobs)
        for job in reversed(self.jobs):
            answers = [f"{ids[0]} {seed}" for ids, seed in zip(job.prompts, job.seeds, strict=True)]
            yield job.keys[0], Generation([Completion(a, len(a), len(a) % 2 == 0) for a in answers])


class Pending:
    def __init__(self, graded: list[Graded]) -> None:
        self.graded = graded

    def result(self) -> list[Graded]:
        return self.graded


def rows(count: int, first: int = 0) -> EvaluationSplit:
    """Make a split whose n-th prompt is the token n, and whose target is n as well."""
    numbers = range(first, first + count)
    return EvaluationSplit([f"prompt {n}" for n in numbers], [[n] for n in numbers], list(numbers))


def evaluate(
    splits: dict[str, EvaluationSplit], reward=lambda output, target: Graded(Reward(0.0)), device="cpu", **settings: Any
) -> tuple[list[SplitEvaluation], list[Graded], list[Job[int]]]:
    engines = Engines()

    def grade(generation: Generation, targets: Sequence[Any]) -> Pending:
        answers = zip(generation.completions, targets, strict=True)
        return Pending([reward(answer.text, target) for answer, target in answers])

    evaluator = Evaluator(make_config(settings), splits, device)
    with LiveProgress(0, enabled=False) as progress:
        evaluated, grades = evaluator.evaluate(engines.run, grade, progress, "evaluation")
    return evaluated, grades, engines.jobs


SAMPLED = {"eval_n_samples": 3, "eval_temperature": 0.8}


def test_every_answer_finds_its_row_whatever_comes_first() -> None:
    splits = {"a": rows(40), "b": rows(5, first=100)}
    evaluated, grades, _ = evaluate(splits, lambda output, target: Graded(Reward(target, output)), **SAMPLED)
    assert [split.split for split in evaluated] == ["a", "b"]
    for split, (name, asked) in zip(evaluated, splits.items(), strict=True):
        keys = [(sample.split, sample.index, sample.sample) for sample in split.samples]
        assert keys == [(name, index, number) for index in range(len(asked.prompts)) for number in range(3)]
        for sample in split.samples:
            seed = sampling_seed(42, asked.texts[sample.index], sample.index, sample.sample)
            assert sample.output == sample.label == f"{asked.prompts[sample.index][0]} {seed}"
            assert sample.target == sample.reward == asked.targets[sample.index]
            assert sample.prompt == asked.texts[sample.index]
            assert sample.tokens == len(sample.output)
            assert sample.finished == (len(sample.output) % 2 == 0)
        assert [len(row) for row in split.rows] == [3] * len(asked.prompts)
    assert [grade.reward.label for grade in grades] == [s.output for split in evaluated for s in split.samples]


@pytest.mark.parametrize("device", list(CHUNK))
def test_jobs_are_small_never_cross_splits_and_carry_the_settings(device) -> None:
    splits = {"a": rows(CHUNK[device] + 1), "b": rows(3, first=1000), "c": rows(CHUNK[device], first=2000)}
    settings = {"eval_temperature": 0.5, "eval_top_p": 0.9, "max_tokens": 7, "stop": ["x"], "mini_batch_size": 5}
    _, _, jobs = evaluate(splits, device=device, **settings)
    assert [job.keys for job in jobs] == [[0], [1], [2], [3]]
    assert [len(job.prompts) for job in jobs] == [CHUNK[device], 1, 3, CHUNK[device]]
    assert [{ids[0] // 1000 for ids in job.prompts} for job in jobs] == [{0}, {0}, {1}, {2}]
    for job in jobs:
        assert job.weights == [Weights()]
        assert job.sampling == Sampling(7, 0.5, 0.9, ("x",))
        assert job.mini_batch_size == 5
        assert len(job.seeds) == len(job.prompts)


def test_training_sampling_is_not_that_of_evaluation() -> None:
    _, _, (job,) = evaluate({"a": rows(2)}, train_temperature=1.0, train_top_p=0.5)
    assert job.sampling == Sampling(512, 0.0, 1.0, ())


def seeds_of(splits: dict[str, EvaluationSplit], **settings: Any) -> dict[str, list[int]]:
    """Seeds by the text that shows them, split by split."""
    evaluated, _, _ = evaluate(splits, **SAMPLED | settings)
    return {split.split: [int(sample.output.split()[1]) for sample in split.samples] for split in evaluated}


def test_seeds_depend_on_nothing_else_that_is_evaluated() -> None:
    both = seeds_of({"a": rows(50), "b": rows(50)})
    assert seeds_of({"a": rows(20)})["a"] == both["a"][: 20 * 3]
    assert seeds_of({"b": rows(50), "z": rows(1), "a": rows(50)}).items() >= both.items()
    one = seeds_of({"a": rows(50)}, eval_n_samples=1)["a"]
    assert one == both["a"][::3]
    assert seeds_of({"a": rows(50), "b": rows(50)}, mini_batch_size=1, max_tokens=3) == both
    assert both["a"] == both["b"]  # the same rows, whatever the split is called
    every = [*both["a"], *seeds_of({"a": rows(50)}, seed=43)["a"]]
    assert len(set(every)) == len(every)


names = st.text(alphabet="a1 ", max_size=4)
requests = st.tuples(st.integers(0, 2**64 - 1), names, st.integers(0, 12), st.integers(0, 12))


@given(requests, requests)
def test_seeds_differ_and_fit(one, other) -> None:
    seeds = [sampling_seed(*request) for request in (one, other)]
    assert (seeds[0] == seeds[1]) == (one == other)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_where_the_task_says_what_is_correct_that_decides() -> None:
    def reward(output: str, target: int) -> Graded:
        if target == 2:
            return Graded(Reward(0.0, "timeout"), failed=True)
        return Graded(Reward(5.0 * (target == 0), correct=target == 1))

    (split,), _, _ = evaluate({"a": rows(3)}, reward)
    assert split.by_task
    assert [sample.passed for sample in split.samples] == [False, True, False]
    assert [sample.correct for sample in split.samples] == [False, True, None]
    assert split.pass_at_1.mean == pytest.approx(1 / 3)


@pytest.mark.parametrize(("max_reward", "passed"), [(1.0, [0, 0, 1, 1]), (0.5, [0, 1, 1, 1]), (2.5, [0, 0, 0, 1])])
def test_where_it_does_not_the_reward_decides(max_reward, passed) -> None:
    rewards = [0.25, 0.5, 1.0, 3.0]
    (split,), _, _ = evaluate({"a": rows(4)}, lambda _, i: Graded(Reward(rewards[i])), max_reward=max_reward)
    assert not split.by_task
    assert [sample.passed for sample in split.samples] == passed
    assert {sample.correct for sample in split.samples} == {None}
    assert split.passes() == passed


def test_an_answer_that_could_not_be_graded_does_not_pass() -> None:
    """Rewards may be penalties, 0 at best; a failure counts 0 too."""

    def reward(output: str, target: int) -> Graded:
        return (
            Graded(Reward(0.0, "error:ValueError"), failed=True) if target == 0 else Graded(Reward(float(target - 2)))
        )

    (split,), _, _ = evaluate({"a": rows(3)}, reward, max_reward=0.0)
    assert [sample.reward for sample in split.samples] == [0.0, -1.0, 0.0]
    assert [sample.passed for sample in split.samples] == [False, False, True]


def test_the_k_of_pass_k_are_those_asked_for() -> None:
    settings = {"eval_n_samples": 4, "eval_temperature": 1.0, "pass_k": "4,2"}
    (split,), _, _ = evaluate({"a": rows(3)}, lambda output, _: Graded(Reward(0.0, correct=True)), **settings)
    assert [name for name in split.figures if name.startswith("pass")] == ["pass@1", "pass@2", "pass@4"]
    assert split.passes(4) == [1.0, 1.0, 1.0]


def test_fingerprints_name_the_content() -> None:
    def fingerprint(texts: list[str], targets: list[Any]) -> str:
        return EvaluationSplit(texts, [[1]] * len(texts), targets).fingerprint()

    base = fingerprint(["one", "two"], [1, {"a": "2"}])
    assert base == fingerprint(["one", "two"], [1, {"a": "2"}])
    others = [
        fingerprint(["one", "two!"], [1, {"a": "2"}]),
        fingerprint(["two", "one"], [1, {"a": "2"}]),
        fingerprint(["one", "two"], [1, {"a": 2}]),
        fingerprint(["one"], [1]),
        fingerprint(["one", "two", "two"], [1, {"a": "2"}, {"a": "2"}]),
        fingerprint(["a 1\n1 b"], [1]),
        fingerprint(["a", "b"], [1, 1]),
        fingerprint(["odd \ud800"], [1]),
    ]
    assert len({base, *others}) == len(others) + 1
