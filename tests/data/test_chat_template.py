"""Chat templates with options and a system prompt; nothing that the user gave is ignored or shown as Python source."""

from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from esplug.config import make_config
from esplug.data.chat_template import ChatTemplate
from esplug.data.prompt_encoder import PromptEncoder
from esplug.data.prompts import PromptBuilder
from esplug.errors import UserError

PLAIN = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
THINKING = PLAIN + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
STYLED = "{% set style = style if style is defined else 'short' %}{{ style }}{{ words | join('+') }}" + PLAIN
MARKED = "{% generation %}" + PLAIN + "{%- endgeneration -%}{% for m in messages %}{% break %}{% endfor %}{{ mode }}"
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
)
USER_ONLY = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
STRICT = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content | trim }}{% else %}"
    "{% for part in m.content %}{{ part.text | trim }}{% endfor %}{% endif %}{% endfor %}"
)
NO_PARTS = "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% endif %}{% endfor %}"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def tokenizer(tiny_model) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def chat(tokenizer):
    """Return a function that makes and checks a chat template."""

    def make(source: str | None, options: Any = MappingProxyType({}), system_prompt: str | None = None) -> ChatTemplate:
        tokenizer.chat_template = source
        template = ChatTemplate(tokenizer, options, system_prompt)
        template.check()
        return template

    return make


def test_without_settings_messages_stay_as_they_are(chat) -> None:
    assert chat(PLAIN).render(CHAT) == "<system>Be brief.<user>Hi<assistant>"


@pytest.mark.parametrize(
    ("source", "options", "text"),
    [
        (THINKING, {"enable_thinking": False}, "<user>Hi<assistant><think></think>"),
        (THINKING, {"enable_thinking": True}, "<user>Hi<assistant>"),
        (STYLED, {"style": "long", "words": ["a", "b"]}, "longa+b<user>Hi<assistant>"),
        (MARKED, {"mode": 3}, "<user>Hi<assistant>3"),
    ],
)
def test_options_reach_the_template(source, options, text, chat) -> None:
    assert chat(source, options).render(CHAT[1:]) == text


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (THINKING, {"enable_thinkin": False}, "does not read it; did you mean 'enable_thinking'?"),
        (PLAIN, {"enable_thinking": False}, "does not read it; it reads no options"),
        (PLAIN, {"user": "x"}, "does not read it"),
        ("{# enable_thinking #}" + PLAIN, {"enable_thinking": False}, "does not read it"),
        (THINKING, {"m": "x"}, "does not read it"),
        (THINKING, {"messages": "x"}, "esplug reserves it"),
        (THINKING, {"tokenize": True}, "esplug reserves it"),
        (THINKING, {"add_generation_prompt": False}, "esplug reserves it"),
        (THINKING, {"chat_template": "x"}, "esplug reserves it"),
        ("{% if %}", {"enable_thinking": False}, "chat template cannot be read"),
        (None, {"enable_thinking": False}, "this model has no chat template"),
    ],
)
def test_an_option_that_has_no_effect_is_refused(source, options, message, chat) -> None:
    with pytest.raises(UserError) as no:
        chat(source, options)
    assert message in str(no.value)
    assert str(no.value).isprintable()


def test_a_system_prompt_comes_first_and_replaces_the_tasks(chat) -> None:
    template = chat(PLAIN, {}, "Think\nhard.")
    for messages in (CHAT, CHAT[1:], [CHAT[1], CHAT[0]]):
        assert template.render(messages) == "<system>Think\nhard.<user>Hi<assistant>"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (NO_SYSTEM, "rejects a system message (System role not supported); leave it out"),
        (USER_ONLY, "does not show system messages; leave it out"),
        (None, "this model has no chat template"),
    ],
)
def test_a_system_prompt_that_the_model_would_not_see_is_refused(source, message, chat) -> None:
    with pytest.raises(UserError, match=r"^--system-prompt: ") as no:
        chat(source, {}, "Think.")
    assert message in str(no.value)


def test_a_system_prompt_that_is_the_templates_own_is_allowed(chat) -> None:
    own = "{% if messages[0].role != 'system' %}<system>Think.{% endif %}" + PLAIN
    assert chat(own, {}, "Think.").render(CHAT[1:]) == "<system>Think.<user>Hi<assistant>"


@pytest.mark.parametrize("settings", [{"system_prompt": "x"}, {"chat_template_options": {"enable_thinking": False}}])
def test_a_text_prompt_leaves_chat_settings_without_effect(settings, tokenizer) -> None:
    tokenizer.chat_template = THINKING
    template = ChatTemplate(tokenizer, settings.get("chat_template_options", {}), settings.get("system_prompt"))
    encoder = PromptEncoder(tokenizer, 100, template)
    with pytest.raises(UserError, match=r"^(--system-prompt|--chat-template-option enable_thinking): .* is text"):
        encoder.encode(["2 + 2 ="])


def user(content: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content} | more]


@pytest.mark.parametrize(
    ("source", "messages", "text"),
    [
        (PARTS, user([{"type": "text", "text": " a "}, {"type": "text", "text": "b"}]), "<user>ab"),
        (PARTS, user([{"text": "a"}]), "<user>a"),
        (PARTS, user(" a "), "<user>a"),
        (PLAIN, user(5), "<user>5<assistant>"),
        (NO_PARTS, user(None, tool_calls=[{"name": "f"}]), "<user>"),
        (PLAIN, user(""), "<user><assistant>"),
    ],
)
def test_content_that_the_template_shows_is_allowed(source, messages, text, chat) -> None:
    assert chat(source).render(messages) == text


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        (PLAIN, None, "is None; give the content of message 2 as one text"),
        (NO_PARTS, None, "is None"),
        (STRICT, None, "is None"),
        (PLAIN, [{"type": "text", "text": "a"}], "a list of parts: the model's chat template does not show it"),
        (PLAIN, ["a"], "does not show it"),
        (NO_PARTS, [{"type": "text", "text": "a"}], "does not show it"),
        (STRICT, [{"type": "text", "text": "a"}], "rejects the task's messages (can only concatenate str"),
        (PARTS, [{"type": "text", "text": "a"}, {"type": "image", "url": "x"}], "one of them of type 'image'"),
        (PARTS, [{"type": "text", "text": None}], "one of them of type 'text'"),
        (PARTS, [7], "one of them of type 'int'"),
        (PARTS, [], "a list of parts, and empty"),
        (PLAIN, {"text": "a"}, "is dict"),
        (PLAIN, b"a", "is bytes"),
    ],
)
def test_content_that_the_template_cannot_show_names_the_row(source, content, message, tokenizer) -> None:
    tokenizer.chat_template = source
    encoder = PromptEncoder(tokenizer, 1000, ChatTemplate(tokenizer))
    builder = PromptBuilder(encoder, None)
    rows = [CHAT, CHAT[1:], [CHAT[1], *user(content)]]
    with pytest.raises(UserError, match=r"^evaluation split 'held out', row 3: ") as no:
        builder.split("held out", [(rows, [0, 0, 0])])
    assert message in str(no.value)
    assert str(no.value).isprintable()


def test_messages_without_a_role_are_one_line(chat) -> None:
    for messages in (["Hi"], [{"content": "Hi"}], [None]):
        with pytest.raises(UserError, match=r"a chat message must have the form"):
            chat(PLAIN).render(messages)


def test_the_settings_are_loaded_with_the_tokenizer(tiny_model: Path) -> None:
    config = make_config({"task": "custom", "system_prompt": "Think.", "max_tokens": 8})
    encoder = PromptEncoder.load(tiny_model, config)
    assert encoder.render(CHAT) == "<system>Think.<user>Hi<assistant>"
    assert encoder.end_tokens == (2,)
    with pytest.raises(UserError, match=r"--chat-template-option style: .* does not read it"):
        PromptEncoder.load(tiny_model, make_config({"max_tokens": 8, "chat_template_options": {"style": "x"}}))
