"""Prompt encoder: turns prompts, text or chat messages, into the model's token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esplug.checkpoints.base_model import longest_prompt
from esplug.errors import UserError
from esplug.hookspecs import Prompt
from esplug.utils.text import one_line

#: Tokens that end a turn in the chat formats of ChatML, Llama, Gemma and Phi.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes prompts once for all engines and members."""

    tokenizer: Any  # of transformers
    longest: int  # maximum number of tokens in a prompt, so that an answer of full length fits

    @classmethod
    def load(
        cls, folder: Path, max_model_len: int | None, max_tokens: int, *, trust_remote_code: bool = False
    ) -> "PromptEncoder":
        """Load the tokenizer of a model folder. With ``trust_remote_code``, it may be Python code in that folder."""
        longest = longest_prompt(folder, max_model_len, max_tokens)
        try:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except Exception as error:
            raise UserError(f"{folder}: its tokenizer cannot be loaded ({one_line(error)})") from error
        return cls(tokenizer, longest)

    @property
    def turn_ends(self) -> tuple[int, ...]:
        """Tokens at which an answer ends, in addition to the model's end-of-text token.

        A base model that is prompted in a chat format would otherwise go on and invent the next turns.
        """
        added = self.tokenizer.get_added_vocab()
        return tuple(added[token] for token in _TURN_ENDS if token in added)

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the token ids of each prompt. Chat messages use the model's chat template."""
        encoded: list[list[int]] = []
        for prompt in prompts:
            text = self.render(prompt)
            ids = self.tokenizer(text, add_special_tokens=isinstance(prompt, str))["input_ids"]
            if not 0 < len(ids) <= self.longest:
                fault = f"has {len(ids)} tokens; at most {self.longest} fit before --max-tokens" if ids else "is empty"
                raise UserError(f"prompt {text[:60]!r} {fault}")
            encoded.append(ids)
        return encoded

    def render(self, prompt: Prompt) -> str:
        """Return a prompt as the text that the model sees."""
        if isinstance(prompt, str):
            return prompt
        if not isinstance(prompt, list):
            raise UserError(f"a prompt must be text or a list of chat messages, not {type(prompt).__name__}")
        if self.tokenizer.chat_template is None:
            raise UserError(
                "the task's prompts are chat messages, but this model has no chat template; use an instruct model"
            )
        try:
            return str(self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template may raise errors of its own, for instance for a role
            raise UserError(f"the model's chat template rejects the task's messages ({error})") from error
