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
_MOST_UNREADABLE = 8  # answers in a row, before the first score of a process


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
        self._unread: int | None = 0  # answers so far; None once a score was read

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
        except Refused:
            found, label = None, "refused"
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
        said = ""
        for message in (asked, f"{asked}\n\n{hint(self._settings)}"):
            try:
                reply = await self._reply(self._request(message), bill)
                if found := score(reply, self._settings):
                    self._unread = None
                    return found
                said = repr(" ".join(plain(reply.text).split())[:80])
            except InvalidReply as error:
                said = str(error)
            bill.unreadable += 1
        if self._unread is not None:
            self._unread += 1
            if self._unread >= _MOST_UNREADABLE:
                raise StopRun(
                    f"none of the judge's first {self._unread} replies has a score that can be read, such as {said}; "
                    "change --task-option rubric or scale"
                )
        return None

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
