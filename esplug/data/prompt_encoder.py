"""Prompt encoder: turns prompts, text or chat messages, into the model's token ids."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from esplug.checkpoints.base_model import longest_prompt
from esplug.config import RunConfig
from esplug.data.chat_template import ChatTemplate
from esplug.data.conversation import answered
from esplug.data.end_tokens import end_tokens
from esplug.errors import UserError
from esplug.hookspecs import Message, Prompt
from esplug.utils.text import brief, one_line, printable

#: Stands for a content, such as an answer's, while messages are rendered. Nobody can guess it, so no message has it.
_MARK = f"mark{secrets.token_hex(8)}"


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes prompts once for all engines and members.

    Attributes:
        tokenizer: of transformers.
        longest: maximum number of tokens in a prompt, so that an answer of full length fits.
        chat_template: renders chat messages.
        end_tokens: ids at which an answer ends.
    """

    tokenizer: Any
    longest: int
    chat_template: ChatTemplate
    end_tokens: tuple[int, ...] = ()
    _shown_roles: set[tuple[str, ...]] = field(default_factory=set, compare=False)  # of replies that were checked

    @classmethod
    def load(cls, folder: Path, config: RunConfig) -> "PromptEncoder":
        """Load the tokenizer of a model folder, and check the chat settings.

        With ``config.trust_remote_code``, the tokenizer may be Python code in that folder.

        Raises:
            UserError: the tokenizer or a file of the model is damaged, or the chat template has no use for a setting.
        """
        longest = longest_prompt(folder, config.max_model_len, config.max_tokens)
        try:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
        except Exception as error:
            raise UserError(f"{folder}: its tokenizer cannot be loaded ({one_line(error)})") from error
        template = ChatTemplate(tokenizer, config.chat_template_options, config.system_prompt)
        template.check()
        return cls(tokenizer, longest, template, end_tokens(folder, tokenizer))

    def describe(self) -> dict[str, str]:
        """Say where an answer ends and which options the chat template reads, by what is described."""
        ends = [f"{printable(str(self.tokenizer.convert_ids_to_tokens(each)))} ({each})" for each in self.end_tokens]
        answers = f"end at --stop, after --max-tokens, or at one of these tokens: {', '.join(ends) or 'none'}"
        if self.tokenizer.chat_template is None:
            return {"answers": answers, "chat template": "the model has none: prompts must be text"}
        try:
            names = ", ".join(sorted(self.chat_template.option_names())) or "none"
        except UserError:  # of a syntax that only transformers reads
            names = "unknown"
        return {"answers": answers, "chat template": f"options (--chat-template-option): {names}"}

    def encode(self, prompts: Sequence[Prompt], where: str = "") -> list[list[int]]:
        """Return the token ids of each prompt. Chat messages use the model's chat template.

        An error message begins with ``where`` and the number of the prompt, from 1.
        """
        encoded: list[list[int]] = []
        for number, prompt in enumerate(prompts, start=1):
            try:
                encoded.append(self._ids(prompt))
            except UserError as error:
                raise type(error)(f"{where} {number}: {error}" if where else str(error)) from error
        return encoded

    def _ids(self, prompt: Prompt) -> list[int]:
        text = self.render(prompt)
        ids: list[int] = self.tokenizer(text, add_special_tokens=isinstance(prompt, str))["input_ids"]
        if not 0 < len(ids) <= self.longest:
            fault = f"has {len(ids)} tokens; at most {self.longest} fit before --max-tokens" if ids else "is empty"
            raise UserError(f"prompt {text[:60]!r} {fault}")
        return ids

    def between_turns(self, prompt: Prompt, said: Sequence[Message], reply: Sequence[Message]) -> list[int]:
        """Return the token ids between an answer and the next one: the end of the turn, the reply, a new turn's start.

        They follow the tokens of the conversation so far, which therefore stay exactly as they were generated.

        Args:
            prompt: of the conversation. After a text, the contents of the reply follow as they are.
            said: the messages after it; the last one is the answer.
            reply: the environment's messages.

        Raises:
            UserError: the chat template rejects the messages, or does not show answers as they are, or the reply.
        """
        if isinstance(prompt, str):
            text = "".join(message["content"] for message in reply)
        else:
            before = [*prompt, *said[:-1]]
            _, found, text = self.render([*before, answered(_MARK), *reply]).partition(_MARK)
            if not found or _MARK in text:
                raise UserError("the model's chat template does not show earlier answers once each; use another model")
            self._check_shown(before, reply)
        ids = self._tokenized(self._line_end + text)
        return ids[len(self._tokenized(self._line_end)) :] if self._line_end else ids

    @cached_property
    def _line_end(self) -> str:
        """What to tokenize before a text, for a tokenizer that puts a blank before any text, as Llama 2's does."""
        (first, *_) = self.tokenizer.convert_ids_to_tokens(self._tokenized("x"))
        return "\n" if first.startswith("\u2581") else ""

    def _tokenized(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _check_shown(self, before: Sequence[Message], reply: Sequence[Message]) -> None:
        """Check that the model sees each message of a reply, once for all replies of the same roles."""
        roles = tuple(message["role"] for message in reply)
        if roles in self._shown_roles:
            return
        marked = [{"role": role, "content": f"{_MARK}-{number}."} for number, role in enumerate(roles)]
        text = self.render([*before, answered("Yes."), *marked])
        if hidden := [message["role"] for message in marked if message["content"] not in text]:
            fault = f"the chat template or --system-prompt leaves out the reply's message of the role {hidden[0]!r}"
            raise UserError(f"{fault}; have turn return another role, such as 'user'")
        self._shown_roles.add(roles)

    def check_turns(self, prompt: Prompt) -> None:
        """Check that a conversation can follow a prompt; raises like :meth:`between_turns`."""
        self.between_turns(prompt, [answered("Yes.")], [{"role": "user", "content": "Go on."}])

    def render(self, prompt: Prompt) -> str:
        """Return a prompt as the text that the model sees."""
        if isinstance(prompt, str):
            if given := self.chat_template.given():
                raise UserError(
                    f"{given}: the task's prompt {brief(prompt, 60)!r} is text, so the chat template is not used; "
                    "leave it out, or return chat messages from the task's template"
                )
            return prompt
        if not isinstance(prompt, list):
            raise UserError(f"a prompt must be text or a list of chat messages, not {type(prompt).__name__}")
        return self.chat_template.render(prompt)
