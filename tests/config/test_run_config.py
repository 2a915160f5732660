"""The configuration as users meet it: TOML, flags, keyword arguments, and their mistakes."""

import datetime

import pytest

from esplug.config import RunConfig, default_of, flag_of, make_config, read_toml
from esplug.errors import UserError


def test_alpha_defaults_to_half_of_sigma() -> None:
    assert make_config({"sigma": 0.01}).step_size == 0.005
    assert make_config({"sigma": 0.01, "alpha": 0.3}).step_size == 0.3


def test_schedules_begin_and_end_where_they_should() -> None:
    config = make_config(
        {"sigma": 0.01, "alpha": 0.1, "n_iterations": 5, "sigma_schedule": "linear", "sigma_end": 0.002}
    )
    assert [config.sigma_at(k) for k in range(5)] == pytest.approx([0.01, 0.008, 0.006, 0.004, 0.002])
    assert [config.alpha_at(k) for k in range(5)] == [0.1] * 5
    config = make_config({"sigma": 0.01, "n_iterations": 3, "alpha_schedule": "cosine"})
    assert [config.alpha_at(k) for k in range(3)] == pytest.approx([0.005, 0.00275, 0.0005])
    assert config.alpha_at(20) == pytest.approx(0.0005)
    config = make_config({"n_iterations": 1, "sigma_schedule": "cosine"})
    assert config.sigma_at(0) == config.sigma


def test_a_recipe_counts_more_than_the_tasks_defaults_and_less_than_what_is_said() -> None:
    assert make_config().alpha == 0.0005
    config = make_config({"recipe": "fast", "sigma": 0.002}, defaults={"alpha_schedule": "linear", "max_tokens": 9})
    assert (config.alpha_schedule, config.alpha, config.max_tokens) == ("cosine", 0.004, 9)
    config = make_config({"recipe": "fast"}, {"alpha_schedule": "constant", "alpha": 0.1})
    assert (config.alpha_schedule, config.alpha) == ("constant", 0.1)
    assert make_config({"recipe": "fast"}, {"recipe": "paper"}) == make_config()
    file = make_config({"alpha_schedule": "linear", "alpha_end": 1e-4}).model_dump(exclude_none=True)
    assert make_config(file, {"recipe": "fast"}).model_dump(exclude={"alpha_end"}) == make_config(
        {"recipe": "fast"}
    ).model_dump(exclude={"alpha_end"})
    assert make_config(file, {"recipe": "paper"}) == make_config() == make_config(file, {"alpha_schedule": "constant"})
    assert make_config({"recipe": "fast"}, defaults={"alpha": 0.3}).alpha == 0.002
    config = make_config(defaults={"recipe": "fast", "alpha": 0.3})  # a task may recommend one too
    assert (config.alpha_schedule, config.alpha) == ("cosine", 0.3)
    assert make_config(config.model_dump(exclude_none=True)) == config


def test_low_rank_has_settings_of_its_own() -> None:
    assert make_config().rank is None
    low = make_config({"perturbation": "low-rank", "population_size": 30})
    assert low.rank == 1
    assert [low.members_at_once(engines) for engines in (1, 2, 4, 30, 64)] == [30, 15, 8, 1, 1]
    assert make_config({"perturbation": "low-rank", "population_size": 200}).members_at_once(1) == 50
    assert make_config({"perturbation": "low-rank", "n_iterations": 0}).members_at_once(1) == 1
    assert make_config({"perturbation": "low-rank", "members_per_batch": 100}).members_at_once(1) == 30
    four = make_config({"perturbation": "low-rank", "rank": 4, "members_per_batch": 5, "population_size": 30})
    assert (four.rank, four.members_at_once(2)) == (4, 5)
    assert make_config(four.model_dump(exclude_none=True)) == four
    assert make_config(four.model_dump(exclude_none=True), {"perturbation": "full", "population_size": 30}) == (
        make_config({"population_size": 30})
    )
    assert make_config({"population_size": 30}).members_at_once(1) == 1
    assert "rank4-" in four.run_name
    for wrong in ({"rank": 4}, {"members_per_batch": 4}):
        with pytest.raises(UserError, match=r"^--(rank|members-per-batch) 4 is for --perturbation low-rank; give"):
            make_config(wrong)


def test_later_layers_win() -> None:
    config = make_config({"max_tokens": 7, "seed": 0}, {"max_tokens": 8})
    assert (config.max_tokens, config.seed) == (8, 0)


def test_toml_round_trip(tmp_path) -> None:
    config = make_config(
        {"task_options": {"shots": 2}, "stop": ["</answer>", "\n"], "logging": "jsonl,wandb", "seed": 0},
        {
            "system_prompt": 'Think.\n"Hard"',
            "chat_template_options": {"a": False, "b": [1, "x"], "c": 0.5, "d": "true"},
            "tags": ["a b", "c"],
            "notes": "two\nlines",
        },
        {"eval_splits": "a,b", "eval_n_samples": 4, "eval_temperature": 0.8, "pass_k": "1,4", "max_reward": -0.5},
    )
    file = tmp_path / "config.toml"
    file.write_text(config.to_toml())
    assert make_config(read_toml(str(file))) == config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sigma": 0}, ["--sigma", "greater than 0"]),
        ({"sigma": float("nan")}, ["--sigma", "finite"]),
        ({"alpha": -1}, ["--alpha"]),
        ({"sigma_end": 0.1}, ["--sigma-end 0.1", "--sigma-schedule linear or cosine"]),
        ({"alpha_end": 0.1}, ["--alpha-end", "--alpha-schedule"]),
        ({"profile": 3, "n_iterations": 3}, ["--profile 3", "the last iteration is 2"]),
        ({"early_stopping_patience": -1}, ["--early-stopping-patience -1", "at least 0"]),
        (
            {"early_stopping_patience": 2, "eval_freq": 0},
            ["--early-stopping-patience needs", "--eval-freq"],
        ),
        ({"early_stopping_min_delta": 0.1}, ["--early-stopping-min-delta 0.1 is for --early-stopping-patience"]),
        ({"early_stopping_metric": "eval/a/pass@1/mean"}, ["--early-stopping-metric eval/a/pass@1/mean is for"]),
        ({"early_stopping_metric": "train/reward/mean"}, ["--early-stopping-metric", "a metric of evaluations"]),
        ({"early_stopping_metric": "eval/\n/x"}, ["--early-stopping-metric", "one line"]),
        ({"early_stopping_patience": 1, "early_stopping_min_delta": -0.1}, ["--early-stopping-min-delta", "least 0"]),
        ({"recipe": "slow"}, ["--recipe", "paper, fast"]),
        ({"momentum": 1}, ["--momentum", "at most 0.99"]),
        ({"sigma_schedule": "exponential"}, ["--sigma-schedule", "cosine"]),
        ({"population_size": 1}, ["--population-size", "2"]),
        ({"population_size": 5, "antithetic": True}, ["--population-size", "even"]),
        ({"n_iterations": -1}, ["--n-iterations", "0"]),
        ({"seed": -1}, ["--seed"]),
        ({"seed": 2**64}, ["--seed"]),
        ({"max_tokens": 0}, ["--max-tokens"]),
        ({"max_tokens": 64, "max_model_len": 64}, ["--max-tokens", "--max-model-len"]),
        ({"train_top_p": 1.5}, ["--train-top-p"]),
        ({"use_gpus": "0,0"}, ["--use-gpus", "distinct"]),
        ({"use_gpus": "gpu"}, ["--use-gpus"]),
        ({"dtype": "int8"}, ["--dtype", "bfloat16"]),
        ({"task": " "}, ["--task", "empty"]),
        ({"experiment_name": "a/b"}, ["--experiment-name", "slashes"]),
        ({"task_options": ["shots"]}, ["--task-option", "key=value"]),
        ({"chat_template_options": ["style"]}, ["--chat-template-option", "key=value"]),
        ({"chat_template_options": "style=x"}, ["--chat-template-option", "key=value"]),
        ({"chat_template_options": {"style": None}}, ["--chat-template-option", "style must be text"]),
        ({"chat_template_options": {"style": "\udcff"}}, ["--chat-template-option", "UTF-8"]),
        ({"chat_template_options": {"words": ["\udcff"]}}, ["--chat-template-option", "UTF-8"]),
        ({"system_prompt": "\udcff"}, ["--system-prompt", "UTF-8"]),
        ({"system_prompt": " \n"}, ["--system-prompt", "empty"]),
        ({"reward_function_timeout": float("inf")}, ["--reward-function-timeout"]),
        ({"populaton_size": 4}, ["populaton_size", "population_size"]),
        ({"n_iterations": "many"}, ["--n-iterations", "many"]),
        ({"eval_n_samples": 2}, ["--eval-n-samples 2", "--eval-temperature"]),
        ({"eval_n_samples": 2, "eval_temperature": 1, "pass_k": "1,4"}, ["--pass-k 4", "--eval-n-samples is 2"]),
        ({"pass_k": "1,0"}, ["--pass-k", "at least 1"]),
        ({"pass_k": 0}, ["--pass-k", "at least 1"]),
        ({"pass_k": 1.5}, ["--pass-k", "integer"]),
        ({"pass_k": True}, ["--pass-k", "integer"]),
        ({"max_reward": float("nan")}, ["--max-reward", "finite"]),
    ],
)
def test_mistakes_get_one_line_that_names_the_flag(settings, words) -> None:
    with pytest.raises(UserError) as caught:
        make_config(settings)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("false", False),
        ("3", 3),
        ("-0.5", -0.5),
        ('"3"', "3"),
        ('["a", 1]', ["a", 1]),
        ("high", "high"),
        ("False", False),
        ('"False"', "False"),
        ("NaN", "NaN"),
        ("", ""),
        ("a=b", "a=b"),
    ],
)
def test_a_chat_template_option_is_json_or_text(text, parsed) -> None:
    config = make_config({"chat_template_options": {"key": 0, "other": 1}}, {"chat_template_options": [f"key={text}"]})
    assert config.chat_template_options == {"key": parsed, "other": 1}
    assert type(config.chat_template_options["key"]) is type(parsed)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, field in RunConfig.model_fields.items()
        if default_of(name) and any(hasattr(limit, key) for limit in field.metadata for key in ("gt", "ge"))
    ],
)
@pytest.mark.parametrize("value", [-1, "auto", "none"])
def test_a_number_that_may_be_left_out_says_what_that_means(name, value) -> None:
    """People give -1 or a word where they mean the default."""
    with pytest.raises(UserError) as caught:
        make_config({"sigma_schedule": "linear", "alpha_schedule": "linear", "perturbation": "low-rank", name: value})
    assert str(caught.value).startswith(f"{flag_of(name)} ")
    assert str(caught.value).endswith(f"; leave it out for the default, {default_of(name)}")


def test_alpha_that_is_left_out_is_half_of_sigma() -> None:
    with pytest.raises(UserError, match=r"^--alpha -1: must be .*; leave it out for the default, sigma/2, or 2 sigma"):
        make_config({"alpha": "-1"})


@pytest.mark.parametrize(
    ("text", "parsed"), [("0,1", "0,1"), ([1, 3], "1,3"), (2, "2"), ("all", None), ("none", "none")]
)
def test_use_gpus_takes_text_and_lists(text, parsed) -> None:
    assert make_config({"use_gpus": text}).use_gpus == parsed


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("a, b", ["a", "b", "jsonl"]),
        (["a", "jsonl,c"], ["a", "jsonl", "c"]),
        ("none", ["none", "jsonl"]),
        (None, ["jsonl"]),
        (False, ["jsonl"]),
    ],
)
def test_logging_takes_text_and_lists_and_never_lacks_jsonl(given, parsed) -> None:
    assert make_config({"logging": given}).logging == parsed


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("1,4, 8", [1, 4, 8]),
        ([8, 4], [1, 4, 8]),
        ("4,4", [1, 4]),
        (8, [1, 8]),
        ("", [1]),
        (None, [1]),
        ((2, 1), [1, 2]),
    ],
)
def test_pass_k_takes_text_numbers_and_lists_and_always_has_1(given, parsed) -> None:
    config = make_config({"pass_k": given, "eval_n_samples": 8, "eval_temperature": 1.0})
    assert config.pass_k == parsed


@pytest.mark.parametrize(("given", "parsed"), [("a, b", ["a", "b"]), (["a", "b,c"], ["a", "b", "c"]), (None, [])])
def test_splits_take_text_and_lists(given, parsed) -> None:
    assert make_config({"eval_splits": given}).eval_splits == parsed


@pytest.mark.parametrize("value", [1.5, datetime.date(2026, 1, 1)])
@pytest.mark.parametrize("name", ["logging", "eval_splits"])
def test_an_odd_value_in_a_list_s_place_is_one_item(name, value) -> None:
    """TOML has numbers and dates too; whoever reads the list says that there is no such thing."""
    assert getattr(make_config({name: value}), name)[0] == str(value)


def test_mistakes_in_eval_name_its_own_flags() -> None:
    for settings, words in (
        ({"eval_n_samples": 2}, ["--n-samples 2", "--temperature"]),
        ({"pass_k": 4}, ["--pass-k 4", "--n-samples is 1"]),
        ({"eval_limit": 0}, ["--limit 0"]),
        ({"eval_top_p": 2}, ["--top-p 2"]),
        ({"eval_dataset": ""}, ["--eval-dataset"]),
    ):
        with pytest.raises(UserError) as caught:
            make_config(settings, command="eval")
        assert all(word in str(caught.value) for word in words), caught.value
        assert "--eval-n" not in str(caught.value)


@pytest.mark.parametrize(("content", "word"), [("sigma = ", "TOML"), (None, "No such file")])
def test_unreadable_files(tmp_path, content, word) -> None:
    file = tmp_path / "c.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=word):
        read_toml(str(file))


def test_every_field_has_help_and_a_flag() -> None:
    for command in ("train", "eval"):
        flags = [flag_of(name, command) for name in RunConfig.model_fields]
        assert len(set(flags)) == len(flags)
    assert all(field.description for field in RunConfig.model_fields.values())


def test_a_patience_of_zero_drops_what_belongs_to_early_stopping() -> None:
    rule = {
        "early_stopping_patience": 3,
        "early_stopping_metric": "eval/a/reward/mean",
        "early_stopping_min_delta": 0.1,
    }
    for zero in (0, "0"):
        config = make_config(rule, {"early_stopping_patience": zero})
        assert (config.early_stopping_patience, config.early_stopping_min_delta) == (0, 0.0)
        assert config.early_stopping_metric == "eval/average/reward/mean"
