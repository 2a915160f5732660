"""Extraction of the program from an answer."""

MAX_PROGRAM = 1 << 16  # characters
CHOICES = ("last", "first", "text")
_FENCE = "```"
_LANGUAGES = ("", "python", "python3", "py")


def blocks(answer: str) -> list[str]:
    """Return the contents of an answer's closed fenced blocks that are Python or name no language."""
    found: list[str] = []
    inside: list[str] | None = None
    language = ""
    for line in answer.split("\n"):  # a form feed or the like may stand in a line of code
        stripped = line.strip()
        if inside is None:
            if stripped.startswith(_FENCE):
                inside, language = [], stripped.strip("`").strip().lower()
        elif stripped == _FENCE:
            if language in _LANGUAGES:
                found.append("\n".join(inside) + "\n")
            inside = None
        else:
            inside.append(line)
    return found


def program(answer: str, choice: str) -> str | None:
    """Return the last or first fenced block, or the whole text; ``None`` if there is none or it is blank."""
    chosen = [answer] if choice == "text" else blocks(answer)[-1:] if choice == "last" else blocks(answer)[:1]
    return chosen[0] if chosen and chosen[0].strip() else None
