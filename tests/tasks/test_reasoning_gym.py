"""The reasoning-gym task: every generator of the library, the guards before its graders, options, and rows."""

import ast
import inspect
import json
import logging
import os
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from esplug.errors import PluginError, UserError
from esplug.plugins.task import Task
from esplug.rewards import RewardPool
from esplug_tasks_reasoning_gym import answers, catalogue, generators, grading, guards, rows, stream
from esplug_tasks_reasoning_gym.selection import ALL, Selection
from tests.helpers.cli import errors_of, run_cli

NAMES = [example.name for example in catalogue.read()]
#: Where the library puts a right answer of generators whose rows have none.
ELSEWHERE = {
    "graph_color": "possible_answer",
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
}
#: Rows for which the library gives no right answer.
NONE = {"boxnet", "rush_hour"}
HOSTILE = [
    "I do not know",
    "nan",
    "-1e400",
    "9" * 5_000,
    "9**9**9**9",
    "[" * 3_000,
    "(" * 3_000,
    "a " * 10_001,
    '{"a": NaN}',
    "[].__class__.__base__.__subclasses__()",
    "__import__('os').open('broken', 65)",
    "[c for c in open('broken', 'w')]",
    "exec(\"open('broken', 'w')\")",
    "\x00\u202e\ud83d\ude00",
]


@pytest.fixture(scope="module")
def held_out() -> dict[str, list[rows.Row]]:
    """One row of every generator."""
    return rows.Wanted(Selection.of(ALL, ()), seed=0, size=1, eval_size=1).held_out()


def grade(answer: str | None, row: rows.Row, **options: object):
    return grading.grade(answer, row, Selection.of(row["task"], tuple(sorted(options.items()))))


def load(**options: object) -> Task:
    return Task.load("reasoning-gym", options)


# --- every generator ---------------------------------------------------------------------------------------


def test_all_generators_are_tested() -> None:
    assert tuple(NAMES) == generators.names()
    assert len(NAMES) == 105


@pytest.mark.parametrize("name", NAMES)
def test_generator(held_out, name, tmp_path, monkeypatch) -> None:
    """A right answer earns everything; an empty and a hostile one do not, run nothing, and take little time."""
    monkeypatch.chdir(tmp_path)
    (row,) = held_out[name]
    assert row["task"] == name
    assert row["question"].strip()
    right = row["metadata"][ELSEWHERE[name]] if name in ELSEWHERE else row["answer"]
    if name in NONE:
        assert right is None
    else:
        right = right if isinstance(right, str) else json.dumps(right)
        assert grade(right, row).label == "correct"
    assert grade(None, row).value == 0
    for answer in HOSTILE:
        started = time.process_time()
        graded = grade(answer, row)
        assert time.process_time() - started < 5, answer[:40]
        assert graded.value < 1, answer[:40]
        assert not graded.correct
    assert not os.listdir(tmp_path)


def test_examples_are_the_rows(held_out) -> None:
    for example in catalogue.read():
        (row,) = held_out[example.name]
        assert row["question"].startswith(example.question)
        assert (row["answer"] or "").startswith(example.answer)


def test_every_grader_that_evaluates_answers_is_guarded(held_out) -> None:
    """A new version of the library must not evaluate answers in a place that no guard knows."""
    from reasoning_gym.factory import DATASETS

    for name in NAMES:
        source = textwrap.dedent(inspect.getsource(DATASETS[name][0].score_answer))
        calls = {ast.unparse(each.func) for each in ast.walk(ast.parse(source)) if isinstance(each, ast.Call)}
        if calls & {"parse_expr", "sympy.parse_expr", "sp.parse_expr", "sympify", "exec", "compile"}:
            assert name in guards.GUARDS, name
        if "eval" in calls:
            grade("1", held_out[name][0])
            assert inspect.getmodule(DATASETS[name][0]).eval is ast.literal_eval, name


# --- guards ------------------------------------------------------------------------------------------------


def row(task: str, answer: str | None, **metadata: object) -> rows.Row:
    return {"task": task, "question": "?", "answer": answer, "metadata": metadata}


INTEGRAL = row("simple_integration", "x**2 + C", variable="x", integrand="2*x")
COUNTDOWN = row("countdown", "2 + 3*4", numbers=[2, 3, 4], target=14)


@pytest.mark.parametrize(
    ("answer", "target", "label"),
    [
        ("x**2", INTEGRAL, "correct"),
        ("x**2 + 7*log(2) - C", INTEGRAL, "correct"),
        ("x**3", INTEGRAL, "wrong"),
        ("Integral(2*x, x)", INTEGRAL, "rejected"),  # right for the library
        ("x**2 if 1 else x", INTEGRAL, "rejected"),
        ("x.diff()", INTEGRAL, "rejected"),
        ("(lambda: x**2)()", INTEGRAL, "rejected"),
        ("x**10**10**10", INTEGRAL, "rejected"),
        ("x**2 + 0*2**999999999", INTEGRAL, "rejected"),
        ("2 + 3*4", COUNTDOWN, "correct"),
        ("(3*4) + 2", COUNTDOWN, "correct"),
        ("2*3*4", COUNTDOWN, "partial"),
        ("14", COUNTDOWN, "rejected"),
        ("7 + 7", COUNTDOWN, "rejected"),
        ("Integer(2) + 3*4", COUNTDOWN, "rejected"),
        ("6*4*1*1", row("puzzle24", "8*3*1*1", numbers=[8, 3, 1, 1]), "rejected"),  # right for the library
        ("1*1*3*8", row("puzzle24", "8*3*1*1", numbers=[8, 3, 1, 1]), "correct"),
        ("7*7/2*1", row("puzzle24", "(7 + 7 - 2)*2", numbers=[7, 7, 2, 1]), "rejected"),  # 24.5, right for the library
        ("8/(3 - 8/3)", row("puzzle24", "8/(3 - 8/3)", numbers=[8, 3, 8, 3]), "correct"),
        ("8/(3 - 3)*8", row("puzzle24", "8/(3 - 8/3)", numbers=[8, 3, 8, 3]), "rejected"),
        ("0", row("coin_flip", "0.65625"), "rejected"),  # right for the library
        ("21/32", row("coin_flip", "0.65625"), "correct"),
        ("1e999999999", row("coin_flip", "0.65625"), "rejected"),
        ("1/0", row("coin_flip", "0.65625"), "rejected"),
        ("nan", row("complex_arithmetic", "4.0 - 7.0i", result=[4.0, -7.0]), "rejected"),  # right for the library
        ("4.0 - 7.0i", row("complex_arithmetic", "4.0 - 7.0i", result=[4.0, -7.0]), "correct"),
        ("True", row("game_of_life_halting", "False"), "rejected"),  # right for the library
        ("False", row("game_of_life_halting", "False"), "correct"),
        ("['A', 'B']", row("string_insertion", "AB"), "partial"),
        ("(open('broken', 'w') or 'A', 'B')", row("string_insertion", "AB"), "wrong"),
        ("seven", row("prime_factorization", "7"), "unreadable"),
        ("x" * 20_001, row("spell_backward", "olleh"), "rejected"),
    ],
)
def test_labels(answer, target, label, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert grade(answer, target).label == label
    assert not os.listdir(tmp_path)


def test_a_slow_answer_is_killed() -> None:
    pool = RewardPool(load(name="simple_integration").reward, timeout=5, processes=1)
    pool.start()
    try:
        nested = "<answer>" + "sin(" * 200 + "x" + ")" * 200 + "</answer>"
        slow, right = pool.submit([nested, "<answer>x**2</answer>"], [INTEGRAL, INTEGRAL]).result()
    finally:
        pool.close()
    assert slow.reward.value == 0
    assert right.reward.correct


# --- where the answer is -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "output", "found"),
    [
        ("tags", "so <answer> 12 </answer>.", "12"),
        ("tags", "<answer>1</answer> no, <answer>2</answer>", "2"),
        ("tags", "<answer>12", "12"),  # the run stops at the closing tag
        ("tags", "12", None),
        ("tags", "<answer> </answer>", None),
        ("tags", "<answer>1 2\n3 4</answer>", "1 2\n3 4"),
        ("boxed", r"so \boxed{12}.", "12"),
        ("boxed", r"\boxed{\frac{1}{2}} ", r"\frac{1}{2}"),
        ("boxed", r"\boxed{1} or \boxed{2}", "2"),
        ("boxed", r"\boxed{1} or \boxed{2", None),
        ("boxed", "12", None),
        ("last-line", "first\n 12 \n\n", "12"),
        ("last-line", " \n", None),
    ],
)
def test_answer_from(place, output, found) -> None:
    assert answers.find(output, place) == found


@pytest.mark.parametrize("place", answers.PLACES)
@pytest.mark.parametrize("template", ["chat", "plain"])
def test_prompt_says_where_the_answer_goes(place, template) -> None:
    task = load(answer_from=place, template=template)
    prompt = task.template(("1 + 1?", []))
    text = prompt if template == "plain" else prompt[0]["content"]
    assert text.startswith("1 + 1?\n\n")
    assert {"tags": "<answer>", "boxed": r"\boxed{}", "last-line": "last line"}[place] in text
    assert load(instruction="Be brief.").template(("?", [])) == [{"role": "user", "content": "?\n\nBe brief."}]
    assert task.defaults().get("stop") == (["</answer>"] if place == "tags" else None)


# --- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"min_terms": "5", "max_terms": "5"}, {"min_terms": 5, "max_terms": 5}),
        ({"chain_sum.min_terms": "5"}, {"chain_sum.min_terms": 5}),
        ({"allow_negation": "true"}, {"allow_negation": True}),
        ({"level": "3"}, {"level": 3}),
        ({"name": "number_format", "max_delta": "2"}, {"max_delta": 2.0}),
        ({"name": "aiw", "task_types": '["siblings"]'}, {"task_types": '["siblings"]'}),
        ({"name": "dice,calendar_arithmetic", "calendar_arithmetic.year": "1999"}, {"calendar_arithmetic.year": 1999}),
    ],
)
def test_generator_options(options, expected) -> None:
    task = load(**options)
    assert expected.items() <= task.options.items()
    function, arguments = task.__reduce__()  # as in a grading process
    assert function(*arguments).options == task.options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "chain_sums"}, "no generator 'chain_sums'; did you mean 'chain_sum'?"),
        ({"name": "composite"}, "the library's own mixture"),
        ({"name": ""}, "no generator ''"),
        ({"name": "gcd,gcd"}, "holds gcd twice"),
        ({"name": "gcd:0"}, "must be a positive number"),
        ({"name": "gcd:many"}, "must be a positive number"),
        ({"name": "gcd:inf"}, "must be a positive number"),
        ({"min_trems": "3"}, "did you mean 'min_terms'?"),
        ({"size_x": "3"}, "chain_sum has no option 'size_x'"),
        ({"min_terms": "three"}, "option chain_sum.min_terms must be int, not 'three'"),
        (
            {"min_terms": "5", "max_terms": "2"},
            "chain_sum rejects max_terms=2, min_terms=5: max_terms must be >= min_terms",
        ),
        ({"name": "gcd,lcm", "min_value": "3"}, "write gcd.min_value"),
        ({"name": "gcd", "lcm.min_value": "3"}, "'lcm' is not in name=gcd"),
        ({"min_terms": "3", "chain_sum.min_terms": "3"}, "given twice"),
        ({"name": ["gcd"]}, "option 'name' must be a number or text"),
        ({"name": "aiw", "task_types": ["siblings"]}, "write lists as JSON"),
        ({"level": "99"}, "chain_sum.level must be between 0 and 10, not 99"),
        ({"name": "acre", "level": "1"}, "acre has no option 'level'"),
        ({"name": "aiw", "task_types": '["cats"]'}, "option aiw.task_types must be"),
        ({"answer_from": "nowhere"}, "answer_from must be one of tags, boxed, last-line, not 'nowhere'"),
        ({"template": "xml"}, "template must be one of chat, plain"),
        ({"size": "0"}, "size must be at least 1"),
        ({"eval_size": "-1"}, "eval_size must be at least 1"),
        ({"shots": "9"}, "shots must be between 0 and 8"),
        ({"seed": "-1"}, "seed must be between 0 and"),
        (
            {"name": "rotate_matrix", "answer_from": "last-line", "size": "1"},
            "answers of rotate_matrix have several lines",
        ),
    ],
)
def test_bad_options(options, message) -> None:
    with pytest.raises((UserError, PluginError)) as error:  # noqa: PT012 - whichever hook notices first
        task = load(**options)
        task.defaults()
        task.collate(task.load_rows("train", None))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_option_on_the_command_line(monkeypatch, capfd) -> None:
    command = ("config", "show", "--task", "reasoning-gym", "--task-option", "name=chain_sums")
    code, _, err = run_cli(monkeypatch, capfd, *command)
    assert code == 2
    assert errors_of(err) == [
        "error: task 'reasoning-gym': no generator 'chain_sums'; did you mean 'chain_sum'? "
        "`esplug data list --task reasoning-gym` lists them"
    ]


def test_every_default_of_every_option_can_be_given() -> None:
    from reasoning_gym.factory import DATASETS

    for name in NAMES:
        plain = DATASETS[name][1]()
        for option in generators.options(name):
            value = generators.default(name, option)
            made = generators.configuration(name, ((option, str(value)),), seed=0, size=1)
            if option != generators.LEVEL:
                assert list_of(getattr(made, option)) == list_of(getattr(plain, option)), (name, option)


def list_of(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def test_levels() -> None:
    """The library's own ``validate`` rejects some of its levels, which other options can correct."""
    rejected = set()
    for name in NAMES:
        for level in range(generators.levels(name)):
            try:
                generators.configuration(name, ((generators.LEVEL, level),), seed=0, size=1)
            except ValueError as error:
                rejected.add(str(error).partition(" rejects level=")[0])
    assert rejected == {"caesar_cipher", "knight_swap", "modulo_grid", "rubiks_cube", "survo"}
    corrected = generators.configuration("survo", (("level", 3), ("max_empty", 9)), seed=0, size=1)
    assert corrected.max_empty == 9
    easy, hard = (generators.configuration("chain_sum", (("level", level),), seed=0, size=1) for level in (0, 10))
    assert easy.max_terms < hard.max_terms


def test_a_data_set_is_refused() -> None:
    with pytest.raises(UserError, match=r"leave out the data set rows\.jsonl"):
        load().load_rows("train", "rows.jsonl")


# --- rows --------------------------------------------------------------------------------------------------


def questions(some: list[rows.Row]) -> set[str]:
    return {" ".join(each["question"].split()) for each in some}


def test_mixture_and_held_out_questions() -> None:
    task = load(name="chain_sum:3,gcd:1", size=200, eval_size=30, seed=5, **{"chain_sum.max_terms": 2})
    train, held_out = task.load_rows("train", None), task.load_rows("eval", None)
    assert [sum(each["task"] == name for each in train) for name in ("chain_sum", "gcd")] == [150, 50]
    assert {name: len(some) for name, some in held_out.items()} == {"chain_sum": 30, "gcd": 30}
    assert len(questions(train)) == 200
    assert not questions(train) & questions([each for some in held_out.values() for each in some])
    # More rows leave the held-out ones as they are; another seed does not.
    more = load(name="chain_sum:3,gcd:1", size=300, eval_size=30, seed=5, **{"chain_sum.max_terms": 2})
    assert more.load_rows("eval", None) == held_out
    assert load(name="gcd", eval_size=30, seed=99).load_rows("eval", None)["gcd"] != held_out["gcd"]

    asked, targets = task.collate(train)
    graded = [
        task.reward(f"<answer>{each['answer']}</answer>", target) for each, target in zip(train, targets, strict=True)
    ]
    assert {each.label for each in graded} == {"chain_sum/correct", "gcd/correct"}
    assert {tuple(each.metrics.items()) for each in graded} == {(("chain_sum", 1.0),), (("gcd", 1.0),)}
    assert asked == [(each["question"], []) for each in train]


@pytest.mark.soak
def test_held_out_rows_are_the_same_with_and_without_training_rows(monkeypatch) -> None:
    """As in a run and in `esplug eval` afterwards. The rows of acre depend on how many its generator is made for."""
    monkeypatch.setattr(rows, "_LENGTH", 100)
    wanted = rows.Wanted(Selection.of("acre", ()), seed=0, size=60, eval_size=5)
    before = wanted.held_out()
    wanted.train()
    assert wanted.held_out() == before


@pytest.mark.parametrize("place", answers.PLACES)
def test_worked_examples(place) -> None:
    task = load(name="gcd,boxnet", shots=2, size=4, eval_size=2, answer_from=place)
    held_out = task.load_rows("eval", None)
    (question, examples), *_ = task.collate(held_out["gcd"])[0]
    messages = task.template((question, examples))
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant", "user"]
    for (example, right), asked, answered in zip(examples, messages[::2], messages[1::2], strict=False):
        assert asked["content"].startswith(example)
        assert answers.find(answered["content"], place) == right
    everything = [*task.load_rows("train", None), *(each for some in held_out.values() for each in some)]
    assert not questions(everything) & {" ".join(example.split()) for example, _ in examples}
    text = load(name="gcd", shots=2, template="plain", answer_from=place).template((question, examples))
    assert text.count(question.strip().partition("\n")[0][:20]) == 3
    assert len(task.template(task.collate(held_out["boxnet"])[0][0])) == 1  # its rows have no answers


def test_few_questions(caplog) -> None:
    easy = {"min_terms": 2, "max_terms": 2, "max_digits": 1}  # 180 different sums
    with pytest.raises(
        UserError, match=r"has only (\d\d) different questions to hold out, .* choose eval_size=\1 or less"
    ):
        load(**easy, eval_size=200).load_rows("train", None)
    with caplog.at_level(logging.WARNING, "esplug"):
        train = load(**easy, eval_size=30).load_rows("train", None)
    assert 100 < len(train) < 180
    assert f"only {len(train)} different questions for training with these options, not 500" in caplog.text


def test_held_out_questions_are_like_those_for_training() -> None:
    """Few numbers have a divisor in common, so those questions run out first, in training and in evaluation alike."""
    task = load(name="gcd", max_value=30, size=400, eval_size=130)
    train, held_out = task.load_rows("train", None), task.load_rows("eval", None)["gcd"]
    ones = [sum(row["answer"] == "1" for row in some) / len(some) for some in (train, held_out)]
    assert abs(ones[0] - ones[1]) < 0.1


@pytest.mark.soak
def test_no_seed_trains_on_what_another_holds_out() -> None:
    few = {"name": "gcd", "max_value": 30, "size": 300, "eval_size": 100}
    train = questions(load(**few, seed=1).load_rows("train", None))
    assert not train & questions(load(**few, seed=2).load_rows("eval", None)["gcd"])


def test_a_message_says_that_rows_take_long(monkeypatch, caplog) -> None:
    monkeypatch.setattr(rows, "_PATIENCE", 0.2)
    with caplog.at_level(logging.WARNING, "esplug"):
        load(name="gcd", size=3, eval_size=1, seed=77).load_rows("train", None)
    assert "still making rows of gcd; this takes less time with a smaller size" in caplog.text


@pytest.mark.soak
def test_rows_do_not_depend_on_the_hash_seed(monkeypatch) -> None:
    wanted = rows.Wanted(Selection.of("isomorphic_strings,list_functions,ransom_note,word_ladder", ()), 0, 1, 2)
    made = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        rows._generate.cache_clear()
        made.append(wanted.held_out())
    assert made[0] == made[1]


def test_the_row_makers_end_with_a_driver_that_is_killed() -> None:
    code = (
        "from esplug_tasks_reasoning_gym import rows\n"
        "from esplug_tasks_reasoning_gym.selection import Selection\n"
        "rows.Wanted(Selection.of('futoshiki,knight_swap', ()), 0, 5000, 1).train()"
    )
    driver = subprocess.Popen([sys.executable, "-c", code])
    made, deadline = [], time.monotonic() + 300
    while len(made) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        made = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    _, left = psutil.wait_procs(made, timeout=30)
    for process in left:
        process.kill()
    assert len(made) >= 2
    assert not left


def test_an_endless_generator_is_stopped(monkeypatch) -> None:
    class Endless:
        seed = 0

        def __getitem__(self, index: int) -> None:
            while True:
                time.sleep(0.01)

    monkeypatch.setattr(stream, "ROW_SECONDS", 0.2)
    monkeypatch.setattr(generators, "instance", lambda *_: Endless())
    made = stream.make("sokoban", [], 0, (1, 1), 10)
    assert made == {"error": "sokoban, row 1: it took more than 0.2 s; choose easier options of the generator"}


# --- listing -----------------------------------------------------------------------------------------------


def test_list_shows_all_generators_without_the_library(monkeypatch) -> None:
    code = (
        "import sys, atexit; sys.argv = ['esplug', 'data', 'list', '--task', 'reasoning-gym']\n"
        "heavy = ('reasoning_gym', 'sympy', 'numpy', 'torch', 'matplotlib')\n"
        "atexit.register(lambda: print('LOADED', [m for m in heavy if m in sys.modules], file=sys.stderr))\n"
        "from esplug.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stderr
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["name", "question", "answer"]
    assert [line.split()[0] for line in lines] == NAMES
