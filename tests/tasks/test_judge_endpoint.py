"""The judge task and its endpoint: requests, faults, limits, and the cache."""

import asyncio
import json
import random
import sqlite3
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import esplug_tasks_judge as task
from esplug import Reward, StopRun
from esplug.errors import RunError, UserError
from esplug.rewards import RewardPool
from esplug.rewards.trial import try_reward
from esplug.testing import check_task
from esplug_tasks_judge import endpoint
from tests.helpers.chat_server import ChatServer, chat_server, completion

cloudpickle.register_pickle_by_value(sys.modules[__name__])

GOOD = completion("yes", {"yes": 0.6, "Yes": 0.15, "no": 0.25})
TARGET = {"prompt": "Write about a hotel."}


@pytest.fixture
def graded(tmp_path: Path) -> Any:
    """Return a function that grades answers against a server, in one process."""

    def grade(server: ChatServer, *answers: str, **options: Any) -> list[Reward]:
        given = dict(task.options()) | {"model": "m", "base_url": server.url, "cache": str(tmp_path)} | options

        async def together() -> list[Reward]:
            return await asyncio.gather(*(task.reward(answer, TARGET, given) for answer in answers))

        return asyncio.run(together())

    return grade


@pytest.fixture
def in_pool(tmp_path: Path) -> Any:
    """Return a function that grades answers in grading processes, as a run does."""

    def grade(server: ChatServer, answers: list[str], processes: int = 2, concurrency: int = 8, **options: Any) -> Any:
        given = dict(task.options()) | {"model": "m", "base_url": server.url, "cache": str(tmp_path)} | options
        reward = partial(task.reward, options=given)
        with RewardPool(reward, timeout=30, processes=processes, concurrency=concurrency) as pool:
            return pool.submit(answers, [TARGET] * len(answers)).result()

    return grade


# --- the endpoint ------------------------------------------------------------------------------------------


def test_a_request_and_what_it_costs(graded) -> None:
    with chat_server(lambda *_: GOOD) as server:
        (first,) = graded(server, "It is kind.", price_in=2.0, price_out=1000.0, extra='{"top_k": 1}')
        (again,) = graded(server, "It is kind.", price_in=2.0, price_out=1000.0, extra='{"top_k": 1}')
    (sent,) = server.requests
    assert "It is kind." in sent["messages"][0]["content"]
    expected = {"model": "m", "temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20, "top_k": 1}
    assert {name: sent.get(name) for name in expected} == expected
    assert (first.value, first.label) == (pytest.approx(0.75), "yes")
    assert dict(first.metrics) == {
        "judge_requests": 1, "judge_cached": 0, "judge_tokens_in": 100, "judge_tokens_out": 1, "judge_unreadable": 0,
        "judge_cost": pytest.approx(0.0012), "judge_logprobs": 1,
    }  # fmt: skip
    assert again.value == first.value
    assert (again.metrics["judge_requests"], again.metrics["judge_cached"], again.metrics["judge_cost"]) == (0, 1, 0)


def test_the_key_comes_from_the_environment_and_only_if_it_is_named(graded, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not-for-others")
    monkeypatch.setenv("JUDGE_KEY", "abc123")
    with chat_server(lambda *_: GOOD) as server:
        graded(server, "a")
        graded(server, "b", api_key_env="JUDGE_KEY")
    assert server.keys == {"Bearer none", "Bearer abc123"}


def faults(*faults: Any) -> Any:
    """Return a reply function that replies with these, in order, and then well."""
    return lambda _, number: faults[number - 1]() if number <= len(faults) else GOOD


@pytest.mark.parametrize(
    ("fault", "requests", "unreadable"),
    [
        (lambda: (429, {"Retry-After": "1"}, b"{}"), 2, 0),
        (lambda: (503, {"Retry-After-Ms": "1000"}, b""), 2, 0),
        (lambda: (500, {}, b"<html>oops"), 2, 0),
        (lambda: (529, {"Retry-After": "soon"}, b""), 2, 0),
        (lambda: None, 2, 0),
        (lambda: time.sleep(1.5) or GOOD, 2, 0),
        (lambda: (200, {"Content-Length": "999999"}, b"{"), 2, 0),
        (lambda: b"<html>", 2, 1),
        (lambda: completion("perhaps"), 2, 1),
        (lambda: completion(None), 2, 1),
        (lambda: b" " * (5 << 20), 2, 1),
    ],
)  # fmt: skip
def test_a_fault_is_asked_again(graded, fault, requests, unreadable) -> None:
    with chat_server(faults(fault)) as server:
        (reward,) = graded(server, "a", timeout=1.0)
    assert reward.value == pytest.approx(0.75)
    assert len(server.requests) == reward.metrics["judge_requests"] == requests
    assert reward.metrics["judge_unreadable"] == unreadable
    if fault() and isinstance(made := fault(), tuple) and "1" in "".join(made[1].values()):
        assert server.times[1] - server.times[0] >= 1.0 - 0.6 * (made[0] == 200)
    repeated = server.requests[1]["messages"][0]["content"]
    assert repeated.endswith("Reply with nothing but yes or no.") is bool(unreadable)


def test_an_unreadable_reply_earns_what_the_user_says_and_is_counted(graded) -> None:
    with chat_server(lambda *_: completion("perhaps")) as server:
        (reward,) = graded(server, "a", unreadable=0.25)
    assert (reward.value, reward.label, reward.metrics["judge_unreadable"]) == (0.25, "unreadable", 2)
    assert len(server.requests) == 2


def test_a_judge_that_never_gives_a_score_stops_the_run(graded) -> None:
    with (
        chat_server(lambda *_: completion("perhaps")) as server,
        pytest.raises(StopRun, match=r"for 8 answers in a row, but 'perhaps'; .*scale"),
    ):
        graded(server, *"abcdefgh")


def test_an_answer_that_the_endpoint_refuses(graded) -> None:
    def reply(body: dict[str, Any], _: int) -> Any:
        refused = json.dumps({"error": {"message": "context too long"}}).encode()
        return (400, {}, refused) if "long" in body["messages"][0]["content"] else GOOD

    with chat_server(reply) as server:
        with pytest.raises(StopRun, match="status 400: context too long"):  # so far, it has replied to nothing
            graded(server, "long")
        fine, refused = graded(server, "short")[0], graded(server, "long", unreadable=0.125)[0]
        many = graded(server, *(f"long {number}" for number in range(20)))  # none of them scored in this process
    assert fine.value == pytest.approx(0.75)
    assert (refused.value, refused.label) == (0.125, "refused")
    assert {each.label for each in many} == {"refused"}


def test_an_answer_on_which_the_endpoint_always_fails_does_not_stop_the_run(graded, monkeypatch) -> None:
    monkeypatch.setattr(endpoint, "_LONGEST_WAIT", 0.05)
    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 0.05)

    def reply(body: dict[str, Any], _: int) -> Any:
        return (500, {}, b"oops") if "crash" in body["messages"][0]["content"] else time.sleep(0.1) or GOOD

    with chat_server(reply) as server:
        graded(server, "before")
        crash, fine = graded(server, "crash", "fine", unreadable=0.125)
    assert (crash.value, crash.label, crash.metrics["judge_requests"]) == (0.125, "refused", 8)
    assert fine.value == pytest.approx(0.75)


@pytest.mark.parametrize("status", [401, 402, 404])
def test_an_account_that_is_closed_stops_the_run(graded, status) -> None:
    with chat_server(lambda _, number: GOOD if number == 1 else (status, {}, b"{}")) as server:
        graded(server, "a")
        with pytest.raises(StopRun, match=rf"\(status {status}: "):
            graded(server, "b")


@pytest.mark.parametrize("status", [401, 403, 404])  # 403 only as long as it has not replied to anything
def test_a_wrong_key_or_model_stops_the_run_without_showing_the_key(graded, monkeypatch, status) -> None:
    monkeypatch.setenv("JUDGE_KEY", "abc123")
    body = json.dumps({"error": {"message": "wrong key abc123\nfor you"}}).encode()
    with (
        chat_server(lambda *_: (status, {}, body)) as server,
        pytest.raises(StopRun, match=rf"\(status {status}: wrong key \*\*\* for you\); check .* extra") as caught,
    ):
        graded(server, "a", api_key_env="JUDGE_KEY")
    assert "abc123" not in str(caught.value)
    assert len(server.requests) == 1


def test_an_endpoint_that_was_never_there_is_found_out_soon(tmp_path) -> None:
    server = ChatServer(lambda *_: GOOD)
    server.port = 9  # nobody listens
    given = dict(task.options()) | {"model": "m", "base_url": server.url, "cache": str(tmp_path), "outage": 0.5}
    with (
        RewardPool(partial(task.reward, options=given), timeout=60, processes=1, concurrency=4) as pool,
        pytest.raises(UserError, match=r"http://127.0.0.1:9/v1 does not reply \(.*\); start it, or correct"),
    ):
        try_reward(pool, [TARGET])


def test_a_pause_longer_than_the_outage_is_named(graded) -> None:
    with (
        chat_server(lambda *_: (429, {"Retry-After": "7200"}, b"{}")) as server,
        pytest.raises(StopRun, match=r"asks to wait for 7200 s \(status 429.*\); resume .* outage=SECONDS"),
    ):
        graded(server, "a")


def test_an_outage_is_waited_for(graded) -> None:
    with chat_server(lambda *_: GOOD) as server:
        graded(server, "before")
        server.stop()
        threading.Timer(1.0, server.start).start()
        rewards = graded(server, *"abcd", outage=20.0)
    assert [reward.value for reward in rewards] == [pytest.approx(0.75)] * 4
    assert all(reward.metrics["judge_requests"] >= 2 for reward in rewards)


def test_an_outage_that_lasts_stops_the_run_and_the_same_answers_resume_it(in_pool) -> None:
    with chat_server(lambda *_: GOOD) as server:
        in_pool(server, ["a", "b"])
        server.stop()
        with pytest.raises(RunError, match=r"stopped the run: the judge at .* has not replied for \d+ s .*; resume"):
            in_pool(server, list("abcdef"), outage=1.0)
        server.start()
        grades = in_pool(server, list("abcdef"), outage=1.0)
    assert [grade.reward.value for grade in grades] == [pytest.approx(0.75)] * 6
    assert [grade.reward.metrics["judge_cached"] for grade in grades] == [1, 1, 0, 0, 0, 0]


def test_a_pause_that_the_endpoint_asks_for_is_everybodys(in_pool) -> None:
    def reply(_: Any, number: int) -> Any:
        return (429, {"Retry-After": "2"}, b"") if number == 1 else time.sleep(0.05) or GOOD

    with chat_server(reply) as server:
        in_pool(server, [str(number) for number in range(12)], concurrency=4)
    pause = server.times[0] + 1.9
    assert sum(when < pause for when in server.times) <= 4  # those that were already under way


def test_the_rate_is_limited_over_all_processes(in_pool) -> None:
    with chat_server(lambda *_: GOOD) as server:
        grades = in_pool(server, [str(number) for number in range(20)], requests_per_minute=1200.0)
    times = sorted(server.times)
    assert times[-1] - times[0] >= 19 * 0.05 - 0.1
    assert len({grade.grader for grade in grades}) == 2


def test_requests_at_once_are_limited_over_all_processes(in_pool) -> None:
    with chat_server(lambda *_: time.sleep(0.3) or GOOD) as server:
        in_pool(server, [str(number) for number in range(40)], concurrency=10)
    assert 5 < server.most_at_once <= 10


# --- the cache ---------------------------------------------------------------------------------------------


def test_the_same_answer_is_sent_once(graded) -> None:
    with chat_server(lambda *_: time.sleep(0.1) or GOOD) as server:
        rewards = graded(server, *["same"] * 10)
    assert len(server.requests) == 1
    assert sorted(reward.metrics["judge_cached"] for reward in rewards) == [0] + [1] * 9


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"}, {"rubric": "{answer}?"}, {"fence": False}, {"judge_tokens": 5}, {"scale": "number"},
        {"extra": '{"seed": 1}'},
    ],
)  # fmt: skip
def test_what_decides_the_score_is_part_of_the_key(graded, change) -> None:
    with chat_server(lambda *_: completion("yes 5")) as server:
        graded(server, "a")
        graded(server, "a", **change)
        graded(server, "a", unreadable=0.5, price_in=1.0, timeout=5.0)
    assert len(server.requests) == 2


def test_one_reply_counts_for_all_processes_and_later_runs(in_pool) -> None:
    chance = random.Random(1)

    def reply(*_: Any) -> bytes:
        time.sleep(0.2)
        return completion("?", {"yes": (share := chance.uniform(0.1, 0.9)), "no": 1 - share})

    with chat_server(reply) as server:
        first = in_pool(server, ["same"] * 8)
        second = in_pool(server, ["same"] * 8)
    assert len({grade.reward.value for grade in first + second}) == 1


def test_a_damaged_entry_is_asked_for_again(graded, tmp_path) -> None:
    with chat_server(lambda *_: GOOD) as server:
        graded(server, "a")
        with sqlite3.connect(tmp_path / "replies.sqlite") as connection:
            connection.execute("UPDATE replies SET reply = '[1, 2'")
        (reward,) = graded(server, "a")
    assert reward.value == pytest.approx(0.75)


def test_a_cache_that_cannot_be_used_is_a_clear_error(graded, tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with chat_server(lambda *_: GOOD) as server, pytest.raises(StopRun, match=r"cannot be used .*cache=FOLDER"):
        graded(server, "a", cache=str(tmp_path / "file"))


# --- the contract ------------------------------------------------------------------------------------------


def test_the_conformance_checks_pass(tmp_path) -> None:
    def reply(body: dict[str, Any], _: int) -> bytes:
        share = 0.9 - len(body["messages"][0]["content"]) / 1e5
        return completion("yes", {"yes": share, "no": 1 - share})

    with chat_server(reply) as server:
        check_task(task, {"model": "m", "base_url": server.url, "cache": str(tmp_path)})
