"""Judge: the reward of one answer, from the cache or from the endpoint, and what it cost."""

import asyncio
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from esplug import Reward, StopRun
from esplug_tasks_judge.endpoint import Endpoint, Refused
from esplug_tasks_judge.prompts import plain, question
from esplug_tasks_judge.replies import InvalidReply, Reply, Score, hint, score
from esplug_tasks_judge.settings import Settings
from esplug_tasks_judge.store import Store, key_of

_TOP_LOGPROBS = 20  # the most that endpoints give
_MOST_WITHOUT_SCORE = (8, 200)  # answers in a row: before the first score of a process, and later


@dataclass
class _Bill:
    """What judging one answer took. The field names are names of metrics."""

    requests: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    unreadable: int = 0


class Judge:
    """Grades answers with the same settings, in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = Store(settings.folder, settings.base_url)
        self._endpoint = Endpoint(settings, self._store)
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._has_scored, self._without_score, self._said = False, 0, ""

    async def reward(self, answer: str, prompt: str, reference: str) -> Reward:
        """Grade one answer.

        Raises:
            StopRun: the endpoint does not reply, or nothing that it says can be read.
        """
        settings, bill, label = self._settings, _Bill(), "unreadable"
        fence, longest = settings.fence, settings.max_characters
        try:
            asked = question(settings.rubric, prompt, answer, reference, fence=fence, longest=longest)
            found = await self._score(asked, bill)
        except Refused as error:
            found, label, self._said = None, "refused", str(error)
        self._count(found, refused=label == "refused")
        if found is None:
            found = Score(settings.unreadable, label)
        metrics: dict[str, float] = {f"judge_{name}": value for name, value in asdict(bill).items()}
        if settings.price_in or settings.price_out:
            metrics["judge_cost"] = (bill.tokens_in * settings.price_in + bill.tokens_out * settings.price_out) / 1e6
        if settings.scale == "yes-no":
            metrics["judge_logprobs"] = found.by_logprobs
        return Reward(found.value, found.label, metrics=metrics)

    async def _score(self, asked: str, bill: _Bill) -> Score | None:
        """Ask for a score, and once more with a hint if the reply cannot be read."""
        for message in (asked, f"{asked}\n\n{hint(self._settings)}"):
            try:
                reply = await self._reply(self._request(message), bill)
                if found := score(reply, self._settings):
                    return found
                self._said = repr(" ".join(plain(reply.text).split())[:80])
            except InvalidReply as error:
                self._said = str(error)
            bill.unreadable += 1
        return None

    def _count(self, found: Score | None, *, refused: bool) -> None:
        """Stop the run if no answer gets a score. An endpoint that refuses an answer has replied to others before."""
        if found:
            self._has_scored, self._without_score = True, 0
            return
        self._without_score += 1
        if self._without_score >= _MOST_WITHOUT_SCORE[self._has_scored or refused]:
            raise StopRun(
                f"the judge gave no readable score for {self._without_score} answers in a row, but {self._said}; "
                "change --task-option rubric or scale"
            )

    async def _reply(self, request: Mapping[str, Any], bill: _Bill) -> Reply:
        """Return the reply to a request. The same one is sent once, even if several answers need it at a time."""
        key = key_of(self._settings.base_url, request)
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            if known := self._store.find(key):
                bill.cached += 1
                return known

            def count() -> None:
                bill.requests += 1

            reply = await self._endpoint.ask(request, count)
            bill.tokens_in += reply.tokens_in
            bill.tokens_out += reply.tokens_out
            return self._store.keep(key, reply)

    def _request(self, message: str) -> dict[str, Any]:
        settings = self._settings
        yes_no = settings.scale == "yes-no"
        request: dict[str, Any] = {
            "model": settings.model,
            "messages": [{"role": "user", "content": message}],
            "temperature": 0,
            "max_tokens": settings.judge_tokens or (1 if yes_no else 16),
        }
        if yes_no:
            request |= {"logprobs": True, "top_logprobs": _TOP_LOGPROBS}
        return request | ({"extra_body": settings.extra_fields} if settings.extra_fields else {})


@lru_cache(maxsize=4)
def judge(settings: Settings, loop: asyncio.AbstractEventLoop) -> Judge:
    """Return the judge of an event loop, on which its connections depend."""
    return Judge(settings)
