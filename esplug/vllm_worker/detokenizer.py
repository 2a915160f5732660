"""Detokenizer for whole answers. vLLM would detokenize token by token while it generates, which slows it down."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from esplug.utils.text import cut_at

_CONTEXT = 16  # last tokens of the prompt; they can decide whether an answer begins with a space
_TOKENS_PER_LETTER = 8  # of an answer, searched for each letter of a stop text


class Detokenizer:
    """Detokenizes answers to the same texts as vLLM, with vLLM's tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._stops: dict[tuple[str, ...], Stops | None] = {}

    @property
    def works(self) -> bool:
        """Whether the tokenizer is of the ``tokenizers`` library. vLLM treats others differently."""
        return self._backend is not None

    def text(self, prompt: Sequence[int], answer: Sequence[int]) -> str:
        """Return an answer's text after its prompt, without an incomplete character at the end."""
        from tokenizers.decoders import DecodeStream

        def stream() -> Any:
            return DecodeStream(ids=list(prompt[-_CONTEXT:]), skip_special_tokens=True)

        try:
            text: str | None = stream().step(self._backend, list(answer)) if answer else ""
            if text is None:  # its end is incomplete, or it is empty
                one_by_one = stream()
                text = "".join(one_by_one.step(self._backend, token) or "" for token in answer)
        except Exception:  # such as bytes that are not UTF-8; the library has no exception type for that
            text = self._backend.decode(list(answer), skip_special_tokens=True)
        return text

    def stops(self, texts: tuple[str, ...]) -> "Stops | None":
        """Return a finder of these texts in answers; ``None`` if no set of tokens covers all that can complete one."""
        if texts not in self._stops:
            self._stops[texts] = self._find_stops(texts) if self.works else None
        return self._stops[texts]

    def _find_stops(self, texts: tuple[str, ...]) -> "Stops | None":
        last = {text[-1] for text in texts}
        if " " in last or not all(text.isascii() and text.isprintable() for text in texts):
            return None  # a character can span tokens otherwise, and a final space can be stripped
        vocabulary = list(self._backend.get_vocab().values())
        alone = zip(vocabulary, self._backend.decode_batch([[token] for token in vocabulary]), strict=True)
        tokens = {token: text for token, text in alone if not last.isdisjoint(text)}
        if any(text.endswith("\ufffd") for text in tokens.values()):
            return None  # half a character after the stop text would hold it back
        return Stops(self, texts, frozenset(tokens))


@dataclass(frozen=True)
class Stops:
    """Stop texts: an answer ends at the first one that is complete."""

    detokenizer: Detokenizer
    texts: tuple[str, ...]  # printable ASCII, without a space at the end
    tokens: frozenset[int]  # ids of the tokens that can complete one

    def complete(self, prompt: Sequence[int], answer: Sequence[int]) -> bool:
        """Return whether the last token of an answer completes a stop text.

        Searches only the last tokens, so that long answers are not slow. It would miss a stop text with tens of tokens
        without letters, such as special tokens, inside it.
        """
        if not answer or answer[-1] not in self.tokens:
            return False
        first = max(0, len(answer) - _TOKENS_PER_LETTER * max(map(len, self.texts)))
        before = answer[max(0, first - _CONTEXT) : first] if first else prompt
        text = self.detokenizer.text(before, answer[first:])
        return any(stop in text for stop in self.texts)

    def cut(self, text: str) -> str:
        """Return a text up to the end of its first stop text, if it has one."""
        return cut_at(text, self.texts)
