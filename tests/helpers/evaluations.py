"""Evaluations built from rewards and passes."""

from esplug.evaluation.figures import Sample, SplitEvaluation


def sample(reward: float = 0.0, passed: bool = False, split: str = "s", index: int = 0, **details) -> Sample:
    usual = {"sample": 0, "prompt": "p", "target": "t", "output": "o", "label": "", "correct": passed}
    usual |= {"tokens": 5, "finished": True}
    return Sample(split=split, index=index, reward=reward, passed=passed, **usual | details)


def split(name: str, *rows: list[tuple[float, bool]], pass_k: tuple[int, ...] = (1,), **details) -> SplitEvaluation:
    """Make a split of rows; a row is a list of (reward, passed), one for each answer."""
    samples = [
        sample(reward, passed, name, index, sample=number)
        for index, row in enumerate(rows)
        for number, (reward, passed) in enumerate(row)
    ]
    return SplitEvaluation(name, samples, pass_k, **details)
