"""The program in an answer of the task `code`."""

import pytest

from esplug_tasks_code import extraction


@pytest.mark.parametrize(
    ("answer", "last", "first"),
    [
        ("```python\nx = 1\n```", "x = 1\n", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n", "x = 1\n"),
        ("```py\nx = 1\n```\nThen:\n```Python3\nx = 2\n```", "x = 2\n", "x = 1\n"),
        ("```python\nx = 1\n```\nOutput:\n```text\n1\n```", "x = 1\n", "x = 1\n"),
        ("```bash\nls\n```\n```python\nx = 1\n```", "x = 1\n", "x = 1\n"),
        ("```python\nx = 1\n```\nor\n```python\nx = 2", "x = 1\n", "x = 1\n"),
        ("  ```python\n  x = 1\n  ```", "  x = 1\n", "  x = 1\n"),
        ("```python\r\nx = '\x0c\u2028'\r\n```\r\n", "x = '\x0c\u2028'\r\n", "x = '\x0c\u2028'\r\n"),
        ("```python\nx = '```'\ny = 2\n```", "x = '```'\ny = 2\n", "x = '```'\ny = 2\n"),
        ("```python\n\n```", None, None),
        ("```python\nx = 1", None, None),
        ("x = 1", None, None),
        ("", None, None),
    ],
)
def test_blocks_are_found(answer, last, first):
    assert extraction.program(answer, "last") == last
    assert extraction.program(answer, "first") == first


def test_the_whole_text_may_be_the_program():
    assert extraction.program("x = 1", "text") == "x = 1"
    assert extraction.program(" \n", "text") is None
