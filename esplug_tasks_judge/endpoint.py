"""Endpoint of the judge: sends requests at its pace, and waits while it does not reply."""

import asyncio
import os
import random
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from esplug import StopRun
from esplug_tasks_judge.prompts import plain
from esplug_tasks_judge.replies import InvalidReply, Reply
from esplug_tasks_judge.settings import Settings
from esplug_tasks_judge.store import Store

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

_MAX_BODY = 4 << 20  # bytes of a response that are read
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between two attempts, doubled each time
_FIRST_CONTACT = 10.0  # seconds to wait for an endpoint that has not replied lately, so that a wrong address shows soon
_MOST_ATTEMPTS = 8  # of a request that fails while others get replies
_CONFIGURATION = (401, 402, 404)  # of the key, the account and the model, rather than of one request
_TEMPORARY = (408, 409, 425, 429)


class Refused(Exception):  # noqa: N818 - not an error of this package
    """The endpoint refuses this request, and would refuse it again."""


class _Unavailable(Exception):  # noqa: N818 - never leaves this module
    """The endpoint cannot reply now."""

    def __init__(self, why: str, retry_after: float = 0.0, *, busy: bool = False) -> None:
        super().__init__(why)
        self.retry_after, self.busy = retry_after, busy


class Endpoint:
    """An OpenAI-compatible endpoint, in one event loop."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._key = os.environ.get(settings.api_key_env, "") if settings.api_key_env else ""
        self._interval = 60.0 / settings.requests_per_minute if settings.requests_per_minute else 0.0
        self._has_replied = False
        self._client: AsyncOpenAI | None = None

    async def ask(self, request: Mapping[str, Any], count: Callable[[], None]) -> Reply:
        """Send a request until it gets a reply. Call ``count`` each time that it is sent.

        Raises:
            Refused: the endpoint refuses this request, or fails on it again and again, but has replied to others.
            InvalidReply: the response is no chat completion.
            StopRun: the endpoint has not replied for as long as the settings allow, or it refuses all requests.
        """
        wait, failures, failing_since = _FIRST_WAIT, 0, 0.0
        while True:
            await asyncio.sleep(self._store.turn(self._interval))
            count()
            try:
                reply = await self._send(request)
            except _Unavailable as failure:
                failures, failing_since = failures + 1, failing_since or time.time()
                if failures >= _MOST_ATTEMPTS and not failure.busy and self._store.last_reply() > failing_since:
                    raise Refused(f"{failures} failures ({failure})") from failure
                pause = max(failure.retry_after, wait * random.uniform(0.75, 1.25))
                self._check_patience(failure, time.time() - failing_since, pause)
                if failure.retry_after:
                    self._store.pause(failure.retry_after)
                await asyncio.sleep(pause)
                wait = min(2 * wait, _LONGEST_WAIT)
            else:
                self._has_replied = True
                return reply

    def _check_patience(self, failure: _Unavailable, failing: float, pause: float) -> None:
        """Raise ``StopRun`` if the endpoint has been failing for too long, or would be after the pause."""
        outage, url = self._settings.outage, self._settings.base_url
        known = (
            failure.busy or self._has_replied or time.time() - self._store.last_reply() < max(outage, _FIRST_CONTACT)
        )
        if not known and failing + pause > min(outage, _FIRST_CONTACT):
            raise StopRun(
                f"the judge at {url} does not reply ({failure}); start it, or correct --task-option base_url=ADDRESS"
            )
        if failing + pause > outage:
            remedy = "resume the run when it replies again; --task-option outage=SECONDS waits longer"
            what = f"has not replied for {failing:.0f} s"
            if failure.retry_after > outage:
                what = f"asks to wait for {failure.retry_after:.0f} s"
            raise StopRun(f"the judge at {url} {what} ({failure}); {remedy}")

    async def _send(self, request: Mapping[str, Any]) -> Reply:
        import openai  # slow, so it must not count towards the time limit

        create = self._open_client().chat.completions.with_streaming_response.create
        try:
            async with asyncio.timeout(self._settings.timeout):
                return Reply.of_response(await self._body(create, request))
        except openai.APIStatusError as error:
            raise self._failure(error) from error
        except (openai.APITimeoutError, TimeoutError):
            raise _Unavailable(f"no reply within {self._settings.timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise _Unavailable(self._shown(error.__cause__ or error)) from error
        except (openai.OpenAIError, OSError) as error:
            raise _Unavailable(self._shown(error)) from error

    async def _body(self, create: Callable[..., Any], request: Mapping[str, Any]) -> bytes:
        """Return the response's body, of which at most 4 MiB are read."""
        import httpx

        body = bytearray()
        try:
            async with create(**request) as response:
                async for piece in response.iter_bytes():
                    body += piece
                    if len(body) > _MAX_BODY:
                        raise InvalidReply("the response is too long")
        except httpx.HTTPError as error:  # while the body was read
            raise _Unavailable(self._shown(error)) from error
        return bytes(body)

    def _open_client(self) -> "AsyncOpenAI":
        from openai import AsyncOpenAI

        if self._client is None:
            # Without a key, "none" keeps the client from sending the one in OPENAI_API_KEY.
            self._client = AsyncOpenAI(
                base_url=self._settings.base_url,
                api_key=self._key or "none",
                max_retries=0,
                timeout=self._settings.timeout,
            )
        return self._client

    def _failure(self, error: "APIStatusError") -> Exception:
        status, why = error.status_code, f"status {error.status_code}: {self._shown(error.body or error)}"
        if status >= 500 or status in _TEMPORARY:
            return _Unavailable(why, retry_after(error.response.headers), busy=status == 429)
        if status in _CONFIGURATION or not self._store.last_reply():
            options = "--task-option model, base_url, api_key_env and extra"
            return StopRun(f"the judge at {self._settings.base_url} refuses the request ({why}); check {options}")
        return Refused(why)

    def _shown(self, error: object) -> str:
        """Return an error's text in one short line, without the API key."""
        message = error.get("message") if isinstance(error, Mapping) else None
        text = str(message or error) or type(error).__name__
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(plain(text).split())[:160]


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds to wait that a response asks for; 0 if it does not."""
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif (value := headers.get("retry-after", "0")).strip().replace(".", "", 1).isdigit():
            seconds = float(value)
        else:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), 1e6) if seconds == seconds else 0.0
