"""Chat template: renders chat messages with the user's options and system prompt, and finds what it does not show."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from esplug.errors import UserError
from esplug.utils.text import one_line, suggest

#: What ``transformers`` passes to every template.
_ALWAYS_THERE = {"messages", "raise_exception", "strftime_now"}
_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # a tag of transformers that jinja2 does not know


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a model's tokenizer.

    Attributes:
        tokenizer: of transformers.
        options: variables for the template, such as ``enable_thinking``.
        system_prompt: text of the system message, which replaces the task's; ``None`` for the task's.
    """

    tokenizer: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None

    def check(self) -> None:
        """Check that the template reads every option, and shows the system prompt.

        Raises:
            UserError: it does not, or the model has no chat template.
        """
        given = self.given()
        if given and self.tokenizer.chat_template is None:
            raise UserError(f"{given}: this model has no chat template; use an instruct model, or leave it out")
        if self.options:
            self._check_options()
        if self.system_prompt is not None:
            self._check_system_prompt(self.system_prompt)

    def given(self) -> str:
        """Return the flag of the user's system prompt or first option, and an empty text if there is none."""
        if self.system_prompt is not None:
            return "--system-prompt"
        return f"--chat-template-option {next(iter(self.options))}" if self.options else ""

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return messages as the text that the model sees.

        Raises:
            UserError: the template rejects or does not show a message, or the model has no template.
        """
        if self.tokenizer.chat_template is None:
            raise UserError(
                "the task's prompts are chat messages, but this model has no chat template; use an instruct model"
            )
        if not all(isinstance(each, Mapping) and "role" in each for each in messages):
            raise UserError('a chat message must have the form {"role": ..., "content": ...}')
        whole = with_system_prompt(messages, self.system_prompt)
        odd = [_Odd(number, each) for number, each in enumerate(whole, 1) if not isinstance(each.get("content"), str)]
        for message in odd:
            message.check()
        try:
            text = self._apply(whole)
        except Exception as error:  # a template may raise errors of its own, for instance for a role
            why = f"the model's chat template rejects the task's messages ({one_line(error)})"
            raise UserError(f"{why}; {odd[0].remedy}" if odd else why) from error
        for message in odd:
            if not message.shown_in(text):
                raise UserError(f"{message}: the model's chat template does not show it; {message.remedy}")
        return text

    def _apply(self, messages: Sequence[Mapping[str, Any]]) -> str:
        options = dict(self.options)
        return str(
            self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **options)
        )

    def option_names(self) -> set[str]:
        """Return the names of the options that the template reads; empty if the model has no template.

        Raises:
            UserError: the template cannot be read.
        """
        if self.tokenizer.chat_template is None:
            return set()
        return self._variables() - self._reserved() - set(self.tokenizer.special_tokens_map)

    def _reserved(self) -> set[str]:
        return _ALWAYS_THERE | inspect.signature(self.tokenizer.apply_chat_template).parameters.keys()

    def _check_options(self) -> None:
        reserved = self._reserved()
        known = self._variables() - reserved
        for name in self.options:
            if name in reserved:
                raise UserError(f"--chat-template-option {name}: esplug reserves it; leave it out")
            if name not in known:
                hint = suggest(name, known) or f"it reads {', '.join(sorted(known)) or 'no options'}"
                raise UserError(f"--chat-template-option {name}: the model's chat template does not read it; {hint}")

    def _variables(self) -> set[str]:
        """Return the names of the variables that the template reads."""
        from jinja2 import Environment, TemplateError, meta

        try:
            source = _GENERATION.sub("", self.tokenizer.get_chat_template())
            return meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source))
        except (TemplateError, ValueError) as error:
            raise UserError(
                f"the model's chat template cannot be read ({one_line(error)}); use another model"
            ) from error

    def _check_system_prompt(self, prompt: str) -> None:
        """Render an example with and without a system message."""
        question = [{"role": "user", "content": "Hello"}]
        try:
            without = self._apply(question)
        except Exception:  # the template needs other messages; the task's will tell
            return
        remedy = "leave it out, or put the text into the task's prompts"
        try:
            shown = prompt in without or self._apply(with_system_prompt(question, prompt)) != without
        except Exception as error:
            raise UserError(
                f"--system-prompt: the model's chat template rejects a system message ({one_line(error)}); {remedy}"
            ) from error
        if not shown:
            raise UserError(f"--system-prompt: the model's chat template does not show system messages; {remedy}")


def with_system_prompt(messages: Sequence[Mapping[str, Any]], prompt: str | None) -> list[Mapping[str, Any]]:
    """Put a system prompt before messages, in place of their own system messages; ``None`` keeps these."""
    if prompt is None:
        return list(messages)
    return [{"role": "system", "content": prompt}, *(each for each in messages if each.get("role") != "system")]


@dataclass(frozen=True)
class _Odd:
    """A message whose content is not text, and its number, from 1. Few templates show such content."""

    number: int
    message: Mapping[str, Any]

    def __str__(self) -> str:
        kinds = {list: "a list of parts", type(None): "None"}
        what = kinds.get(type(self.content), type(self.content).__name__)
        return f"the content of message {self.number} ({self.message.get('role')}) is {what}"

    @property
    def content(self) -> Any:
        """The content of the message."""
        return self.message.get("content")

    @property
    def remedy(self) -> str:
        return f"give the content of message {self.number} as one text"

    def check(self) -> None:
        """Check that the content is text in another form. A message that calls tools may have none."""
        if isinstance(self.content, int | float) or (self.content is None and self.message.get("tool_calls")):
            return
        if not isinstance(self.content, list) or not self.content:
            raise UserError(f"{self}{', and empty' if self.content == [] else ''}; {self.remedy}")
        for part in self.content:
            if _text(part) is None:
                kind = part.get("type", "unknown") if isinstance(part, Mapping) else type(part).__name__
                raise UserError(f"{self}, one of them of type {kind!r}; esplug sends only text to the model")

    def shown_in(self, text: str) -> bool:
        """Whether a rendered prompt shows the content, rather than nothing or the source text of a Python object."""
        if not isinstance(self.content, list):
            return self.content is None or str(self.content) in text
        return str(self.content) not in text and all(
            (_text(part) or "").strip() in text and (isinstance(part, str) or str(part) not in text)
            for part in self.content
        )


def _text(part: Any) -> str | None:
    """Return the text of a part of a message; ``None`` if it is no text."""
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        part = part.get("text")
    return part if isinstance(part, str) else None
