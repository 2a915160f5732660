"""Tasks for TRL's GRPOTrainer: rows, rewards, and a step of the trainer itself."""

import pytest

from esplug.errors import RunError, UserError
from esplug.interop.trl import TRLTask
from tests.helpers.rewards import graders

EASY = {"level": "easy", "shots": 1}


@pytest.fixture
def task():
    with TRLTask("countdown", EASY, eval_limit=5) as made:
        yield made


def solution(numbers: list[int]) -> str:
    return f"</think>\n<answer>{' + '.join(map(str, numbers))}</answer>"


def test_rows_are_those_of_a_run(task) -> None:
    train, evaluation = task.train_dataset(), task.eval_datasets()
    assert train.column_names == ["prompt", "esplug_row"]
    assert list(evaluation) == ["countdown_eval"]
    assert len(evaluation["countdown_eval"]) == 5
    assert train[0]["prompt"].endswith("<think>")
    assert evaluation["countdown_eval"][0]["prompt"].endswith("Numbers: 26, 26, 29. Target: 81.\n<think>")
    rows = [*train["esplug_row"], *evaluation["countdown_eval"]["esplug_row"]]
    assert rows == list(range(len(train) + 5))


def test_each_answer_is_graded_against_its_own_row(task) -> None:
    (split,) = task.eval_datasets().values()
    logged = {}
    answers = [solution([26, 26, 29]), solution([26, 26, 29]), "nothing"]
    found = task.reward(
        completions=answers,
        esplug_row=[split[0]["esplug_row"], split[1]["esplug_row"], split[0]["esplug_row"]],
        prompts=["", "", ""],
        completion_ids=[[1], [2], [3]],
        trainer_state=None,
        log_extra=None,
        log_metric=logged.__setitem__,
    )
    assert found[0] == 1.1
    assert 0 <= found[2] < found[1] < 1
    assert logged["correct"] == pytest.approx(1 / 3)
    assert logged["rewards_failed"] == 0
    assert logged["format"] < 1


def test_what_follows_the_stop_text_is_not_graded(task) -> None:
    (split,) = task.eval_datasets().values()
    row = split[0]["esplug_row"]
    answer = solution([26, 26, 29])
    assert task.reward([answer + "\n<answer>1</answer>", answer], [row, row]) == [1.1, 1.1]


def test_chat_messages(task) -> None:
    (split,) = task.eval_datasets().values()
    row = split[0]["esplug_row"]
    message = {"role": "assistant", "content": solution([26, 26, 29])}
    assert task.reward([[message]], [row]) == [1.1]
    with pytest.raises(UserError, match=r"has 2 messages.*leave out TRL's tools"):
        task.reward([[message, message]], [row])


def test_graders_end_with_the_block() -> None:
    with TRLTask("countdown", EASY, eval_limit=1) as task:
        (split,) = task.eval_datasets().values()
        task.reward(["x"], split["esplug_row"])
        assert graders()
    assert not graders()


@pytest.mark.parametrize(
    ("name", "options", "settings", "message"),
    [
        ("number-guessing", {}, {}, "has several turns"),
        ("cuntdown", {}, {}, "did you mean 'countdown'"),
        ("countdown", {"levl": "easy"}, {}, "did you mean 'level'"),
        ("countdown", {}, {"reward_function_timeout": -1}, "--reward-function-timeout"),
        ("countdown", {}, {"reward_function_timout": 1}, "did you mean 'reward_function_timeout'"),
        ("countdown", {}, {"sigma": 1}, r"no setting 'sigma'; choose from \(train_dataset, "),
    ],
)
def test_mistakes_are_one_line(name, options, settings, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        TRLTask(name, options, **settings)
    assert "\n" not in str(caught.value)


def test_answers_of_which_none_can_be_graded_stop_the_training() -> None:
    with TRLTask("code", {"sandbox": "rlimits"}, eval_limit=1, reward_function_timeout=0.5) as task:
        split, *_ = task.eval_datasets().values()
        with pytest.raises(RunError, match=r"every reward failed \(timeout x1\)"):
            task.reward(["```\nimport time\ntime.sleep(1000)\n```"], split["esplug_row"])


def test_grpo_trains_on_a_task(task, tiny_model, tmp_path) -> None:
    import trl

    settings = trl.GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        num_generations=4,
        max_completion_length=24,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        model_init_kwargs={"dtype": "float32"},
    )
    trainer = trl.GRPOTrainer(
        str(tiny_model),
        reward_funcs=task.reward,
        args=settings,
        train_dataset=task.train_dataset(),
        eval_dataset=task.eval_datasets(),
    )
    trainer.train()
    (step,) = [each for each in trainer.state.log_history if "rewards/reward/mean" in each]
    assert 0 <= step["rewards/reward/mean"] <= 1.1
    assert 0 <= step["correct"] <= 1
    assert step["rewards_failed"] == 0
    evaluated = trainer.evaluate()
    assert 0 <= evaluated["eval_correct"] <= evaluated["eval_reward"] <= 1.1
