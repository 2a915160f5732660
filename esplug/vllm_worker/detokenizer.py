"""Texts of whole answers. vLLM would make them while it generates, a token at a time, which slows it down."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_CONTEXT = 16  # tokens of the prompt that may decide how an answer begins, such as with a space
_SEEN = 8  # tokens looked at for each letter of a text to stop at


class Detokenizer:
    """Makes the texts that vLLM would have made.

    Args:
        tokenizer: of a vLLM engine.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._stops: dict[tuple[str, ...], Stops | None] = {}

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

    def stops(self, texts: tuple[str, ...]) -> "Stops | None":
        """Return what finds these texts in answers; ``None`` where tokens do not tell whether they may complete one."""
        if texts not in self._stops:
            self._stops[texts] = self._find_stops(texts) if self.works else None
        return self._stops[texts]

    def _find_stops(self, texts: tuple[str, ...]) -> "Stops | None":
        last = {text[-1] for text in texts}
        if " " in last or not all(text.isascii() and text.isprintable() for text in texts):
            return None  # others may be parts of several tokens, and a space at the end may be stripped
        vocabulary = list(self._backend.get_vocab().values())
        alone = zip(vocabulary, self._backend.decode_batch([[token] for token in vocabulary]), strict=True)
        tokens = {token: text for token, text in alone if not last.isdisjoint(text)}
        if any(text.endswith("\ufffd") for text in tokens.values()):
            return None  # half a character behind it holds the text back
        return Stops(self, texts, frozenset(tokens))


@dataclass(frozen=True)
class Stops:
    """Texts at which answers end: the one that is complete first.

    Attributes:
        detokenizer: makes the texts of answers.
        texts: of printable ASCII, which do not end with a space.
        tokens: that may complete one.
    """

    detokenizer: Detokenizer
    texts: tuple[str, ...]
    tokens: frozenset[int]

    def complete(self, prompt: Sequence[int], answer: Sequence[int]) -> bool:
        """Whether an answer, none of whose beginnings has one of the texts, now has one.

        Looks at the last tokens only, so that no answer makes it slow. It would miss a text between whose letters there
        are tens of tokens without any, such as special ones.
        """
        if not answer or answer[-1] not in self.tokens:
            return False
        first = max(0, len(answer) - _SEEN * max(map(len, self.texts)))
        before = answer[max(0, first - _CONTEXT) : first] if first else prompt
        text = self.detokenizer.text(before, answer[first:])
        return any(stop in text for stop in self.texts)

    def cut(self, text: str) -> str:
        """Return a text up to the end of what it stops at; all of it if there is nothing."""
        ends = [text.index(stop) + len(stop) for stop in self.texts if stop in text]
        return text[: min(ends)] if ends else text
