"""Test suites: the tests of a problem, read from the columns of public data sets.

=================  ===================================================================================================
columns            form
=================  ===================================================================================================
``tests``          any of the forms below, also as JSON text
``input_output``   ``{"inputs": [...], "outputs": [...], "fn_name": ...}`` (APPS, TACO); standard input without fn_name
``*_test_cases``   ``[{"input": ..., "output": ..., "testtype": ...}]``, public and private (LiveCodeBench)
``test_list``      assertions as code, after ``test_setup_code`` or ``test_imports`` (MBPP)
``test``           code that defines ``check(candidate)``, for the function ``entry_point`` (HumanEval)
=================  ===================================================================================================
"""

import ast
import base64
import binascii
import builtins
import json
import pickletools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

COLUMNS = ("tests", "input_output", "public_test_cases", "test_list", "test")
MAX_UNPACKED = 1 << 28  # bytes of LiveCodeBench's compressed tests

_PICKLED_TEXT = {"PROTO", "FRAME", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "MEMOIZE", "BINPUT", "STOP"}


@dataclass(frozen=True, slots=True)
class Suite:
    """Tests of one problem. Its text, as logged with samples, is short.

    Attributes:
        kind: ``program``, ``function`` or ``assertions``.
        inputs: for each test, the text on standard input, the list of arguments, or code with assertions.
        outputs: for each test, the expected text or value; empty for assertions.
        function: name of the function; empty for programs.
        setup: code that runs before assertions, without the function.
        stub: start of the function, for answers that continue it.
        shown: assertions that the prompt may show.
    """

    kind: str
    inputs: tuple[Any, ...] = field(repr=False)
    outputs: tuple[Any, ...] = field(repr=False, default=())
    function: str = ""
    setup: str = field(repr=False, default="")
    stub: str = field(repr=False, default="")
    shown: str = field(repr=False, default="")

    def __str__(self) -> str:
        of = f" of {self.function}" if self.function else ""
        return f"{len(self.inputs)} tests{of}, such as {self.example()}"

    def example(self) -> str:
        """Return the first test in a readable form."""
        if self.kind == "assertions":
            return self.shown or "check(candidate)"
        given, expected = self.inputs[0], self.outputs[0]
        if self.kind == "program":
            return f"input {given[:200]!r}, output {expected[:200]!r}"
        arguments = ", ".join(map(repr, given))
        return f"{self.function}({arguments[:400]}) == {expected!r:.200}"


def read(row: Mapping[str, Any], column: str, most: int) -> Suite:
    """Read the tests of a row.

    Args:
        row: of a data set.
        column: name of the column with the tests; ``auto`` for the first of :data:`COLUMNS` that the row has.
        most: number of tests to keep, from the first; 0 for all.

    Raises:
        KeyError: the row has no such column.
        ValueError: the tests are in no known form.
    """
    if column == "auto":
        column = next((name for name in COLUMNS if row.get(name)), "tests")
    tests = _parsed(row[column])
    if column == "public_test_cases":
        tests = [*tests, *_private(row.get("private_test_cases"))]
    try:
        suite = _suite(tests, row)
    except (LookupError, TypeError, ValueError, SyntaxError, AttributeError) as error:
        fault = f"column {column!r}: not tests in a form that the task's README lists"
        raise ValueError(f"{fault} [{type(error).__name__}: {error}]") from error
    if not suite.inputs:
        raise ValueError(f"column {column!r}: there are no tests")
    keep = slice(most or None)
    return replace(suite, inputs=suite.inputs[keep], outputs=suite.outputs[keep])


def _parsed(value: Any) -> Any:
    """Return JSON text as data, and anything else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value  # code


def _suite(tests: Any, row: Mapping[str, Any]) -> Suite:
    if isinstance(tests, str):
        return _checked(tests, row)
    if isinstance(tests, Mapping):
        return _paired(tests["inputs"], tests["outputs"], tests.get("fn_name") or _function(row), row)
    if all(isinstance(test, str) for test in tests):
        return _asserted(list(tests), row)
    first = tests[0]
    functional = first.get("testtype") == "functional" or first.get("type") == "function_call" or first.get("fn_name")
    metadata = _parsed(first.get("metadata")) or {}
    name = (first.get("fn_name") or metadata.get("func_name") or _function(row)) if functional else ""
    if functional and not name:
        raise TypeError("no function is named")
    inputs, outputs = ([test[key] for test in tests] for key in ("input", "output"))
    if functional:  # texts are JSON, as LiveCodeBench writes them
        outputs = [
            _parsed(each) if isinstance(test["input"], str) else each for test, each in zip(tests, outputs, strict=True)
        ]
    return _paired(inputs, outputs, name, row)


def _paired(inputs: Sequence[Any], outputs: Sequence[Any], name: str, row: Mapping[str, Any]) -> Suite:
    if len(inputs) != len(outputs):
        raise TypeError(f"{len(inputs)} inputs and {len(outputs)} outputs")
    if not name:
        texts = [tuple(map(_text, each)) for each in (inputs, outputs)]
        return Suite("program", texts[0], texts[1])
    arguments = tuple(map(_lines, inputs))
    if not all(isinstance(each, list) for each in arguments):
        raise TypeError("the arguments of a call are not a list")
    return Suite("function", arguments, tuple(outputs), name, stub=row.get("starter_code") or "")


def _checked(code: str, row: Mapping[str, Any]) -> Suite:
    """Read HumanEval's form: ``check`` runs assertions on a candidate."""
    defines_check = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in ast.parse(code).body)
    test = _counting(f"{code}\ncheck(candidate)" if defines_check else code)
    stub = str(row.get("prompt") or "")
    return Suite("assertions", (test,), (), row["entry_point"], _if_complete(stub), stub)


def _if_complete(stub: str) -> str:
    """Return a stub whose function has a docstring as its body. Assertions may call its other functions."""
    try:
        return ast.unparse(ast.parse(stub))
    except SyntaxError:
        return ""


def _asserted(tests: list[str], row: Mapping[str, Any]) -> Suite:
    """Read MBPP's form: assertions that name the function themselves."""
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
    function = row.get("entry_point") or _called(ast.parse(tests[0]))
    return Suite("assertions", tuple(map(_counting, tests)), (), function, setup, shown=tests[0].strip())


def _counting(code: str) -> str:
    """Return code whose assertions report their verdict and never raise."""
    tree = ast.fix_missing_locations(_Counter().visit(ast.parse(code)))
    return ast.unparse(tree)


class _Counter(ast.NodeTransformer):
    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        if isinstance(node.test, ast.Constant):  # HumanEval has some that are always true
            return ast.Pass()
        template = "try:\n pass\nexcept Exception:\n __verdict__('0')\nelse:\n __verdict__('1')"
        (wrapped,) = ast.parse(template).body
        assert isinstance(wrapped, ast.Try)
        wrapped.body = [node]
        return wrapped


def _called(tree: ast.AST) -> str:
    """Return the name of the first function called that is not built in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not hasattr(builtins, node.func.id):
            return node.func.id
    raise TypeError("the first assertion calls no function")


def _function(row: Mapping[str, Any]) -> str:
    metadata = _parsed(row.get("metadata"))
    named = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    return str(row.get("fn_name") or row.get("entry_point") or named or "")


def _lines(value: Any) -> Any:
    """Return arguments that are written as JSON, one to a line, as LiveCodeBench has them."""
    return [json.loads(line) for line in value.split("\n") if line.strip()] if isinstance(value, str) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(map(str, value if isinstance(value, list) else [value]))


def _private(value: Any) -> list[Any]:
    """Return LiveCodeBench's private tests: JSON, or base64 of zlib of a pickled JSON text, which is not unpickled."""
    tests = _parsed(value or "[]")
    if not isinstance(tests, str):
        return list(tests)
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(tests, validate=True), MAX_UNPACKED)
        parts = list(pickletools.genops(data))
        texts = [argument for opcode, argument, _ in parts if "UNICODE" in opcode.name]
        if len(texts) == 1 and {opcode.name for opcode, *_ in parts} <= _PICKLED_TEXT:
            return list(json.loads(str(texts[0])))
    except (ValueError, zlib.error, binascii.Error):
        pass
    raise ValueError("column 'private_test_cases': neither JSON nor a compressed pickle of JSON")
