"""What works on one Python and not on another, and can be seen without having the other."""

import symtable
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = [file for package in ("esplug", "esplug_tasks_*") for file in sorted(Path().glob(f"{package}/**/*.py"))]


def shadowed(table: symtable.SymbolTable) -> Iterator[str]:
    """Find comprehensions whose variable is also a closure's: Python 3.12 inlines them and then mixes the two up."""
    for child in table.get_children():
        yield from shadowed(child)
        if isinstance(table, symtable.Function) and child.get_name() in ("listcomp", "dictcomp", "setcomp"):
            for symbol in child.get_symbols():
                if symbol.is_local() and symbol.get_name() in table.get_frees():
                    yield f"{symbol.get_name()!r} in {table.get_name()}, line {child.get_lineno()}"


def test_the_search_finds_one() -> None:
    code = "def f(x):\n def g(xs):\n  ys = [x for x in xs]\n  return [*(x for _ in ys)]\n return g"
    assert list(shadowed(symtable.symtable(code, "f", "exec"))) == ["'x' in g, line 3"]


@pytest.mark.parametrize("file", SOURCES, ids=str)
def test_no_comprehension_takes_a_closures_name(file) -> None:
    assert list(shadowed(symtable.symtable(file.read_text(encoding="utf-8"), str(file), "exec"))) == []
