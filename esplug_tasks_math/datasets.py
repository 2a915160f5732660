r"""Public benchmarks of competition mathematics from the Hugging Face Hub, with uniform columns.

``esplug data build math`` saves them: MATH, levels 3 to 5, for training; AIME, AMC, MATH-500, Minerva and
OlympiadBench for evaluation. Every row has ``problem`` and ``answer``; ``level`` and ``subject`` if the source does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from esplug import hookimpl
from esplug.hookspecs import HubSource, Row
from esplug_tasks_math.boxes import last_boxed

#: Training half of MATH, one configuration per subject (Hendrycks et al. 2021, arXiv:2103.03874).
MATH = tuple(
    HubSource("EleutherAI/hendrycks_math", "train", config=subject, licence="mit")
    for subject in (
        "algebra",
        "counting_and_probability",
        "geometry",
        "intermediate_algebra",
        "number_theory",
        "prealgebra",
        "precalculus",
    )
)
LEVELS = (3, 4, 5)
AIME = HubSource("HuggingFaceH4/aime_2024", "train")
AMC = HubSource("AI-MO/aimo-validation-amc", "train")
MATH_500 = HubSource("HuggingFaceH4/MATH-500", "test")
MINERVA = HubSource("math-ai/minervamath", "test")
#: Open-ended, text only, mathematics, English, competition.
OLYMPIAD_BENCH = HubSource("Hothan/OlympiadBench", "train", config="OE_TO_maths_en_COMP", licence="apache-2.0")

Fetch = Callable[[HubSource], Sequence[Row]]


@hookimpl
def build(fetch: Fetch) -> Mapping[str, Mapping[str, Sequence[Row]]]:
    """Fetch the sources and convert them to the columns ``problem`` and ``answer``.

    Raises:
        ValueError: a source lacks a column.
    """
    evaluation = {
        "aime": _plain(AIME, fetch),
        "amc": _plain(AMC, fetch),
        "math": _plain(MATH_500, fetch),
        "minerva": _plain(MINERVA, fetch, problem="question"),
        "olympiad_bench": [_olympiad(row) for row in fetch(OLYMPIAD_BENCH)],
    }
    held_out = {_key(row["problem"]) for rows in evaluation.values() for row in rows}
    rows = [trained for source in MATH for row in fetch(source) if (trained := _training(row)) is not None]
    return {"train": {"train": [row for row in rows if _key(row["problem"]) not in held_out]}, "eval": evaluation}


def _training(row: Row) -> dict[str, Any] | None:
    """Convert a row of MATH; return ``None`` for other levels and for solutions without a boxed answer."""
    level = str(_column(row, "level")).removeprefix("Level ")
    answer = last_boxed(_column(row, "solution"))
    if not answer or level not in map(str, LEVELS):
        return None
    return {"problem": _column(row, "problem"), "answer": answer, "level": int(level), "subject": _column(row, "type")}


def _plain(source: HubSource, fetch: Fetch, problem: str = "problem") -> list[dict[str, Any]]:
    """Fetch a source whose answers need no conversion, and rename its columns."""
    return [
        {"problem": _column(row, problem), "answer": _written(_column(row, "answer"))}
        | {name: row[name] for name in ("level", "subject") if name in row}
        for row in fetch(source)
    ]


def _olympiad(row: Row) -> dict[str, Any]:
    """Convert a row of OlympiadBench: prepend the context of the question, and join several answers."""
    context, question = row.get("context"), _column(row, "question")
    answers = _column(row, "final_answer")
    return {
        "problem": f"{context}\n\n{question}" if context else question,
        "answer": ", ".join(answer.strip().strip("$") for answer in answers),
        "subject": row.get("subfield"),
    }


def _written(answer: Any) -> str:
    """Return an answer as text. Those of AMC are floats with whole values."""
    if isinstance(answer, float) and answer.is_integer():
        return str(int(answer))
    return str(answer).strip()


def _key(problem: str) -> str:
    """Normalize a problem, because white space and letter case differ between sources."""
    return "".join(problem.split()).lower()


def _column(row: Row, name: str) -> Any:
    if name not in row:
        raise ValueError(f"a source has no column {name!r}; columns found: {', '.join(row)}")
    return row[name]
