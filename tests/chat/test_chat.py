"""`esplug chat`: what the models are asked, what the terminal shows, and which models those are."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from esplug.chat.models import find_models
from esplug.chat.session import Chat
from esplug.checkpoints.export import export
from esplug.checkpoints.model_kind import ModelUse
from esplug.config import RunConfig
from esplug.data.prompt_encoder import PromptEncoder
from esplug.engines.messages import Completion, Generation, Weights
from esplug.errors import UserError
from tests.helpers.cli import errors_of, run_cli
from tests.helpers.runs import make_run as make_finished_run
from tests.helpers.seed_logs import make_log, same_files


class FakePool:
    """An engine whose answer says how much it was asked."""

    undefined = 0

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.jobs = tokenizer, []

    def run(self, jobs: Iterable[Any]) -> Iterator[tuple[Any, Generation]]:
        for job in jobs:
            self.jobs.append(job)
            (ids,) = job.prompts
            name = "trained" if job.weights[0].beside else "base"
            text = f"{name} \x1b[31m{len(self.tokenizer.decode(ids))}"
            yield job.keys[0], Generation([Completion(text, 3, True)], (), self.undefined)

    def asked(self) -> list[str]:
        """Return the prompts so far."""
        return [self.tokenizer.decode(job.prompts[0]) for job in self.jobs]


@pytest.fixture
def base(tiny_model: Path) -> Path:
    return tiny_model


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    """Return a run of four iterations that has no saved model."""
    folder = tmp_path / "experiments" / "mine"
    folder.mkdir(parents=True)
    make_log(folder / "seeds.log", base)
    (folder / "config.toml").write_text('task = "sums"\nn_iterations = 4\nsystem_prompt = "Be brief."\nseed = 7\n')
    return folder


@pytest.fixture
def pools(monkeypatch, base: Path) -> list[FakePool]:
    """Replace engines by fake ones. Returns those that were started."""
    started: list[FakePool] = []

    @contextmanager
    def open_fake(config: RunConfig, models: Any) -> Iterator[Chat]:
        encoder = PromptEncoder.load(models.trained, config)
        pool: Any = FakePool(encoder.tokenizer)
        started.append(pool)
        both: Any = {"base": Weights(), "trained": Weights(beside=True)}
        yield Chat(pool, encoder, config, both if models.base else {"trained": Weights(beside=True)})

    monkeypatch.setattr("esplug.chat.session.open_chat", open_fake)
    return started


@pytest.fixture
def chat(monkeypatch, capfd) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs `esplug chat` with typed lines or text on standard input."""

    def invoke(*arguments: object, typed: list[str] | None = None, piped: str = "") -> tuple[int, str, str]:
        stdin = io.StringIO(piped)
        stdin.isatty = lambda: typed is not None  # type: ignore[method-assign]
        lines = iter(typed or [])

        def read(_: str) -> str:
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr("builtins.input", read)
        return run_cli(monkeypatch, capfd, "chat", *map(str, arguments), "--max-tokens", "50")

    return invoke


@pytest.mark.parametrize("how", ["flag", "pipe"])
def test_a_prompt_is_answered_once_by_both(how, chat, run, base, pools) -> None:
    given = {"piped": "Hello\n"} if how == "pipe" else {}
    code, out, err = chat(run, *(["--prompt", "Hello"] if how == "flag" else []), **given)
    assert (code, err) == (0, "")
    (pool,) = pools
    assert pool.asked() == ["<system>Be brief.<user>Hello<assistant>"] * 2
    assert out.splitlines() == [
        f"--- base: {base}",
        "base ␛[31m39",
        f"--- trained: {run}, 4 iterations",
        "trained ␛[31m39",
    ]


def test_without_its_base_the_answer_stands_alone(chat, run, pools) -> None:
    (run / "checkpoints").mkdir()
    export(run, run / "checkpoints" / "checkpoint-es_fine_tuned_iteration_4")
    code, out, err = chat(run, "--no-base", "--prompt", "Hello", "--system-prompt", "Rhyme.")
    assert (code, out, err) == (0, "trained ␛[31m36\n", "")
    assert pools[0].asked() == ["<system>Rhyme.<user>Hello<assistant>"]


def test_the_conversation_goes_on_until_it_is_reset(chat, run, pools) -> None:
    typed = ["One", "", "Two", "/reset", "Three", "/nothing", "/quit", "never"]
    code, out, err = chat(run, typed=typed)
    assert (code, err) == (0, "")
    system = "<system>Be brief."
    one, two = ("base \x1b[31m37", "trained \x1b[31m37")
    assert pools[0].asked() == [
        *[f"{system}<user>One<assistant>"] * 2,
        f"{system}<user>One<assistant>{one}<user>Two<assistant>",
        f"{system}<user>One<assistant>{two}<user>Two<assistant>",
        *[f"{system}<user>Three<assistant>"] * 2,
    ]
    assert "system prompt: Be brief." in out
    assert "the conversation is forgotten" in out
    assert "no such command; /reset" in out


def test_ctrl_d_ends_it_and_a_prompt_that_is_too_long_does_not(chat, run, pools) -> None:
    code, out, err = chat(run, typed=["One", "x" * 3000, "Two"])
    assert (code, err) == (0, "")
    assert "has 3" in out
    assert "/reset forgets the conversation" in out
    assert "<user>Two" in pools[0].asked()[-1]
    assert "xxx" not in pools[0].asked()[-1]


def test_a_model_without_a_chat_template_continues_text(chat, base, tmp_path, pools) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in base.iterdir():
        if file.name != "chat_template.jinja":
            (plain / file.name).write_bytes(file.read_bytes())
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(settings))
    code, out, _ = chat(plain, typed=["Once", "upon"])
    assert code == 0
    assert "it continues each text, and remembers nothing" in out
    assert [text.removeprefix("<s>") for text in pools[0].asked()] == ["Once", "upon"]


def test_answers_stand_side_by_side_on_a_wide_terminal(chat, run, pools, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    _, out, _ = chat(run, "--prompt", "Hello")
    assert any("base ␛[31m39" in line and "trained ␛[31m39" in line for line in out.splitlines())


def test_the_settings_of_the_answers(chat, run, pools) -> None:
    flags = ["--temperature", "0.7", "--top-p", "0.9", "--seed", "3", "--stop", "END"]
    seeds = []
    for seed in ("3", "3", "4"):
        flags[5] = seed
        assert chat(run, "--prompt", "Hello", *flags)[0] == 0
        base_job, trained_job = pools[-1].jobs
        assert base_job.seeds == trained_job.seeds
        seeds += base_job.seeds
        sampling = base_job.sampling
        assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.stop) == (50, 0.7, 0.9, ("END",))
        assert sampling.stop_token_ids == (2,)
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize("how", ["flag", "pipe"])
def test_a_prompt_that_is_not_utf_8_is_one_line(how, chat, run, pools) -> None:
    given = {"piped": "caf\udce9"} if how == "pipe" else {}
    code, out, err = chat(run, *(["--prompt", "caf\udce9"] if how == "flag" else []), **given)
    assert (code, out, pools) == (2, "", [])
    assert err == "error: the prompt is not text in UTF-8; convert it, for example with iconv\n"


def test_a_typed_prompt_that_is_not_utf_8_does_not_end_the_conversation(chat, run, pools) -> None:
    code, out, err = chat(run, typed=["One", "caf\udce9", "Two"])
    assert (code, err) == (0, "")
    assert "the prompt is not text in UTF-8" in out
    assert "<user>One" in pools[0].asked()[-1]
    assert len(pools[0].asked()) == 4


def test_a_model_that_computes_nan_is_one_line(chat, run, pools, monkeypatch) -> None:
    monkeypatch.setattr(FakePool, "undefined", 1)
    code, _, err = chat(run, "--prompt", "Hello")
    assert (code, len(errors_of(err))) == (1, 1)
    assert "NaN" in err


# --- models ---------------------------------------------------------------------------------------------


@pytest.fixture
def find(tmp_path):
    """Return a function that finds the models of a chat."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def found(name: object, base: str | None = None, *, alone: bool = False):
            return find_models(
                str(name),
                base,
                command="esplug chat",
                alone=alone,
                scratch=tmp_path / "scratch",
                stack=stack,
                use=ModelUse(perturbs=False),
            )

        yield found


@pytest.mark.parametrize("name", ["run", "log"])
def test_a_run_without_a_saved_model_is_replayed(name, find, run, base, tmp_path) -> None:
    models = find(run if name == "run" else run / "seeds.log")
    export(run, tmp_path / "exported")
    same_files(models.trained, tmp_path / "exported")
    assert (models.base, models.base_name) == (base, str(base))


def test_a_saved_model_is_used(find, run, base, monkeypatch) -> None:
    saved = run / "checkpoints" / "checkpoint-es_fine_tuned_iteration_4"
    saved.parent.mkdir()
    export(run, saved)
    monkeypatch.setattr("esplug.chat.models.replayed", lambda *_: pytest.fail("it was replayed"))
    for name in (run, saved):
        models = find(name)
        assert (models.trained, models.base) == (saved, base)
        assert find(name, alone=True).base is None
    monkeypatch.chdir(saved.parent)
    assert find(saved.name).base == base
    weights = bytearray((saved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (saved / "model.safetensors").write_bytes(weights)
    with pytest.raises(Exception, match="changed: its bytes are not those that were written"):
        find(run)


@pytest.mark.parametrize("name", ["run", "saved"])
def test_a_base_with_other_weights_is_refused(name, find, base, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    folder, moved = tmp_path / "mine", shutil.copytree(base, tmp_path / "base")
    folder.mkdir()
    make_log(folder / "seeds.log", moved)
    saved = folder / "checkpoints" / "checkpoint-es_fine_tuned_iteration_4"
    saved.parent.mkdir()
    export(folder, saved)
    tensors = load_file(moved / "model.safetensors")
    save_file({key: tensor + 1 for key, tensor in tensors.items()}, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="not the model that the run started from"):
        find(folder if name == "run" else saved)


def test_a_saved_model_of_earlier_iterations_is_not_used(find, run, tmp_path) -> None:
    (run / "checkpoints").mkdir()
    export(run, run / "checkpoints" / "checkpoint-es_fine_tuned_iteration_2", iteration=2)
    assert find(run).trained.parent.parent == tmp_path / "scratch"


MISTAKES: list[tuple[str, str]] = [
    ("{tmp}/none", "esplug chat {tmp}/none: no such folder"),
    ("{tmp}/experiments", "esplug chat {tmp}/experiments: "),
    ("{evaluated}", "{evaluated}: no seeds.log there, so nothing was trained"),
    ("{tmp}/x.pth", "{tmp}/x.pth: a file of weights"),
    ("{run} --base {tmp}/none", "--base {tmp}/none: no such folder"),
    ("{run} --base {other}", "{other}: not the model that the run started from"),
    ("{base} --base {other}", "--base {other}: not the base of {base} (hidden_size differs in config.json)"),
    ("{run} --base {base} --no-base", "--base and --no-base exclude each other"),
    ("{run} --temperature -1", "--temperature -1"),
    ("{run} --max-model-len 4", "--max-model-len 4"),
    ("{run} --max-model-len 9000", "--max-model-len 9000"),
    ("{run} --chat-template-option x=1", "--chat-template-option x"),
    ("{run} --dtype int4", "--dtype"),
    ("{gone}", "no such folder"),
    ("~nobody-of-that-name/model", "nobody-of-that-name"),
    ("{run} --no-base=maybe", "--no-base is a switch; write --no-base, or leave it out"),
    ("{torn}", "{torn}/seeds.log: the header is damaged"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_mistakes_are_one_line(arguments, words, chat, run, base, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("esplug.chat.session.Cluster", lambda *_: pytest.fail("Ray was started"))
    places = {"tmp": tmp_path, "run": run, "base": base}
    places["evaluated"] = make_finished_run(tmp_path / "evaluations", done=0).path
    for name in ("gone", "torn"):
        places[name] = tmp_path / name
        places[name].mkdir()
    make_log(places["gone"] / "seeds.log", base, name=str(tmp_path / "moved"))
    (places["torn"] / "seeds.log").write_bytes((run / "seeds.log").read_bytes()[:40])
    other = places["other"] = tmp_path / "other"
    other.mkdir()
    for file in base.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "config.json").write_text(
        (base / "config.json").read_text().replace('"hidden_size": 64', '"hidden_size": 65')
    )
    from safetensors.torch import load_file, save_file

    tensors = load_file(base / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    code, out, err = chat(*arguments.format(**places).split(), "--prompt", "Hello")
    assert (code, len(errors_of(err)), len(err.splitlines())) == (2, 1, 1), err
    assert out == ""
    assert words.format(**places) in err


@pytest.mark.parametrize("arguments", [["--prompt", " "], []])
def test_an_empty_prompt_is_one_line(arguments, chat, run) -> None:
    code, out, err = chat(run, *arguments, piped="\n")
    assert (code, out) == (2, "")
    assert err == "error: the prompt is empty; give --prompt TEXT, or text on standard input\n"


# --- real engines ---------------------------------------------------------------------------------------


@pytest.mark.vllm
def test_one_engine_answers_as_an_engine_of_each_model(chat, run, base, tmp_path) -> None:
    """Switched weights give the answers of models that vLLM loads itself."""
    export(run, tmp_path / "exported")
    flags = ["--dtype", "float32", "--max-model-len", "256", "--prompt", "What is it?", "--system-prompt", "Be brief."]
    answers = {}
    for name in (run, tmp_path / "exported", base):
        code, out, err = chat(name, *flags)
        assert (code, err) == (0, "")
        answers[name] = out
    both = answers[run].partition(f"--- base: {base}\n")[2]
    of_base, _, of_trained = both.partition(f"--- trained: {run}, 4 iterations\n")
    assert of_base == answers[base]
    assert of_trained == answers[tmp_path / "exported"]
    assert of_base != of_trained
    assert len(of_base) > 20
