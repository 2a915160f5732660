"""Messages between the engine pool and its actors: frozen dataclasses of plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from esplug.data.conversation import Conversation


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings with which an engine starts; equal for all engines of a run.

    Attributes:
        memory_share: on CUDA of each GPU's memory; on a CPU of the free memory, for all engines of a machine.
        low_rank: rank of the members' perturbations; ``None`` if they are full.
        members_at_once: low-rank members that an engine answers with in one batch.
        writes_weights: whether the engine keeps master weights and writes them into the model. Without, it can only
            answer with the model as vLLM loaded it.
        text_only: whether to load a multimodal model without its inputs other than text.
        trust_remote_code: whether vLLM may run Python code of the model.
        prefix_caching: whether prompts of one member share a common prefix in the KV cache.
        rollout: who decodes: vLLM, the loop on the device, or the faster one.
        models: folder of the model on those of Ray's nodes to which it was shipped.
        beside: folder of a second model, with the same configuration and tensors, to answer with, too.
    """

    model: str
    dtype: str
    master_dtype: Literal["float32", "model"]
    master_device: Literal["auto", "gpu", "host"]
    device: Literal["cuda", "cpu"]
    tensor_parallel_size: int
    max_model_len: int | None
    memory_share: float | None
    low_rank: int | None = None
    members_at_once: int = 1
    engines_per_gpu: int = 1
    prefix_caching: bool = True
    writes_weights: bool = True
    text_only: bool = False
    trust_remote_code: bool = False
    rollout: Literal["auto", "vllm", "device"] = "auto"
    models: Mapping[str, str] = field(default_factory=dict)
    beside: str | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights to answer with: ``master + scale * eps(member_seed)``, the master itself, or the model ``beside`` it."""

    member_seed: int | None = None
    scale: float = 0.0
    beside: bool = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. Temperature 0 is greedy; ``stop`` texts are kept in the answer, ``stop_token_ids`` are not.

    ``return_ids`` asks for the token ids of the answers.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    return_ids: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer, or one conversation.

    Attributes:
        text: without the prompt; of a conversation, the last answer.
        tokens: length; of a conversation, of all its answers.
        finished: whether the answer, or each of them, ended before ``max_tokens``.
        ids: token ids of one answer without the end token, if they were asked for.
        conversation: the whole conversation, in a task of several turns.
    """

    text: str
    tokens: int
    finished: bool
    ids: tuple[int, ...] = ()
    conversation: Conversation | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """One call of an engine, and how long it took.

    Attributes:
        engine: index of the engine in the pool, which the pool fills in.
        began: Unix time on the engine's machine.
        switch_seconds: time to write a member's weights; 0 if the engine held them already.
        generate_seconds: time to answer, after that.
        members: number of members in the call.
        node: address of the engine's machine in the cluster, which the pool fills in.
    """

    engine: int
    began: float
    switch_seconds: float
    generate_seconds: float
    members: int = 1
    node: str = ""


@dataclass(frozen=True, slots=True)
class Generation:
    """Answers to a batch of prompts, in their order, and the work that they took.

    Attributes:
        undefined: number of tokens with NaN or infinite logits. If there are any, all the answers are meaningless.
    """

    completions: list[Completion]
    work: tuple[Work, ...] = ()
    undefined: int = 0

    @property
    def conversations(self) -> list[Conversation]:
        """The conversations, in a task of several turns."""
        return [each.conversation for each in self.completions if each.conversation]

    @property
    def switch_seconds(self) -> float:
        """Seconds spent writing weights; members of one call share them equally."""
        return sum(work.switch_seconds / work.members for work in self.work)

    @property
    def generate_seconds(self) -> float:
        """Seconds spent answering; shared likewise."""
        return sum(work.generate_seconds / work.members for work in self.work)

    @classmethod
    def joined(cls, parts: Sequence["Generation"]) -> "Generation":
        """Join the answers to successive slices of the prompts."""
        completions = [completion for part in parts for completion in part.completions]
        work = tuple(work for part in parts for work in part.work)
        return cls(completions, work, sum(part.undefined for part in parts))
