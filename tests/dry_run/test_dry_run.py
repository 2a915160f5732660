"""`esplug train --dry-run` without its probe, and the arithmetic of a run's cost."""

import shutil
import tomllib

import pytest

from esplug.config import make_config
from esplug.planning.cost import Speed, times_of, work_of
from esplug.utils.text import printable
from tests.helpers.cli import errors_of, run_cli


@pytest.fixture
def no_engines(monkeypatch) -> None:
    monkeypatch.setattr("esplug.runs.preparation.Cluster", lambda *_: pytest.fail("Ray was started"))


def dry_run(monkeypatch, capfd, *arguments: str) -> tuple[int, str, str]:
    base = ["train", "--dry-run", "--no-probe", "--max-tokens", "8", "--population-size", "4", "--batch-size", "6"]
    return run_cli(monkeypatch, capfd, *base, "--n-iterations", "10", "--eval-limit", "5", *arguments)


@pytest.mark.parametrize("how", ["full", "low-rank"])
def test_it_shows_settings_prompts_memory_and_cost(how, no_engines, monkeypatch, capfd, tmp_path, tiny_model) -> None:
    out_dir = tmp_path / "runs"
    arguments = ["--model-name", str(tiny_model), "--output-directory", str(out_dir), "--task-option", "shots=1"]
    code, out, err = dry_run(monkeypatch, capfd, *arguments, "--perturbation", how)
    assert (code, err) == (0, "")
    settings, _, rest = out.partition("training: ")
    assert make_config(tomllib.loads(settings)).population_size == 4
    assert "6 prompts per iteration" in rest
    assert rest.count("--- prompt ") == 2
    assert "<think>" in rest  # from the task's prompt
    assert "master" in rest
    assert ("adapters" in rest) == (how == "low-rank")
    words = " ".join(rest.split())
    assert "one iteration 24 192" in words
    assert "one evaluation 5 40" in words
    assert "total: 10 iterations, 3 evaluations 255 2,040" in words  # before training, after 5 and after 10
    assert not out_dir.exists()
    assert list(tmp_path.iterdir()) == []


def test_without_the_model_it_shows_prompts_and_cost(no_engines, monkeypatch, capfd, tmp_path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, _ = dry_run(monkeypatch, capfd, "--model-name", "nobody/no-such", "--output-directory", str(tmp_path))
    assert code == 0
    assert "the model is not on this machine" in out
    assert "one iteration" in out


def test_chat_messages_are_shown_as_the_model_sees_them(no_engines, monkeypatch, capfd, tmp_path, tiny_model) -> None:
    _, out, _ = dry_run(
        monkeypatch, capfd, "--task", "math", "--task-option", "template=chat", "--model-name", str(tiny_model)
    )
    assert "<assistant>" in out  # from the model's own chat template
    assert "or at one of these tokens: </s> (2)" in " ".join(out.split())


def test_a_system_prompt_is_recorded_and_shown(no_engines, monkeypatch, capfd, tmp_path, tiny_model) -> None:
    task = ["--task", "math", "--task-option", "template=chat", "--system-prompt", "Think\nhard."]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for model, shown in (
        (str(tiny_model), "<system>Think\nhard.<user>"),
        ("nobody/no-such", "system: Think\nhard.\nuser:"),
    ):
        code, out, _ = dry_run(monkeypatch, capfd, *task, "--model-name", model, "--output-directory", str(tmp_path))
        assert code == 0
        assert shown in out
        assert make_config(tomllib.loads(out.partition("training: ")[0])).system_prompt == "Think\nhard."


def test_several_turns_are_counted(no_engines, monkeypatch, capfd, tmp_path, tiny_model) -> None:
    arguments = ["--model-name", str(tiny_model), "--output-directory", str(tmp_path / "runs"), "--max-turns", "3"]
    code, out, err = dry_run(monkeypatch, capfd, "--task", "number-guessing", *arguments)
    assert (code, err) == (0, "")
    words = " ".join(out.split())
    assert "a conversation has up to 3 answers of up to 8 tokens" in words
    assert "one iteration 24 576" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-turns", "3", "--model-name", "{tiny}"], "--max-turns 3: task 'countdown' has no hook `turn`"),
        (["--task", "calculator", "--perturbation", "low-rank"], "--perturbation low-rank: not for tasks"),
        (["--model-name", "./no/such"], "./no/such"),
        (["--max-tokens", "5000", "--model-name", "{tiny}"], "--max-tokens 5000"),
        (["--max-model-len", "24", "--model-name", "{tiny}"], "at most 16 fit"),
        (["--output-directory", "/dev/null/x"], "--output-directory"),
        (["--early-stopping-patience", "2", "--eval-freq", "0"], "--early-stopping-patience needs evaluations"),
        (["--early-stopping-patience", "2", "--early-stopping-metric", "eval/other/reward/mean"], "no such metric"),
        (["--system-prompt", "Think.", "--model-name", "{tiny}"], "--system-prompt: the task's prompt"),
        (["--chat-template-option", "style=x", "--model-name", "{tiny}"], "does not read it"),
        (["--chat-template-option", "style"], "write it as key=value"),
        (["--chat-template-option", "style=null"], "must be text, a number, true, false"),
    ],
)
def test_a_mistake_is_one_line(arguments, words, no_engines, monkeypatch, capfd, tiny_model) -> None:
    code, _, err = dry_run(monkeypatch, capfd, *(each.format(tiny=tiny_model) for each in arguments))
    assert (code, len(errors_of(err))) == (2, 1), err
    assert words in errors_of(err)[0]


def test_a_chat_template_for_which_there_are_no_further_turns_is_found(
    no_engines, monkeypatch, capfd, tmp_path, tiny_model
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    only_users = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    (model / "chat_template.jinja").write_text(only_users)
    code, _, err = dry_run(monkeypatch, capfd, "--task", "calculator", "--model-name", str(model))
    assert (code, len(errors_of(err))) == (2, 1), err
    assert "does not show earlier answers" in errors_of(err)[0]


def test_early_stopping_is_announced(no_engines, monkeypatch, capfd, tiny_model) -> None:
    rule = ["--early-stopping-patience", "2", "--early-stopping-metric", "eval/countdown_eval/pass@1/mean"]
    code, out, err = dry_run(monkeypatch, capfd, "--model-name", str(tiny_model), *rule)
    assert (code, err) == (0, "")
    words = " ".join(out.split())
    assert "the run stops early if eval/countdown_eval/pass@1/mean does not improve in 2 evaluations; the" in words


def test_control_characters_in_data_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[31m\tb\nc\udcff") == "a␛[31m\tb\nc\\udcff"


@pytest.mark.parametrize(
    ("iterations", "every", "done", "evaluations"),
    [
        (10, 5, 0, 3),
        (10, 3, 0, 5),
        (10, 0, 0, 2),
        (10, 0, 4, 1),
        (10, 5, 5, 2),
        (10, 5, 6, 1),
        (0, 5, 0, 1),
        (1, 1, 0, 2),
    ],
)
def test_evaluations_are_counted_as_a_run_makes_them(iterations, every, done, evaluations) -> None:
    config = make_config({"n_iterations": iterations, "eval_freq": every})
    assert work_of(config, 2, 7, done).evaluations == evaluations
    # the condition in the trainer's loop
    assert sum(config.evaluates_at(k) for k in range(done, iterations)) + 1 == evaluations


SPEED = Speed(2, 1, 10, 20.0, 100.0, 30.0, switch=1.0, generate=4.0, grade=0.5, update=0.1, update_member=0.2,
              evaluation_answer=0.5)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "n_engines", "expected"),
    [
        ({"population_size": 6}, 2, (3 * 4.0 * 2, 3 * 1.0, 1.0, 0.1 + 6 * 0.2)),
        ({"population_size": 7}, 2, (4 * 4.0 * 2, 4 * 1.0, 1.0, 0.1 + 7 * 0.2)),  # one engine waits for the other
        ({"population_size": 7, "mini_batch_size": 10}, 2, (3.5 * 4.0 * 2, 3.5 * 1.0, 1.0, 0.1 + 7 * 0.2)),
    ],
)
def test_an_iteration_takes_as_many_rounds_as_its_engines_need(settings, n_engines, expected) -> None:
    config = make_config({"n_iterations": 10, "eval_freq": 0} | settings)
    work = work_of(config, 20, 64)
    times = times_of(config, work, SPEED, n_engines, 32)
    assert (times.generate, times.switch, times.grade, times.update) == pytest.approx(expected)
    assert times.evaluation == 0.5 * 64 / 2
    assert times.run == pytest.approx(30 + 10 * times.iteration + 2 * times.evaluation)


def test_momentum_makes_updates_longer() -> None:
    work = work_of(make_config({"n_iterations": 100}), 20, 0)
    plain, momentum = (
        times_of(make_config({"n_iterations": 100, "momentum": m}), work, SPEED, 1, 32).update for m in (0.0, 0.5)
    )
    assert plain == pytest.approx(0.1 + 30 * 0.2)
    assert 6.5 < (momentum - 0.1) / (plain - 0.1) < 7  # 7 updates from the seventh iteration on
