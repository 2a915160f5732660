"""Dockerfiles, by stage."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """A stage of a Dockerfile.

    Attributes:
        image: that it starts from.
        name: after ``AS``; empty without.
        steps: instructions and their values, without ``FROM``.
    """

    image: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def values(self, instruction: str) -> list[str]:
        """Return the values of all steps with this instruction."""
        return [value for found, value in self.steps if found == instruction]


def stages(path: Path) -> list[Stage]:
    """Parse a Dockerfile."""
    from dockerfile_parse import DockerfileParser

    found: list[Stage] = []
    for step in DockerfileParser(fileobj=path.open("rb")).structure:
        instruction, value = step["instruction"], step["value"]
        if instruction == "FROM":
            image, _, name = value.partition(" AS ")
            found.append(Stage(image, name))
        elif instruction != "COMMENT":
            found[-1].steps.append((instruction, value))
    return found
