"""Anomaly reporter: prints each kind of failure once and stops a run in which nothing can be graded."""

from collections import Counter
from collections.abc import Iterable, Sequence

from esplug.errors import RunError
from esplug.rewards.grades import Graded
from esplug.utils.console import say

#: Label of completions whose logits held NaN or infinity.
UNDEFINED = "error:NaN"
#: Start of the labels of conversations that failed in the hook ``turn``.
TURN = "turn:"


class AnomalyReporter:
    """Reports anomalies in completions and grades, each kind once a run."""

    def __init__(self) -> None:
        self._reported: set[str] = set()

    def check_grades(self, grades: Sequence[Graded]) -> None:
        """Report the first failure of each kind.

        Raises:
            RunError: every grade failed.
        """
        failed = [grade for grade in grades if grade.failed]
        for grade in failed:
            detail = f"\n{grade.traceback}" if grade.traceback else ""
            what = "a turn" if grade.reward.label.startswith(TURN) else "a reward"
            self._report(f"{what} failed [{grade.reward.label}] and counts 0.0", detail)
        if len(failed) == len(grades):
            labels = Counter(grade.reward.label for grade in failed).most_common()
            remedy = "fix the reward function"
            if labels[0][0] == UNDEFINED:
                remedy = "weights or activations overflow: try a smaller --sigma or --alpha, or --dtype float32"
            elif labels[0][0].startswith(TURN):
                remedy = "fix the task's turn"
            listed = ", ".join(f"{label} x{n}" for label, n in labels)
            raise RunError(f"every reward failed ({listed}), so there is nothing to learn from; {remedy}")

    def check_outputs(self, texts: Iterable[str]) -> None:
        """Report if all completions are empty."""
        if not any(text.strip() for text in texts):
            self._report(
                "every answer is empty: check that the prompt ends where the model's answer should begin, and that "
                "--stop or an end-of-turn token does not match at once"
            )

    def _report(self, message: str, detail: str = "") -> None:
        if message not in self._reported:
            self._reported.add(message)
            say(message + detail)
