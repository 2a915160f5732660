"""Conversations of several turns: the same whatever is done first, and a failed turn costs only its own."""

import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esplug.config import make_config
from esplug.conversations.dialogues import Dialogues
from esplug.conversations.turns import max_turns, turn_seeds
from esplug.data.conversation import Conversation
from esplug.engines import Job
from esplug.engines.jobs import FollowUps
from esplug.engines.messages import Completion, Generation, Sampling, Weights, Work
from esplug.engines.scheduler import Piece, WorkScheduler
from esplug.errors import UserError
from esplug.hookspecs import Message, Reward
from esplug.rewards import Graded, PendingRewards, RewardPool
from esplug.rewards.replies import MAX_REPLY_CHARACTERS
from tests.helpers.rewards import nothing_left
from tests.helpers.timing import within

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no grader need import this file, and pytest with it

LONGEST, END = 40, 999


class Encoder:
    """Has ten tokens between turns."""

    longest = LONGEST

    def between_turns(self, prompt: Any, said: Sequence[Message], reply: Sequence[Message]) -> list[int]:
        if reply[0]["content"] == "unspeakable":
            raise UserError("the model's chat template rejects the task's messages (no)")
        return [END, *(ord(character) for message in reply for character in message["content"])]


def answer_of(weights: Weights, ids: Sequence[int], seed: int) -> Completion:
    """Answer with what the arguments alone decide, as an engine does."""
    digest = blake2b(repr((weights.member_seed, list(ids), seed)).encode(), digest_size=3).digest()
    text = digest.hex()
    return Completion(text, 1 + digest[0] % 4, digest[1] % 5 > 0, tuple(digest[: 1 + digest[0] % 3]))


class Engines:
    """Engines that finish in a random order; some pieces fail once. Uses the pool's scheduler."""

    def __init__(self, count: int, draw: random.Random, environment: "Environment | None" = None, faults: int = 0):
        self.count, self.draw, self.environment, self.faults = count, draw, environment, faults
        self.jobs: list[Job[Any]] = []
        self.undefined: set[int] = set()  # member seeds whose answers mean nothing
        self.switches = self.waits = 0

    def run_pieces(
        self, jobs: Iterable[Job[Any]], later: FollowUps[Any]
    ) -> Iterator[tuple[Piece[Job[Any]], list[Generation]]]:
        schedule: WorkScheduler[Job[Any]] = WorkScheduler(jobs, Job.n_mini_batches)
        busy: dict[int, Piece[Job[Any]]] = {}
        holds: dict[int, Weights] = {}
        while True:
            for after, job in later.ready():
                schedule.add(job, after)
            for engine in self.draw.sample(range(self.count), self.count):
                if engine not in busy and (piece := schedule.take(engine)):
                    busy[engine] = piece
                    self.switches += holds.get(engine) != piece.job.weights[0]
                    holds[engine] = piece.job.weights[0]
            if self.environment and (not busy or self.draw.random() < 0.5):
                self.environment.reply()
                self.waits += not busy
                if not busy and not later.awaited():
                    return
                continue
            if not busy:
                if not later.awaited():
                    return
                time.sleep(0.01)
                continue
            engine = self.draw.choice(sorted(busy))
            piece = busy.pop(engine)
            if self.faults and self.draw.random() < 0.3:
                self.faults -= 1
                holds.pop(engine)
                schedule.requeue(engine)
                continue
            schedule.done(engine, 0.1, 1.0)
            yield piece, [self.generation(piece)]

    def generation(self, piece: Piece[Job[Any]]) -> Generation:
        job, part = piece.job, piece.job.mini_batch(piece.number)
        assert job.sampling.return_ids
        self.jobs.append(job)
        (weights,) = job.weights
        pairs = zip(job.prompts[part], job.seeds[part], strict=True)
        completions = [answer_of(weights, ids, seed) for ids, seed in pairs]
        return Generation(completions, (Work(0, 0.0, 0.1, 1.0),), int(weights.member_seed in self.undefined))


class Environment:
    """Stands for the graders: replies when told to, in a random order."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.asked: list[tuple[PendingRewards, int, list[Message], Any]] = []

    def turn(self, conversations: Sequence[list[Message]], targets: Sequence[Any]) -> PendingRewards:
        pending = PendingRewards(len(conversations))
        self.asked += [
            (pending, i, list(messages), target)
            for i, (messages, target) in enumerate(zip(conversations, targets, strict=True))
        ]
        return pending

    def reply(self) -> None:
        if self.asked:
            pending, index, messages, target = self.asked.pop(self.draw.randrange(len(self.asked)))
            pending.set_grade(index, Graded(Reward(0.0), reply=turn(messages, target)))


def turn(messages: list[Message], target: int) -> list[Message] | None:
    last = messages[-1]["content"]
    assert messages[-1]["role"] == "assistant"
    return None if int(last, 16) % 4 == target % 4 else [{"role": "user", "content": last[:2]}]


def jobs_of(members: int, rows: int, mini_batch: int) -> Iterator[Job[int]]:
    prompts, seeds = [[row, row] for row in range(rows)], [100 + row for row in range(rows)]
    for member in range(members):
        yield Job([member], [Weights(member, 0.1)], prompts, seeds, Sampling(4), mini_batch)


def rows_of(rows: int) -> Callable[[Any], tuple[list[str], list[int]]]:
    return lambda _: ([f"prompt {row}" for row in range(rows)], list(range(rows)))


def one_by_one(members: int, rows: int, most: int) -> dict[int, list[Completion]]:
    """Carry on every conversation by itself: what must come out in any case."""
    found = {}
    for member in range(members):
        found[member] = []
        for row in range(rows):
            ids, said, tokens, finished = [row, row], [], 0, True
            for number in range(most):
                (seed,) = turn_seeds([100 + row], number)
                answer = answer_of(Weights(member, 0.1), ids, seed)
                said.append({"role": "assistant", "content": answer.text})
                tokens, finished, ended = tokens + answer.tokens, finished and answer.finished, "max_turns"
                ids += answer.ids
                if number + 1 == most:
                    break
                reply = turn(said, row)
                if reply is None:
                    ended = "task"
                    break
                between = Encoder().between_turns("", said, reply)
                if len(ids) + len(between) > LONGEST:
                    ended = "too_long"
                    break
                ids += between
                said += reply
            opening = ({"role": "user", "content": f"prompt {row}"},)
            conversation = Conversation(opening, tuple(said), ended)
            found[member].append(Completion(said[-1]["content"], tokens, finished, (), conversation))
    return found


SEEDS = st.integers(0, 2**32)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 12), st.integers(1, 4), st.integers(1, 9), SEEDS)
def test_any_order_gives_the_same_conversations(members, rows, most, engines, mini_batch, seed) -> None:
    draw = random.Random(seed)
    environment = Environment(draw)
    fake = Engines(engines, draw, environment, faults=3)
    dialogues = Dialogues[int](Encoder(), environment, most, rows_of(rows))
    found = dict(dialogues.run(fake, jobs_of(members, rows, mini_batch)))
    expected = one_by_one(members, rows, most)
    assert {member: found[member].completions for member in sorted(found)} == expected
    turns = [each.turns for one in found.values() for each in one.conversations]
    assert sum(len(one.work) for one in found.values()) == len(fake.jobs)
    assert max(turns) <= most
    assert not environment.asked
    assert not dialogues.awaited()


def test_the_ways_to_end_all_occur() -> None:
    ways = {each.conversation.ended for row in one_by_one(5, 9, 12).values() for each in row}
    assert ways == {"task", "too_long"}
    assert {each.conversation.ended for row in one_by_one(5, 9, 2).values() for each in row} == {"task", "max_turns"}


def test_an_engine_stays_with_its_member_while_replies_come_in_time() -> None:
    """Two mini-batches: while the second is answered, the replies to the first arrive."""
    draw = random.Random(0)
    environment = Environment(draw)

    class Prompt(Engines):
        def generation(self, piece):
            while environment.asked:
                environment.reply()
            return super().generation(piece)

    fake = Prompt(1, draw, faults=0)
    found = dict(Dialogues[int](Encoder(), environment, 3, rows_of(8)).run(fake, jobs_of(4, 8, 4)))
    assert len(found) == 4
    # The last mini-batch's replies may be outstanding when an engine asks: then it goes on with another member.
    assert fake.switches < len(fake.jobs) / 1.5


def test_answers_that_mean_nothing_end_their_conversations() -> None:
    draw = random.Random(0)
    environment = Environment(draw)
    fake = Engines(2, draw, environment)
    fake.undefined = {1}
    found = dict(Dialogues[int](Encoder(), environment, 3, rows_of(4)).run(fake, jobs_of(2, 4, 4)))
    assert {each.failure[0] for each in found[1].conversations} == {"error:NaN"}
    assert all(each.failure is None for each in found[0].conversations)


@pytest.mark.parametrize("turn", [1, 2, 7])
def test_every_turn_has_seeds_of_its_own(turn) -> None:
    seeds = list(range(50))
    assert turn_seeds(seeds, 0) == seeds
    later = turn_seeds(seeds, turn)
    assert len({*later, *seeds, *turn_seeds(seeds, turn + 1)}) == 150
    assert all(0 <= seed < 2**63 for seed in later)
    assert turn_seeds(seeds[3:5], turn) == later[3:5]


# --- hostile turns, in real grading processes -----------------------------------------------------------------


def hostile(messages: list[Message], target: str) -> Any:
    content = messages[-1]["content"]
    assert isinstance(content, str)
    huge = "x" * (MAX_REPLY_CHARACTERS - 4)
    found: Any = {
        "good": [{"role": "user", "content": "go on"}],
        "text": "go on",
        "end": None,
        "number": 3,
        "empty": [],
        "no role": [{"content": "x"}],
        "bytes": [{"role": "user", "content": b"x"}],
        "mapping": {"role": "user", "content": "x"},
        "model": [{"role": "assistant", "content": "x"}],
        "large": huge,
        "huge": huge + "x",
        "surrogate": "\ud800",
        "rejected": "unspeakable",
    }
    if target == "raise":
        raise KeyError("no such room")
    if target == "exit":
        sys.exit(3)
    if target == "hang":
        time.sleep(60)
    if target == "memory":
        bytearray(2**32)
    return found[target]


KINDS = {
    "good": "",
    "text": "",
    "end": "",
    "surrogate": "",
    "large": "",
    "number": "turn:error:TypeError",
    "no role": "turn:error:TypeError",
    "bytes": "turn:error:TypeError",
    "mapping": "turn:error:TypeError",
    "empty": "turn:error:ValueError",
    "model": "turn:error:ValueError",
    "huge": "turn:error:ValueError",
    "raise": "turn:error:KeyError",
    "exit": "turn:error:SystemExit",
    "hang": "turn:timeout",
    "memory": "turn:error:MemoryError",
    "rejected": "turn:error:ChatTemplate",
}


def test_a_failed_turn_costs_only_its_own_conversation() -> None:
    def reward(output: str, target: str, messages: list[Message]) -> Reward:
        return Reward(float(len(messages)), "graded")

    targets = list(KINDS)
    with nothing_left(), RewardPool(reward, timeout=2, memory=1, processes=2, turn_function=hostile) as pool:
        jobs = [Job([0], [Weights(0, 0.1)], [[1]] * len(targets), [1] * len(targets), Sampling(4), 5)]
        prompts = [[{"role": "system", "content": "Play."}, {"role": "user", "content": "Start."}]] * len(targets)
        dialogues = Dialogues[int](Encoder(), pool, 2, lambda _: (prompts, targets))
        ((_, generation),) = dialogues.run(Engines(2, random.Random(0)), jobs)
        conversations = generation.conversations
        outputs = [completion.text for completion in generation.completions]
        graded = pool.submit(outputs, targets, conversations).result()
    by_kind = dict(zip(targets, zip(conversations, graded, strict=True), strict=True))
    for kind, label in KINDS.items():
        conversation, grade = by_kind[kind]
        assert conversation.said[0]["role"] == conversation.said[-1]["role"] == "assistant"
        if label:
            assert (conversation.ended, conversation.failure[0], conversation.turns) == ("failed", label, 1)
            assert grade == Graded(Reward(0.0, label), True, conversation.failure[1])
        else:
            assert grade.reward.label == "graded"
    assert [by_kind[kind][1].reward.value for kind in ("good", "text", "end", "large")] == [5, 5, 3, 3]
    assert by_kind["large"][0].ended == "too_long"
    assert by_kind["end"][0].ended == "task"
    assert by_kind["good"][0].said[1] == {"role": "user", "content": "go on"}
    assert by_kind["good"][0].ended == "max_turns"
    assert by_kind["surrogate"][0].said[1]["content"] == "?"


def test_turns_are_served_before_rewards() -> None:
    def reward(output: str, target: Any) -> float:
        time.sleep(0.2)
        return 1.0

    with RewardPool(reward, timeout=5, processes=1, turn_function=lambda *_: None) as pool:
        rewards = pool.submit(["a"] * 10, [0] * 10)
        with within(1.0):
            pool.turn([[{"role": "assistant", "content": "x"}]], [0]).result()
        assert not rewards.done()


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "function", "message"),
    [
        ({"max_turns": 3}, None, "--max-turns 3: task 'math' has no hook `turn`"),
        ({"perturbation": "low-rank"}, turn, "--perturbation low-rank: not for tasks with several turns"),
        ({}, 3, "turn_function is not callable"),
    ],
)
def test_settings_that_do_not_go_with_the_task_are_refused(settings, function, message) -> None:
    with pytest.raises(UserError, match=message) as refused:
        max_turns(make_config({"task": "math"}, settings), function)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "function", "turns"),
    [
        ({}, None, 1),
        ({}, turn, 8),
        ({"max_turns": 3}, turn, 3),
        ({"n_iterations": 0, "perturbation": "low-rank"}, turn, 8),
    ],
)
def test_the_number_of_turns(settings, function, turns) -> None:
    assert max_turns(make_config(settings), function) == turns
