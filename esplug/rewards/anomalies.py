"""What a run notices about its own answers and grades: each kind of failure is shown once, a hopeless run stopped."""

from collections import Counter
from collections.abc import Iterable, Sequence

from esplug.errors import RunError
from esplug.rewards.pool import Graded
from esplug.utils.console import get_console

#: Label of answers from a model whose output is not even numbers.
UNDEFINED = "error:NaN"


class AnomalyReporter:
    """Says each thing once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def grades(self, grades: Sequence[Graded]) -> None:
        """Show the first failure of each kind.

        Raises:
            RunError: nothing could be graded.
        """
        failed = [grade for grade in grades if grade.failed]
        for grade in failed:
            self._say(
                f"a reward failed [{grade.reward.label}] and counts 0.0",
                f"\n{grade.traceback}" if grade.traceback else "",
            )
        if len(failed) == len(grades):
            labels = Counter(grade.reward.label for grade in failed).most_common()
            remedy = "mend the reward function"
            if labels[0][0] == UNDEFINED:
                remedy = "weights or activations overflow: try a smaller --sigma or --alpha, or --dtype float32"
            listed = ", ".join(f"{label} x{n}" for label, n in labels)
            raise RunError(f"every reward failed ({listed}), so there is nothing to learn from; {remedy}")

    def answers(self, texts: Iterable[str]) -> None:
        """Say it where nothing at all was answered."""
        if not any(text.strip() for text in texts):
            self._say(
                "every answer is empty: does the prompt end where the model would begin to answer, and is --stop or an "
                "end-of-turn token met at once?"
            )

    def _say(self, what: str, detail: str = "") -> None:
        if what not in self._said:
            self._said.add(what)
            get_console().print(f"{what}{detail}", markup=False, soft_wrap=True)
