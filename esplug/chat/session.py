"""Session of a chat: an engine, and the conversation with each model that it answers with."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias

from esplug.chat.models import ChatModels
from esplug.checkpoints.base_model import kind_of_folder
from esplug.checkpoints.history import History
from esplug.checkpoints.model_kind import ModelUse
from esplug.config import RunConfig
from esplug.data.prompt_encoder import PromptEncoder
from esplug.engines import EnginePool, Job
from esplug.engines.cluster import Cluster
from esplug.engines.messages import Completion, Sampling, Weights
from esplug.errors import RunError
from esplug.evaluation.evaluator import sampling_seed
from esplug.planning.memory import cpu_items, cpu_kv_cache_most, master_bytes
from esplug.planning.placement import plan_engines
from esplug.runs.engines import engine_settings

Side: TypeAlias = Literal["base", "trained"]


class Chat:
    """A conversation with one or two models, each of which sees only its own answers.

    A model without a chat template continues each prompt as text, and remembers nothing.

    Args:
        pool: the started engine.
        encoder: makes prompts of messages.
        config: settings of the answers: ``max_tokens``, ``stop``, ``seed``, ``eval_temperature`` and ``eval_top_p``.
        weights: of each model.
    """

    def __init__(
        self, pool: EnginePool, encoder: PromptEncoder, config: RunConfig, weights: Mapping[Side, Weights]
    ) -> None:
        self._pool, self._encoder, self._config, self._weights = pool, encoder, config, weights
        limits = config.max_tokens, config.eval_temperature, config.eval_top_p
        self._sampling = Sampling(*limits, tuple(config.stop), encoder.end_tokens)
        self.reset()

    @property
    def sides(self) -> tuple[Side, ...]:
        """The models that answer, in order."""
        return tuple(self._weights)

    @property
    def remembers(self) -> bool:
        """Whether the models see earlier messages."""
        return self._encoder.tokenizer.chat_template is not None

    def reset(self) -> None:
        """Forget the conversation."""
        self._messages: dict[Side, list[dict[str, str]]] = {side: [] for side in self._weights}

    def ask(self, text: str) -> Iterator[tuple[Side, Completion]]:
        """Yield each model and its answer. The conversation goes on once all have answered.

        Answers depend on the settings and the conversation only; with a temperature, on the seed, too.

        Raises:
            UserError: a conversation is too long for its model.
            RunError: the model computed NaN, or the engine failed.
        """
        asked = {side: [*self._messages[side], {"role": "user", "content": text}] for side in self._weights}
        jobs = [self._job(side, messages if self.remembers else text) for side, messages in asked.items()]
        for side, generation in self._pool.run(jobs):
            if generation.undefined:
                raise RunError(f"the {side} model computed NaN or infinity, so it has no answer")
            (answer,) = generation.completions
            asked[side].append({"role": "assistant", "content": answer.text})
            yield side, answer
        self._messages = asked

    def _job(self, side: Side, prompt: Any) -> Job[Side]:
        encoder = self._encoder
        seed = sampling_seed(self._config.seed, encoder.render(prompt), 0, 0)
        return Job([side], [self._weights[side]], encoder.encode([prompt]), [seed], self._sampling, 1)


@contextmanager
def open_chat(config: RunConfig, models: ChatModels) -> Iterator[Chat]:
    """Start an engine for a chat, and stop it at the end.

    Raises:
        UserError: a setting does not fit the model or the machine.
        RunError: the engine does not start.
    """
    first = models.base or models.trained
    kind = kind_of_folder(models.trained, ModelUse(models.base is not None, config.trust_remote_code))
    encoder = PromptEncoder.load(models.trained, config)
    needed = sum(item.nbytes for item in cpu_items(first, config))
    needed += master_bytes(models.trained, config.master_dtype) if models.base else 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="esplug-chat-", ignore_cleanup_errors=True)))
        cluster = Cluster(None, config.use_gpus)
        stack.callback(cluster.close)
        plan = plan_engines(config, cluster.resources(), needed)
        settings = engine_settings(config, plan, first, kind, prefix_caching=True)
        settings = replace(
            settings, writes_weights=models.base is not None, beside=str(models.trained) if models.base else None
        )
        pool = EnginePool(plan, settings, needed, cpu_kv_cache_most(first, config, answers=2), folder)
        stack.callback(pool.close)
        pool.start(History(config.seed))
        both: dict[Side, Weights] = {"base": Weights(), "trained": Weights(beside=True)}
        yield Chat(pool, encoder, config, both if models.base else {"trained": Weights()})
