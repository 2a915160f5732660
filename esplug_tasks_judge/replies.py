"""Replies of the judge: taken out of an untrusted response, and read as a score."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esplug_tasks_judge.settings import Settings

_MAX_TEXT = 20_000  # characters of a reply that are read
_NUMBER = re.compile(r"(?<![\w.])-?\d{1,9}(?:\.\d{1,9})?(?![\w]|\.\d)")
_MARKED = re.compile(r"(?:score|rating|grade)\W{0,12}?(-?\d{1,9}(?:\.\d{1,9})?)(?![\w]|\.\d)", re.IGNORECASE)
_WORD = re.compile(r"\w+")


class InvalidReply(ValueError):  # noqa: N818 - not an error of this package
    """A response is no chat completion."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the judge said."""

    text: str
    first: tuple[tuple[str, float], ...] = ()  #: likeliest first tokens and their log-probabilities, if known
    tokens_in: int = 0
    tokens_out: int = 0

    @classmethod
    def of_response(cls, body: bytes) -> "Reply":
        """Read the body of a response. Raises ``InvalidReply``."""
        try:
            response = json.loads(body)
            choice = response["choices"][0]
            text = choice["message"].get("content") or ""
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise InvalidReply("the response is no chat completion") from None
        if not isinstance(text, str):
            raise InvalidReply("the reply is not text")
        usage = response.get("usage")
        counts = usage if isinstance(usage, Mapping) else {}
        tokens = (_count(counts.get(name)) for name in ("prompt_tokens", "completion_tokens"))
        return cls(text[:_MAX_TEXT].encode(errors="replace").decode(), _first_tokens(choice), *tokens)

    def to_json(self) -> str:
        """Return the reply for the cache."""
        return json.dumps([self.text, self.first, self.tokens_in, self.tokens_out])

    @classmethod
    def of_json(cls, text: str) -> "Reply":
        """Read a reply from the cache."""
        said, first, tokens_in, tokens_out = json.loads(text)
        return cls(str(said), tuple((str(token), float(value)) for token, value in first), tokens_in, tokens_out)


@dataclass(frozen=True, slots=True)
class Score:
    """A score that was read."""

    value: float  #: from 0 to 1
    label: str
    by_logprobs: bool = False


def score(reply: Reply, settings: Settings) -> Score | None:
    """Read the score from a reply; ``None`` if there is none, or more than one."""
    if settings.scale == "number":
        return _number(reply.text, settings.low, settings.high)
    if settings.scale == "choice":
        return _choice(reply.text, settings.labels)
    return _yes_no(reply)


def hint(settings: Settings) -> str:
    """Return what the judge is told when its first reply could not be read."""
    wanted = {
        "number": f"a number from {settings.low:g} to {settings.high:g}",
        "choice": f"one of these words: {', '.join(settings.labels)}",
        "yes-no": "yes or no",
    }
    return f"Reply with nothing but {wanted[settings.scale]}."


def _number(text: str, low: float, high: float) -> Score | None:
    """Read the number that follows "score", "rating" or "grade", or else the only number."""
    least, most = (re.escape(f"{bound:g}") for bound in (low, high))
    text = re.sub(rf"(?<=\d)[\s*]*(?:/|out of)\s*{most}(?!\w|\.\d)", "", text)  # "7/10"
    text = re.sub(rf"(?<![\w.-]){least}\s*(?:-|\u2013|to)\s*{most}(?!\w|\.\d)", "", text)  # "(0-10)"
    found = _MARKED.findall(text)[-1:] or _NUMBER.findall(text)
    if len(found) != 1 or not low <= float(found[0]) <= high:
        return None
    return Score((float(found[0]) - low) / (high - low), "scored")


def _choice(text: str, labels: Mapping[str, float]) -> Score | None:
    """Read the only label in the reply, or else the only one in its last line. Longer labels hide shorter ones."""
    either = re.compile(
        "|".join(rf"(?<!\w){re.escape(label)}(?!\w)" for label in sorted(labels, key=len, reverse=True))
    )
    lowered = text.strip().lower()
    for part in (lowered, lowered.rpartition("\n")[2]):
        if len(found := set(either.findall(part))) == 1:
            (label,) = found
            return Score(labels[label], label)
    return None


def _yes_no(reply: Reply) -> Score | None:
    """Return P(yes) / (P(yes) + P(no)) of the first token, or without log-probabilities 1 or 0 for the first word."""
    sums = {"yes": 0.0, "no": 0.0}
    for token, logprob in reply.first:
        word = token.strip(" \n\u0120\u2581.,!*\"'").lower()
        if word in sums:
            sums[word] += math.exp(logprob)
    if total := sum(sums.values()):
        share = sums["yes"] / total
        return Score(share, "yes" if share >= 0.5 else "no", by_logprobs=True)
    first = [word.lower() for word in _WORD.findall(reply.text)[:1]]
    return Score(float(first == ["yes"]), first[0]) if first and first[0] in sums else None


def _first_tokens(choice: Any) -> tuple[tuple[str, float], ...]:
    try:
        top: Sequence[Any] = choice["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(each["token"], float(each["logprob"])) for each in top[:50]]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return ()
    return tuple((token, min(logprob, 0.0)) for token, logprob in pairs if isinstance(token, str) and logprob > -1e6)


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 10**9 else 0
