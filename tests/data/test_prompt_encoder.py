"""Prompts, as text or chat messages, become token ids of a length that leaves room for the answer."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Prepend, Replace, Sequence
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from esplug.config import make_config
from esplug.data.chat_template import ChatTemplate
from esplug.data.prompt_encoder import PromptEncoder
from esplug.data.prompts import PromptBuilder
from esplug.errors import UserError

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <b>"}]


def load(folder: Path, max_model_len: int | None, max_tokens: int, **settings: Any) -> PromptEncoder:
    lengths = {"max_model_len": max_model_len, "max_tokens": max_tokens}
    return PromptEncoder.load(folder, make_config({"task": "custom"}, settings).model_copy(update=lengths))


@pytest.fixture
def encoder(tiny_model) -> PromptEncoder:
    return load(tiny_model, None, 24)


@pytest.fixture
def own_copy(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return shutil.copytree(tiny_model, tmp_path / "copy")


def test_text_is_encoded_unchanged(encoder) -> None:
    (ids,) = encoder.encode(["Hé <s>!"])
    assert encoder.tokenizer.decode(ids) == "Hé <s>!"
    assert encoder.render("Hé <s>!") == "Hé <s>!"


def test_messages_go_through_the_chat_template(encoder) -> None:
    text = "<system>Be brief.<user>Hi <b><assistant>"
    assert encoder.render(CHAT) == text
    assert encoder.encode([CHAT]) == [encoder.tokenizer(text, add_special_tokens=False)["input_ids"]]


class Marking:
    """A tokenizer that, like many, adds a special token before text."""

    chat_template = "as below"

    def __call__(self, text, *, add_special_tokens):
        return {"input_ids": [1] * add_special_tokens + [100] * len(text)}

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        assert not tokenize
        assert add_generation_prompt
        return "<s>" + messages[0]["content"]


def test_a_chat_templates_own_special_tokens_are_not_doubled() -> None:
    encoder = PromptEncoder(Marking(), 100, ChatTemplate(Marking()))
    assert encoder.encode(["ab", [{"role": "user", "content": "ab"}]]) == [[1, 100, 100], [100] * 5]


def test_prompts_keep_their_order(encoder) -> None:
    prompts = ["b", "a", CHAT, "b"]
    assert [encoder.tokenizer.decode(ids) for ids in encoder.encode(prompts)] == [
        "b",
        "a",
        "<system>Be brief.<user>Hi <b><assistant>",
        "b",
    ]
    assert encoder.encode([]) == []


def test_a_split_does_not_take_the_name_of_the_average(encoder) -> None:
    with pytest.raises(UserError, match=r"evaluation split 'average': .*; rename it"):
        PromptBuilder(encoder, None).split("average", [(["a"], [0])])


def test_a_prompt_may_use_all_tokens_but_the_answers(encoder) -> None:
    assert encoder.longest == 1024 - 24
    assert len(encoder.encode(["x" * 1000])[0]) == 1000
    with pytest.raises(UserError, match=r"'xxxx.* has 1001 tokens; at most 1000 fit before --max-tokens"):
        encoder.encode(["fine", "x" * 1001])


def test_long_prompts_are_quoted_in_short(encoder) -> None:
    with pytest.raises(UserError) as caught:
        encoder.encode(["line\n" * 5000])
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_an_empty_prompt_is_refused(encoder) -> None:
    with pytest.raises(UserError, match="prompt '' is empty"):
        encoder.encode(["fine", ""])


def test_messages_need_a_chat_template(own_copy) -> None:
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        path = own_copy / file
        if file.endswith("json") and path.exists():
            config = json.loads(path.read_text())
            config.pop("chat_template", None)
            path.write_text(json.dumps(config))
        else:
            path.unlink(missing_ok=True)
    encoder = load(own_copy, None, 8)
    assert encoder.encode(["text will do"])
    with pytest.raises(UserError, match="no chat template; use an instruct model"):
        encoder.encode([CHAT])


@pytest.mark.parametrize(("max_model_len", "max_tokens", "longest"), [(None, 24, 1000), (100, 24, 76), (100, 99, 1)])
def test_the_users_length_wins(max_model_len, max_tokens, longest, tiny_model) -> None:
    assert load(tiny_model, max_model_len, max_tokens).longest == longest


@pytest.mark.parametrize(("max_model_len", "max_tokens"), [(None, 1024), (100, 100), (None, 5000)])
def test_answers_must_leave_room_for_a_prompt(max_model_len, max_tokens, tiny_model) -> None:
    with pytest.raises(UserError, match=rf"^--max-tokens {max_tokens}: .* no token for a prompt"):
        load(tiny_model, max_model_len, max_tokens)


def test_a_model_that_does_not_say_its_length_has_no_limit(own_copy) -> None:
    config = json.loads((own_copy / "config.json").read_text())
    del config["max_position_embeddings"]
    (own_copy / "config.json").write_text(json.dumps(config))
    assert load(own_copy, None, 8).longest > 10**6


def test_a_damaged_tokenizer_is_one_line(own_copy) -> None:
    (own_copy / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer cannot be loaded") as caught:
        load(own_copy, None, 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_damaged_configuration_is_one_line(content, own_copy) -> None:
    (own_copy / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        load(own_copy, None, 8)


def test_a_length_beyond_the_models_own_is_refused(tiny_model) -> None:
    with pytest.raises(UserError, match=r"--max-model-len 4096.*1024"):
        load(tiny_model, 4096, 8)


def test_a_chat_template_that_refuses_is_one_line(encoder) -> None:
    encoder.tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UserError, match="System role not supported"):
        encoder.encode([CHAT])


@pytest.mark.parametrize("prompt", [7, None, {"role": "user", "content": "one message, not a list"}])
def test_an_invalid_prompt_is_one_line(prompt, encoder) -> None:
    with pytest.raises(UserError, match="prompt"):
        encoder.encode([prompt])


# --- between turns ----------------------------------------------------------------------------------------------

REPLY = [{"role": "user", "content": "No: lower."}]
ANSWER = {"role": "assistant", "content": "It is 7"}


def test_a_conversation_is_the_prompt_the_answers_and_what_is_between(encoder) -> None:
    """With the tokens of the answers as they were generated, here those of their text."""
    (ids,) = encoder.encode([CHAT])
    ids += encoder.tokenizer(ANSWER["content"], add_special_tokens=False)["input_ids"]
    ids += encoder.between_turns(CHAT, [ANSWER], REPLY)
    assert [ids] == encoder.encode([[*CHAT, ANSWER, *REPLY]])
    again = encoder.between_turns(CHAT, [ANSWER, *REPLY, ANSWER], [{"role": "tool", "content": "3"}, *REPLY])
    assert encoder.tokenizer.decode(again) == "<tool>3<user>No: lower.<assistant>"


def test_after_a_text_the_contents_follow_as_they_are(encoder) -> None:
    reply = [{"role": "user", "content": "\nHint: lower"}, {"role": "user", "content": "\nGuess:"}]
    assert encoder.tokenizer.decode(encoder.between_turns("Guess:", [ANSWER], reply)) == "\nHint: lower\nGuess:"


@pytest.mark.parametrize("blank", [True, False])
def test_a_tokenizer_that_puts_a_blank_before_a_text_puts_none_between_turns(blank) -> None:
    """As Llama 2's and Mistral's do."""
    letters = Tokenizer(WordLevel({letter: code for code, letter in enumerate("\n\u2581:Hintxae")}, unk_token="x"))
    letters.normalizer = Sequence([Prepend("\u2581")] * blank + [Replace(" ", "\u2581")])
    letters.pre_tokenizer = Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters)
    between = PromptEncoder(tokenizer, 100, ChatTemplate(tokenizer)).between_turns(
        "Hint:", [ANSWER], [{"role": "user", "content": "\nHint: a"}]
    )
    assert "".join(tokenizer.convert_ids_to_tokens(between)) == "\nHint:\u2581a"


TEMPLATES = {
    "hidden": "{% for m in messages %}{% if m['role'] != 'assistant' %}{{ m['content'] }}{% endif %}{% endfor %}",
    "twice": "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}",
    "rejected": "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ raise_exception('one turn') }}{% endif %}"
    "{{ m['content'] }}{% endfor %}",
}


@pytest.mark.parametrize(
    ("template", "message"),
    [("hidden", "does not show earlier answers"), ("twice", "does not show earlier"), ("rejected", "rejects")],
)
def test_a_template_for_which_there_are_no_further_turns_is_refused(template, message, own_copy) -> None:
    encoder = load(own_copy, None, 24)
    encoder.tokenizer.chat_template = TEMPLATES[template]
    with pytest.raises(UserError, match=message) as refused:
        encoder.check_turns(CHAT)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("roles", "settings", "hidden"),
    [
        (["user"], {}, None),
        (["tool", "user"], {}, None),
        (["system"], {}, None),
        (["user", "judge"], {}, "judge"),
        (["system", "user"], {"system_prompt": "Think."}, "system"),  # which replaces all system messages
    ],
)
def test_a_reply_that_the_model_would_not_see_is_refused(roles, settings, hidden, own_copy) -> None:
    encoder = load(own_copy, None, 24, **settings)
    shown = "{% if m['role'] != 'judge' %}<{{ m['role'] }}>{{ m['content'] }}{% endif %}"
    encoder.tokenizer.chat_template = "{% for m in messages %}" + shown + "{% endfor %}"
    reply = [{"role": role, "content": ""} for role in roles]
    for _ in range(2):  # also when it comes again
        if not hidden:
            between = encoder.between_turns(CHAT, [ANSWER], reply)
            assert encoder.tokenizer.decode(between) == "".join(f"<{role}>" for role in roles)
            continue
        with pytest.raises(UserError, match=f"leaves out the reply's message of the role '{hidden}'") as refused:
            encoder.between_turns(CHAT, [ANSWER], reply)
        assert "\n" not in str(refused.value)


def test_thoughts_that_a_template_would_remove_do_not_matter(own_copy) -> None:
    """As in Qwen3's: the text after an answer is the same, whatever the template makes of the answer."""
    encoder = load(own_copy, None, 24)
    content = "{{ m['content'].split('</think>')[-1] | trim }}"
    encoder.tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>" + content + "|{% endfor %}<assistant>"
    between = encoder.between_turns(CHAT, [{"role": "assistant", "content": "<think>7?</think> 7 "}], REPLY)
    assert encoder.tokenizer.decode(between) == "|<user>No: lower.|<assistant>"
