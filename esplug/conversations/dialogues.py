"""Dialogues: conversations that engines, graders and this module carry on together until each has ended.

A job's answers go to the graders, where the task's ``turn`` replies. The conversations that go on become the next job
with the same weights and in the same order. So an answer depends on neither the engine nor the order of events.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeAlias

from esplug.conversations.turns import turn_seeds
from esplug.data.conversation import Conversation, Ended, answered, opening_messages
from esplug.data.prompt_encoder import PromptEncoder
from esplug.engines import EnginePool, Job
from esplug.engines.jobs import Key
from esplug.engines.messages import Completion, Generation, Work
from esplug.engines.scheduler import Piece
from esplug.errors import UserError
from esplug.hookspecs import Message, Prompt
from esplug.rewards import Graded, PendingRewards, RewardPool
from esplug.rewards.anomalies import TURN, UNDEFINED
from esplug.utils.text import brief

#: Returns the prompts and targets of a job's rows, by the job's key.
Rows: TypeAlias = Callable[[Any], tuple[Sequence[Prompt], Sequence[Any]]]


@dataclass(slots=True)
class _Dialogue:
    """A conversation under way: prompt, token ids of the prompt and all that followed, target, and what was said."""

    prompt: Prompt
    ids: "array[int]"
    target: Any
    seed: int
    said: list[Message] = field(default_factory=list)
    tokens: int = 0
    finished: bool = True
    ended: Ended | None = None
    failure: tuple[str, str] | None = None

    def completion(self) -> Completion:
        """Return the conversation, which has ended, as an engine's completion."""
        assert self.ended
        conversation = Conversation(opening_messages(self.prompt), tuple(self.said), self.ended, self.failure)
        return Completion(self.said[-1]["content"], self.tokens, self.finished, (), conversation)

    def fail(self, label: str, why: str) -> None:
        """End the conversation because a turn failed."""
        self.ended, self.failure = "failed", (label, why)


@dataclass(frozen=True, slots=True)
class Exchange(Generic[Key]):
    """The key of a job here: the member or chunk, the numbers of the conversations that are answered, and the turn."""

    key: Key
    rows: tuple[int, ...]
    turn: int


@dataclass(frozen=True, slots=True)
class _Asked(Generic[Key]):
    """An exchange whose answers are in and whose replies are pending, the rows asked about, and the piece."""

    piece: Piece[Job[Exchange[Key]]]
    rows: tuple[int, ...]
    pending: PendingRewards


class Dialogues(Generic[Key]):
    """Carries on the conversations of several jobs, and tells the engine pool which jobs follow.

    Args:
        encoder: makes the token ids between turns, and says how long a prompt may be.
        pool: runs the task's ``turn``.
        max_turns: answers in a conversation at most.
        rows: returns the prompts and targets of a job, by its key.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        pool: RewardPool,
        max_turns: int,
        rows: Rows,
    ) -> None:
        self._encoder, self._pool, self._max_turns, self._rows = encoder, pool, max_turns, rows
        self._dialogues: dict[Key, list[_Dialogue]] = {}
        self._work: dict[Key, list[Work]] = {}
        self._asked: list[_Asked[Key]] = []

    def run(self, engines: EnginePool, jobs: Iterable[Job[Key]]) -> Iterator[tuple[Key, Generation]]:
        """Carry on the conversations that the jobs' prompts begin; yield each job's key and conversations once ended.

        The jobs have one key each. Raises like :meth:`.EnginePool.run`.
        """
        for piece, (generation,) in engines.run_pieces(map(self._begin, jobs), self):
            self._receive(piece, generation)
            yield from self._ended()
        yield from self._ended()

    def ready(self) -> list[tuple[Piece[Job[Exchange[Key]]], Job[Exchange[Key]]]]:
        """Take in the replies that have arrived, and return the jobs that follow."""
        waiting, self._asked = self._asked, []
        following: list[tuple[Piece[Job[Exchange[Key]]], Job[Exchange[Key]]]] = []
        for asked in waiting:
            if not asked.pending.done():
                self._asked.append(asked)
            elif job := self._next(asked):
                following.append((asked.piece, job))
        return following

    def awaited(self) -> list[Piece[Job[Exchange[Key]]]]:
        """Return the pieces to whose answers replies are pending."""
        return [asked.piece for asked in self._asked]

    def some_ready(self) -> bool:
        """Whether replies to some exchange have arrived."""
        return any(asked.pending.done() for asked in self._asked)

    def _begin(self, job: Job[Key]) -> Job[Exchange[Key]]:
        """Begin the conversations of a job, and return it with a key of its own."""
        (key,) = job.keys
        columns = *self._rows(key), job.prompts, job.seeds
        self._dialogues[key] = [
            _Dialogue(prompt, array("I", ids), target, seed) for prompt, target, ids, seed in zip(*columns, strict=True)
        ]
        self._work[key] = []
        first = Exchange(key, tuple(range(len(job.prompts))), 0)
        sampling = replace(job.sampling, return_ids=True)
        rest = job.weights, job.prompts, job.seeds, sampling, job.mini_batch_size, job.shared_prompts
        return Job([first], *rest)

    def _receive(self, piece: Piece[Job[Exchange[Key]]], generation: Generation) -> None:
        """Take in the answers to a piece, and ask the environment about the conversations that go on."""
        (exchange,) = piece.job.keys
        rows, dialogues = exchange.rows[piece.job.mini_batch(piece.number)], self._dialogues[exchange.key]
        self._work[exchange.key] += generation.work
        for row, completion in zip(rows, generation.completions, strict=True):
            dialogue = dialogues[row]
            dialogue.said.append(answered(completion.text))
            dialogue.ids.extend(completion.ids)
            dialogue.tokens += completion.tokens
            dialogue.finished &= completion.finished
            if generation.undefined:
                dialogue.fail(UNDEFINED, "the model gave NaN or infinity, so its answers mean nothing")
            elif exchange.turn + 1 == self._max_turns:
                dialogue.ended = "max_turns"
        going_on = tuple(row for row in rows if not dialogues[row].ended)
        if going_on:
            messages = [[*opening_messages(dialogues[row].prompt), *dialogues[row].said] for row in going_on]
            pending = self._pool.turn(messages, [dialogues[row].target for row in going_on])
            self._asked.append(_Asked(piece, going_on, pending))

    def _next(self, asked: _Asked[Key]) -> Job[Exchange[Key]] | None:
        """Take in the replies to an exchange. Return the job of the next turn; ``None`` if all conversations ended."""
        (exchange,), job = asked.piece.job.keys, asked.piece.job
        dialogues = self._dialogues[exchange.key]
        for row, graded in zip(asked.rows, asked.pending.result(), strict=True):
            self._reply(dialogues[row], graded)
        rows = tuple(row for row in asked.rows if not dialogues[row].ended)
        if not rows:
            return None
        turn = exchange.turn + 1
        return replace(
            job,
            keys=[Exchange(exchange.key, rows, turn)],
            prompts=[dialogues[row].ids[:] for row in rows],
            seeds=turn_seeds([dialogues[row].seed for row in rows], turn),
            shared_prompts=False,
        )

    def _reply(self, dialogue: _Dialogue, graded: Graded) -> None:
        """Take in the environment's reply to a conversation."""
        if graded.failed:
            dialogue.fail(f"{TURN}{graded.reward.label}", graded.traceback or graded.reward.label)
            return
        if graded.reply is None:
            dialogue.ended = "task"
            return
        try:
            between = self._encoder.between_turns(dialogue.prompt, dialogue.said, graded.reply)
        except UserError as error:
            dialogue.fail(f"{TURN}error:ChatTemplate", brief(str(error)))
            return
        if len(dialogue.ids) + len(between) > self._encoder.longest:
            dialogue.ended = "too_long"
            return
        dialogue.ids.extend(between)
        dialogue.said += graded.reply

    def _ended(self) -> Iterator[tuple[Key, Generation]]:
        """Yield, and forget, the jobs of which all conversations have ended."""
        for key in [key for key, dialogues in self._dialogues.items() if all(each.ended for each in dialogues)]:
            completions = [dialogue.completion() for dialogue in self._dialogues.pop(key)]
            yield key, Generation(completions, tuple(self._work.pop(key)))
