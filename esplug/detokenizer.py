"""Texts of whole answers. vLLM would make them while it generates, a token at a time, which slows it down."""

from collections.abc import Sequence
from typing import Any

_CONTEXT = 16  # tokens of the prompt that may decide how an answer begins, such as with a space


class Detokenizer:
    """Makes the texts that vLLM would have made.

    Args:
        tokenizer: of a vLLM engine.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)

    @property
    def works(self) -> bool:
        """Whether the tokenizer is one of the ``tokenizers`` library; with others vLLM goes a way of its own."""
        return self._backend is not None

    def text(self, prompt: Sequence[int], answer: Sequence[int]) -> str:
        """Return the text with which an answer goes on after its prompt, up to a last character that is incomplete."""
        from tokenizers.decoders import DecodeStream

        def stream() -> Any:
            return DecodeStream(ids=list(prompt[-_CONTEXT:]), skip_special_tokens=True)

        try:
            text: str | None = stream().step(self._backend, list(answer)) if answer else ""
            if text is None:  # the end of it is incomplete, or there is nothing to be seen
                one_by_one = stream()
                text = "".join(one_by_one.step(self._backend, token) or "" for token in answer)
        except (
            Exception
        ):  # such as for bytes that are no UTF-8 together with those before; the library has no type for it
            text = self._backend.decode(list(answer), skip_special_tokens=True)
        return text
