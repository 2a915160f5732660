"""Exceptions that cross the border of an engine: plain, picklable, in one printable line, with the true reason."""

import pickle
import threading

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from esplug.engines.engine_errors import EngineError, of_configuration, plain, with_plain_errors
from esplug.errors import PluginError, UserError


class Settings(BaseModel):
    length: int
    kind: str = ""

    @field_validator("kind")
    @classmethod
    def check(cls, value: str) -> str:
        raise ValueError(f"{value} is not supported\nfor quantization method awq")


def invalid(**values: object) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Settings(**values)
    return caught.value


def caused(error: Exception, *causes: Exception) -> Exception:
    for lower, upper in zip((error, *causes), causes, strict=False):
        lower.__cause__ = upper
    return error


class Unpicklable(Exception):  # noqa: N818
    def __init__(self, lock: object, more: object) -> None:
        super().__init__("the device is lost")
        self.lock = lock


class Speechless(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise TypeError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (invalid(length=1, kind="torch.float32"), "ValidationError: kind: torch.float32 is not supported for"),
        (
            invalid(length="x", kind="y"),
            "ValidationError: length: Input should be a valid integer, unable to parse string as an integer; kind: y",
        ),
        (Unpicklable(threading.Lock(), 1), "Unpicklable: the device is lost"),
        (RuntimeError(), "RuntimeError"),
        (Speechless(), "Speechless"),
        (SystemExit(3), "SystemExit: 3"),
        (ValueError("a\n\n  b\r\nc\tFor further information"), "ValueError: a b c For further information"),
        (ValueError("\x1b[31mred\x1b[0m\x07 \u202e"), "ValueError: ␛[31mred␛[0m␇ \\u202e"),
        (ValueError("\ud800"), "ValueError: \\ud800"),
        (caused(RuntimeError("a"), KeyError("rope")), "RuntimeError: a; caused by KeyError: 'rope'"),
        (caused(RuntimeError(), KeyError(), OSError("no file")), "RuntimeError: no file"),
        (caused(RuntimeError("it says: no file"), OSError("no file")), "RuntimeError: it says: no file"),
        (
            caused(RuntimeError("a"), invalid(length=1, kind="y")),
            "RuntimeError: a; caused by ValidationError: kind: y is not supported for quantization method awq",
        ),
        (ExceptionGroup("two", [ValueError("one"), KeyError(2)]), "ExceptionGroup: two (2 sub-exceptions); caused by "),
        (EngineError("ValueError", "once"), "ValueError: once"),
        (OSError("no number"), "OSError: no number"),
    ],
)  # fmt: skip
def test_the_reason_is_one_line_that_any_process_can_read(error, text) -> None:
    made = pickle.loads(pickle.dumps(plain(error)))
    assert type(made) is EngineError
    assert str(made).startswith(text)
    assert len(str(made)) < 1000
    assert str(made).isprintable()


def test_a_huge_message_keeps_its_ends() -> None:
    text = str(plain(ValueError("begin " + "word " * 10**6 + "end")))
    assert len(text) < 500
    assert text.startswith("ValueError: begin")
    assert text.endswith("end")


def test_a_loop_of_causes_ends() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert str(plain(first)) == "ValueError: first; caused by ValueError: second"


@pytest.mark.parametrize(
    ("error", "kind"),
    [(UserError("fix it"), UserError), (PluginError("fix it"), UserError), (OSError(28, "No space", "x"), OSError)],
)
def test_errors_that_esplug_knows_keep_their_meaning(error, kind) -> None:
    made = pickle.loads(pickle.dumps(plain(error)))
    assert type(made) is kind
    assert made.args == error.args
    assert str(made) == str(error)


def test_a_method_raises_plain_errors_and_prints_the_traceback(capfd) -> None:
    class Actor:
        @with_plain_errors
        def work(self, error: BaseException) -> None:
            raise error

    with pytest.raises(EngineError, match="SystemExit: 3"):
        Actor().work(SystemExit(3))
    with pytest.raises(EngineError, match="the device is lost"):
        Actor().work(Unpicklable(threading.Lock(), 1))
    assert "raise error" in capfd.readouterr().err
    with pytest.raises(UserError, match="fix it"):
        Actor().work(UserError("fix it"))
    assert capfd.readouterr().err == ""


def test_an_error_of_vllms_configuration_is_known_by_where_it_was_raised() -> None:
    def create_engine_config() -> None:
        raise ValueError

    for raising, expected in ((create_engine_config, True), (lambda: int("x"), False)):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            raising()
        assert of_configuration(caught.value) is expected
