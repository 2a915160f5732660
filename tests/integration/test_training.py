"""Whole runs on real Ray and vLLM: at the command line with installed plugins, and from Python.

Starting an engine takes 10 to 20 s, so there are three runs at the command line, each looked at by several
tests; runs from Python share engines that are given the base weights again.
"""

import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import psutil
import pytest

from esplug import StopRun
from esplug.checkpoints.history import History
from esplug.config import make_config
from esplug.dry_run.probe import Probe
from esplug.engines.messages import EngineSettings
from esplug.engines.pool import EnginePool
from esplug.errors import RunError
from esplug.planning.cost import times_of, work_of
from esplug.planning.placement import Plan
from esplug.report.figures import of_one
from esplug.report.page import render
from esplug.report.run_data import read_run
from esplug.runs.summary import summarise
from esplug.weights.master import MasterWeights
from tests.helpers.run_files import read_evaluation, read_iteration, read_metrics, record_of, strict_json, tensors_of
from tests.helpers.training import QUESTIONS, TARGETS, KeptEngines, Trainer, tiny_run

pytestmark = pytest.mark.vllm

LONG = [f"Number {i}" for i in range(40)]  # more prompts than one evaluation job takes
SHARED = "These words begin all prompts, and of one member's they are computed only once: 3, 5, 8. Q: {} A:"

# --- the command line, with plugins installed by pip -----------------------------------------------------

TASK = """
    from esplug import Reward, hookimpl

    @hookimpl
    def options():
        return {"modulus": 32, "fault": "none"}

    @hookimpl
    def defaults(options):
        return {"max_tokens": 24, "population_size": 10, "train_top_p": 0.75}

    @hookimpl
    def load_rows(split, path):
        rows = [{"question": f"{split} {i}", "answer": i} for i in range(8)]
        return rows if split == "train" else {"low": rows[:6], "high": rows[2:]}

    @hookimpl
    def collate(batch):
        return [row["question"] for row in batch], [row["answer"] for row in batch]

    @hookimpl
    def template(question):
        return [{"role": "user", "content": question}]

    @hookimpl
    def reward(model_output, target, options):
        if options["fault"] == "always":
            raise ValueError("the answer book is missing")
        codes = [ord(c) % options["modulus"] / options["modulus"] for c in model_output]
        value = sum(codes) / max(1, len(codes)) + target
        return Reward(value, "even" if len(codes) % 2 == 0 else "odd", None, {"characters": len(codes)})
"""
MARKED = "from esplug import hookimpl\n"
HOOKS = {
    "collate": "\n@hookimpl\ndef collate(batch):\n    return [1] * len(batch), [1] * len(batch)\n",
    "template": "\n@hookimpl\ndef template(question):\n    return 'x'\n",
    "reward": "\n@hookimpl\ndef reward(model_output, target):\n    return 0.0\n",
}
COMPLETE = MARKED + "".join(HOOKS.values())
PACKAGES = {  # distribution: (task, module's text)
    "acme-codes": ("codes", dedent(TASK)),
    "acme-unimportable": ("unimportable", "import a_package_that_nobody_has\n" + COMPLETE),
    "acme-misspelt": ("misspelt", COMPLETE.replace("def reward", "def rewrad")),
    "acme-incomplete": ("incomplete", MARKED + HOOKS["collate"] + HOOKS["template"]),
    "acme-twin-one": ("twin", COMPLETE),
    "acme-twin-two": ("twin", COMPLETE),
}
BROKEN = {  # task: what the error must say
    "unimportable": ["acme-unimportable 0.3", "a_package_that_nobody_has", "pip install -U acme-unimportable"],
    "misspelt": ["acme-misspelt 0.3", "'rewrad'", "did you mean 'reward'?"],
    "incomplete": ["acme-incomplete 0.3", "required hook reward", "pip install -U acme-incomplete"],
    "twin": ["acme-twin-one 0.3", "acme-twin-two 0.3", "pip uninstall acme-twin-"],
}
SETTINGS = """
    # what the user keeps for all runs
    population-size = 6
    n_iterations = 2
    max_tokens = 8
    eval_freq = 1
    sigma = 0.02
    alpha = 0.5
    dtype = "float32"  # vLLM's own choice for such a checkpoint is bfloat16
    antithetic = true
    max_model_len = 256
    n_vllm_engines = 1
    use_gpus = "none"
    seed = 11
"""


@dataclass
class Finished:
    """A process that has ended, the processes it had, and those of them that are still there."""

    code: int
    out: str
    err: str
    seen: set[str]
    left: list[str]


@dataclass
class Desk:
    """A folder where somebody works with esplug and has installed plugins."""

    folder: Path
    model: Path
    site: Path = field(init=False)

    def __post_init__(self) -> None:
        self.site = self.folder / "site"
        (self.folder / "settings.toml").write_text(dedent(SETTINGS))

    def install(self) -> None:
        for distribution, (task, text) in PACKAGES.items():
            module, source = distribution.replace("-", "_"), self.folder / "sources" / distribution
            source.mkdir(parents=True)
            (source / f"{module}.py").write_text(text)
            (source / "pyproject.toml").write_text(
                '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n\n'
                f'[project]\nname = "{distribution}"\nversion = "0.3"\ndependencies = ["esplug"]\n\n'
                f'[project.entry-points."esplug.tasks"]\n{task} = "{module}"\n\n'
                f'[tool.setuptools]\npy-modules = ["{module}"]\n'
            )
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
        sources = sorted((self.folder / "sources").iterdir())
        subprocess.run([*pip, "--target", self.site, *sources], check=True, capture_output=True, timeout=300)

    def esplug(self, *arguments: object) -> Finished:
        """Run the command line to its end and watch its processes."""
        mark = f"{os.getpid()}-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "esplug", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(self.site), "ESPLUG_TEST_MARK": mark, "COLUMNS": "200"}
        out, err, seen = self.folder / f"{mark}.out", self.folder / f"{mark}.err", set()
        family: dict[int, psutil.Process] = {}
        deadline = time.monotonic() + 300
        with out.open("wb") as output, err.open("wb") as errors:
            process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=output, stderr=errors)
            try:
                while process.poll() is None and time.monotonic() < deadline:
                    family |= {relative.pid: relative for relative in _descendants(process.pid)}
                    seen |= {" ".join(_command(relative)) for relative in family.values()}
                    time.sleep(0.1)
            finally:
                process.kill()
        _, alive = psutil.wait_procs(family.values(), timeout=10)
        left = [_command(relative) for relative in alive if _lives(relative)]
        left += [_command(other) for other in psutil.process_iter() if _environment(other) == mark]
        return Finished(process.wait(), out.read_text(), err.read_text(), seen, [" ".join(each) for each in left])

    def train(self, *arguments: object, task: str = "codes", command: str = "train") -> Finished:
        model = ["--task", task, "--model-name", self.model, "--config", "settings.toml"]
        return self.esplug(command, *model, *arguments)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _environment(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("ESPLUG_TEST_MARK") if _lives(process) else None
    except psutil.Error:
        return None


@pytest.fixture(scope="module")
def desk(tmp_path_factory, tiny_model) -> Desk:
    desk = Desk(tmp_path_factory.mktemp("desk"), tiny_model)
    desk.install()
    return desk


@pytest.fixture(scope="module")
def trained(desk) -> Finished:
    steps = ["--alpha", 0.05, "--alpha-schedule", "linear", "--alpha-end", 0.02, "--momentum", 0.5]
    return desk.train(*steps, "--profile", 1, "--task-option", "modulus=16", "--output-directory", "runs")


@pytest.fixture(scope="module")
def run(desk, trained) -> Path:
    assert trained.code == 0, trained.out + trained.err
    (folder,) = (desk.folder / "runs").iterdir()
    return folder


def test_a_third_party_task_trains_amid_broken_ones(trained, run) -> None:
    last = read_iteration(run, 1)
    assert f"run directory  {Path('runs') / run.name}" in trained.out
    assert f"model          {Path('runs') / run.name}/checkpoints/checkpoint-es_fine_tuned_iteration_2" in trained.out
    assert f"details        weights checksum {last['checksum']}" in trained.out
    assert "Traceback" not in trained.out + trained.err
    assert "acme" not in trained.err


def test_its_run_directory_says_what_was_run(run, desk) -> None:
    settings = tomllib.loads((run / "config.toml").read_text())
    config = make_config(settings)
    assert config == make_config(tomllib.loads(config.to_toml()))
    assert (config.task, config.model_name) == ("codes", str(desk.model))
    assert config.task_options == {"modulus": 16, "fault": "none"}
    assert (config.train_top_p, config.population_size, config.alpha) == (0.75, 6, 0.05)  # task, file, flag
    environment = strict_json((run / "environment.json").read_text())
    assert environment["packages"]["ray"]
    assert environment["cores"] == len(os.sched_getaffinity(0))
    assert {path.name for path in run.iterdir()} == {
        *("config.toml", "environment.json", "metrics.jsonl", "results.json", "seeds.log", "run.lock", "status.json"),
        "profile-iteration1.json",
        *("train-output", "eval-output", "logs", "checkpoints"),
    }
    assert (run / "logs" / "engine-0.log").stat().st_size > 0
    assert not list(run.rglob("*.part"))


def test_it_is_listed_and_reported(run) -> None:
    summary, data = summarise(run), read_run(run)
    assert (summary.state, summary.iterations, summary.planned) == ("finished", 2, 2)
    assert summary.last is not None
    assert summary.last.mean == pytest.approx(read_metrics(run)[-1]["eval/average/reward/mean"])
    assert (data.splits, data.notes) == (["high", "low"], ())
    assert data.checksum == read_iteration(run, 1)["checksum"]
    tokens = sum(sum(member["tokens"]) for k in range(2) for member in read_iteration(run, k)["members"])
    assert data.tokens == pytest.approx(tokens)
    assert "Improved" in render([data], of_one(data))


def test_its_metrics_are_one_strict_json_line_an_iteration_and_evaluation(run) -> None:
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == [0, 0, 1, 1, 2]
    for iteration, row in enumerate(rows[1::2]):
        members = read_iteration(run, iteration)["members"]
        means = [member["reward"] for member in members]
        correlation = np.corrcoef(means[0::2], means[1::2])[0, 1]
        assert row["train/reward/mean"] == pytest.approx(np.mean(means))
        assert row["train/reward/std"] == pytest.approx(np.std(means)) != 0
        assert row["train/mirrored_correlation"] == pytest.approx(correlation)
        assert row["train/labels/even"] + row.get("train/labels/odd", 0) == pytest.approx(1)
        assert 0 < row["train/metrics/characters/mean"] <= row["train/tokens/mean"] <= 8
        assert row["time/iteration"] > row["time/generate"] > 0
        assert row["system/engine_memory"] > row["system/driver_memory"] > 0.01
        assert not [name for name in row if name.startswith("system/gpu")]
    for iteration, row in enumerate(rows[0::2]):
        for split in ("low", "high"):
            rewards = [sample["reward"] for sample in read_evaluation(run, split, iteration)["samples"]]
            assert row[f"eval/{split}/reward/mean"] == pytest.approx(np.mean(rewards))
        assert row["time/evaluate"] > 0


def test_its_evaluations_keep_every_answer_and_grade(run) -> None:
    outputs = set()
    for iteration in range(3):
        for split, answers in (("low", range(6)), ("high", range(2, 8))):
            record = read_evaluation(run, split, iteration)
            assert (record["split"], record["iteration"]) == (split, iteration)
            for answer, sample in zip(answers, record["samples"], strict=True):
                codes = [ord(c) % 16 / 16 for c in sample["output"]]
                assert sample["prompt"] == f"<user>eval {answer}<assistant>"
                assert sample["target"] == answer
                assert sample["reward"] == pytest.approx(sum(codes) / max(1, len(codes)) + answer)
                assert sample["label"] == ("odd" if len(codes) % 2 else "even")
                assert 1 <= sample["tokens"] <= 8
                outputs.add((iteration, sample["output"]))
    assert len({output for _, output in outputs}) > len(outputs) / 3  # the updates changed answers


def test_its_seeds_and_coefficients_are_those_of_the_method(run) -> None:
    from esplug.noise.full_rank import member_seed

    for iteration in range(2):
        members = read_iteration(run, iteration)["members"]
        assert [m["seed"] for m in members] == [member_seed(11, iteration, i // 2) for i in range(6)]
        assert [m["sign"] for m in members] == [1, -1] * 3
        rewards = np.array([m["rewards"] for m in members])
        assert rewards.shape == (6, 8)
        means = rewards.mean(axis=1)
        utilities = (means - means.mean()) / means.std()
        expected = (0.05, 0.02)[iteration] / 6 * utilities * np.tile([1, -1], 3)
        np.testing.assert_allclose([m["coefficient"] for m in members], expected, rtol=1e-5)


def test_its_model_is_the_update_computed_by_hand(run, desk) -> None:
    from esplug.noise.full_rank import eps

    base = tensors_of(desk.model)
    saved = tensors_of(run / "checkpoints" / "checkpoint-es_fine_tuned_iteration_2")
    assert saved.keys() == base.keys()
    first, second = ([(m["seed"], m["coefficient"]) for m in read_iteration(run, i)["members"]] for i in range(2))
    steps = [*first, *second, *((seed, 0.5 * coefficient) for seed, coefficient in first)]  # momentum
    for name, tensor in base.items():
        moves = [coefficient * eps(seed, name, 0, tensor.size).double().numpy() for seed, coefficient in steps]
        expected = tensor.astype(np.float64) + np.sum(moves, axis=0).reshape(tensor.shape)
        assert saved[name].dtype == tensor.dtype
        assert np.abs(expected - tensor).max() > 0.01
        np.testing.assert_allclose(saved[name], expected, rtol=0, atol=1e-6, err_msg=name)


def test_its_trace_has_every_member_and_answer(run) -> None:
    events = strict_json((run / "profile-iteration1.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    names = [event["name"] for event in spans if event["pid"] == 1]
    assert sorted(name for name in names if name.startswith("member")) == [f"member {i}" for i in range(6)]
    assert sorted(name for name in names if name.startswith("write")) == [f"write weights {i}" for i in range(6)]
    assert sum(event["pid"] == 2 for event in spans) == 6 * 8
    assert [event["name"] for event in spans if event["pid"] == 0] == [
        "generate",
        "wait for grades",
        "update",
        "record",
    ]
    end = max(event["ts"] + event["dur"] for event in spans)
    (row,) = (row for row in read_metrics(run) if row["step"] == 1 and "time/iteration" in row)
    assert row["time/iteration"] <= end / 1e6 < row["time/iteration"] + 1
    assert all(event["ts"] >= 0 for event in spans)


def test_its_seed_log_gives_the_model_of_any_iteration(run, desk) -> None:
    saved = run / "checkpoints" / "checkpoint-es_fine_tuned_iteration_2" / "model.safetensors"
    for iteration in (2, 1):
        out = desk.folder / f"exported-{iteration}"
        done = desk.esplug("export", run, "--out", out, "--iteration", iteration)
        assert done.code == 0, done.err
        assert f"checksum {read_iteration(run, iteration - 1)['checksum']}" in done.out
        assert ((out / "model.safetensors").read_bytes() == saved.read_bytes()) == (iteration == 2)


def test_its_model_answers_in_transformers_as_in_the_last_evaluation(run) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert tomllib.loads((run / "config.toml").read_text())["dtype"] == "float32"
    folder = run / "checkpoints" / "checkpoint-es_fine_tuned_iteration_2"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    samples = [sample for split in ("low", "high") for sample in read_evaluation(run, split, 2)["samples"]]
    agree = 0
    for sample in samples:
        ids = tokenizer(sample["prompt"], add_special_tokens=False, return_tensors="pt")["input_ids"]
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        text = tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
        agree += text.rstrip("\ufffd") == sample["output"].rstrip("\ufffd")  # half a character at the end
    assert agree >= len(samples) - 1  # another order of summation may tip one close decision


def test_nothing_is_left_of_a_run(trained) -> None:
    for kind in ("raylet", "ray::Engine", "esplug.rewards.grader"):
        assert any(kind in command for command in trained.seen), kind
    assert trained.left == []


@pytest.mark.parametrize("task", BROKEN)
def test_a_broken_task_fails_alone_with_its_owner_and_a_remedy(desk, task) -> None:
    done = desk.train("--output-directory", "nowhere", task=task)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    for part in BROKEN[task]:
        assert part in done.err
    assert not (desk.folder / "nowhere").exists()


def test_settings_need_only_fit_together_with_the_tasks_defaults(desk, monkeypatch) -> None:
    from esplug.runs.settings import resolve

    monkeypatch.syspath_prepend(desk.site)
    config = resolve({"task": "codes", "max_model_len": 64}, None, "train", None).config
    assert (config.max_tokens, config.max_model_len) == (24, 64)


def test_eval_grades_a_saved_model_and_only_that(desk, run) -> None:
    place = "evaluations"
    own = ["--config", run / "config.toml", "--checkpoint", run, "--output-directory", place]
    done = desk.esplug("eval", *own)
    assert done.code == 0, done.out + done.err
    (folder,) = (desk.folder / place).iterdir()
    assert f"run directory  {Path(place) / folder.name}" in done.out
    assert "model   " not in done.out
    assert f"checksum {read_iteration(run, 1)['checksum']}" in done.out
    for split in ("low", "high"):
        assert read_evaluation(folder, split, 0)["samples"] == read_evaluation(run, split, 2)["samples"]
    assert len(list((folder / "eval-output").iterdir())) == 2
    assert not (folder / "checkpoints").exists()
    assert not (folder / "train-output").exists()
    assert [row["step"] for row in read_metrics(folder)] == [0]
    assert done.left == []


def test_more_engines_than_cores_are_refused_before_anything_is_written(desk) -> None:
    done = desk.train("--n-vllm-engines", 99, "--output-directory", "nowhere")
    cores = len(os.sched_getaffinity(0))
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("error: --n-vllm-engines 99 ")
    assert f"there are {cores} CPU core" in done.err
    assert not (desk.folder / "nowhere").exists()
    assert done.left == []


# --- from Python, on engines that are kept ---------------------------------------------------------------


@pytest.fixture(scope="module")
def ray_of_four() -> Iterator[None]:
    """Ray that believes in four cores, so that engines on one core and on two can be there together."""
    import ray

    ray.init(address="local", num_cpus=4, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def _engines(plan: Plan, model: Path, logs: Path) -> Iterator[KeptEngines]:
    settings = EngineSettings(str(model.resolve()), "auto", "float32", "auto", "cpu", 1, 256, memory_share=0.01)
    engines = KeptEngines(plan, settings, 0, 2**28, logs)
    engines.start(History(0))
    yield engines
    engines.stop()


@pytest.fixture(scope="module")
def one_engine(ray_of_four, tiny_model, tmp_path_factory) -> Iterator[KeptEngines]:
    yield from _engines(Plan(1, "cpu", 0, 2), tiny_model, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two_engines(ray_of_four, tiny_model, tmp_path_factory) -> Iterator[KeptEngines]:
    yield from _engines(Plan(2, "cpu", 0, 1), tiny_model, tmp_path_factory.mktemp("two"))


@pytest.fixture
def start(tiny_model, tmp_path):
    """Return a function that makes a trainer for a tiny run on given engines."""

    def start(engines: KeptEngines, kind: type[Trainer] = Trainer, **settings: Any) -> Trainer:
        trainer = kind(**tiny_run(tiny_model, tmp_path / "runs", len(engines)) | settings)
        trainer.kept = engines
        return trainer

    return start


@pytest.mark.parametrize(
    "settings",
    [
        {"antithetic": True, "population_size": 6, "momentum": 0.7, "template_function": SHARED.format},
        {"train_temperature": 1.0, "train_top_p": 0.9},
    ],
    ids=["mirrored, greedy and cached", "sampled"],
)
def test_number_of_engines_and_mini_batch_size_change_nothing(start, one_engine, two_engines, settings) -> None:
    data = {"eval_dataloader_dict": {"short": [(QUESTIONS, TARGETS)], "long": [(LONG, list(range(40)))]}}
    common = settings | data | {"num_iterations": 2, "eval_freq": 1}
    arms = [(one_engine, 512), (one_engine, 7), (two_engines, 7), (two_engines, 512)]
    results = [start(engines, mini_batch_size=size, **common).fit() for engines, size in arms]
    records = [record_of(result) for result in results]
    assert [name for name, _ in records[0]] == [
        *(f"model_eval_task{split}_iteration{i}.json" for split in ("long", "short") for i in range(3)),
        *("iteration0.json", "iteration1.json"),
    ]
    for iteration in range(2):
        members = read_iteration(results[0].run_dir, iteration)["members"]
        assert len({member["reward"] for member in members}) == len(members)  # a mix-up of members would show
        assert all(member["coefficient"] for member in members)
    for record in records[1:]:
        assert record == records[0]
    assert len({result.checksum for result in results}) == 1


class Interrupted(Trainer):
    """A trainer that is interrupted in its second iteration, after the conversations of one member."""

    def train_step(self, iteration):
        self._left = 2 if iteration == 1 else 100
        super().train_step(iteration)

    def _grade(self, generation, targets):
        self._left = getattr(self, "_left", 100) - 1
        if not self._left:
            raise KeyboardInterrupt
        return super()._grade(generation, targets)


def reply(messages: list[dict[str, str]], target: int) -> Any:
    """End one conversation in five, reply at length in another, and otherwise shortly."""
    kind = sum(map(ord, messages[-1]["content"])) % 5
    return None if kind == target % 5 else [{"role": "user", "content": f"No, {kind}. " * (9 if kind == 4 else 1)}]


@pytest.mark.parametrize("chat", [False, True])
def test_engines_and_interruptions_change_no_conversation(chat, start, one_engine, two_engines) -> None:
    def reward(output: str, target: int, messages: list[dict[str, str]]) -> float:
        assert messages[-1] == {"role": "assistant", "content": output}
        said = "".join(message["content"] for message in messages)
        return sum(ord(letter) % 32 for letter in said) / (1 + len(said))

    def template(question: str) -> Any:
        return [{"role": "user", "content": question}] if chat else f"Q: {question} A:"

    settings = {"turn_function": reply, "reward_function": reward, "template_function": template, "max_turns": 4}
    data = {"eval_dataloader_dict": {"all": [(QUESTIONS, TARGETS)]}, "dtype": "float32", "train_temperature": 0.8}
    common = settings | data | {"num_iterations": 2, "eval_freq": 1, "mini_batch_size": 5}
    arms = [(one_engine, Trainer), (two_engines, Trainer), (two_engines, Interrupted)]
    results = []
    for number, (engines, kind) in enumerate(arms):
        trainer = start(engines, kind, experiment_name=f"arm{number}", **common)
        if kind is Interrupted:
            with pytest.raises(KeyboardInterrupt):
                trainer.fit()
            again = start(engines, experiment_name=f"arm{number}", **common)
            results.append(again.fit(resume=trainer.run_dir.path))
        else:
            results.append(trainer.fit())
    assert len({result.checksum for result in results}) == 1
    records = [record_of(result) for result in results]
    assert records[1:] == records[:1] * 2

    metrics = read_iteration(results[0].run_dir, 1)["metrics"]
    assert 1 < metrics["train/turns/mean"] < 4
    ways = {way: metrics[f"train/ended/{way}"] for way in ("task", "max_turns", "too_long", "failed")}
    assert sum(ways.values()) == pytest.approx(1)
    assert ways["task"] > 0
    assert ways["too_long"] + ways["max_turns"] > 0
    (split,) = results[0].evaluations[-1].splits
    assert split.figures["turns"].mean > 1
    for sample in split.samples:
        roles = [message["role"] for message in sample.conversation]
        assert roles == [("assistant", "user")[number % 2] for number in range(2 * sample.turns - 1)]
        assert sample.conversation[-1]["content"] == sample.output
    page = render([read_run(results[0].run_dir)], [])
    said = next(sample for sample in split.samples if sample.turns > 1).conversation[1]["content"]
    assert said[:8] in page
    assert strict_json((results[0].run_dir / "results.json").read_text())["sampling"]["max_turns"] == 4


def test_a_schedule_sets_what_is_added_to_the_weights(start, one_engine, monkeypatch) -> None:
    scales = []

    def run(jobs):
        jobs = list(jobs)
        scales.append({job.weights[0].scale for job in jobs})
        return EnginePool.run(one_engine, jobs)

    monkeypatch.setattr(one_engine, "run", run)
    start(one_engine, num_iterations=3, sigma_schedule="linear", sigma_end=0.01, antithetic=True).fit()
    assert [sorted(each) for each in scales] == [pytest.approx([-x, x]) for x in (0.02, 0.015, 0.01)]


def test_a_reward_that_sometimes_raises_or_hangs_is_counted(start, one_engine, capsys) -> None:
    def reward(output: str, target: int) -> float:
        import time

        if target == 0:
            raise ValueError("no such puzzle")
        while target == 1:
            time.sleep(3600)
        return sum(ord(c) % 32 for c in output) / (1 + len(output))

    class Watching(Trainer):
        graders = 0

        def _postprocess_outputs(self, outputs, targets):
            Watching.graders = max(Watching.graders, len(graders()))
            return super()._postprocess_outputs(outputs, targets)

    def graders() -> list[psutil.Process]:
        return [
            child for child in _descendants(os.getpid()) if "esplug.rewards.grader" in _command(child) and _lives(child)
        ]

    trainer = start(one_engine, Watching, reward_function=reward, reward_function_timeout=1.0, num_iterations=2)
    result = trainer.fit()
    rows = read_metrics(result.run_dir)
    assert len(rows) == 2
    for row in rows:
        assert row["train/labels/error:ValueError"] == row["train/labels/timeout"] == 1 / 8
        assert row["train/rewards_failed"] == 4 * 2
        assert row["train/reward/mean"] > 0
    members = read_iteration(result.run_dir, 0)["members"]
    assert all(member["rewards"][:2] == [0, 0] and min(member["rewards"][2:]) > 0 for member in members)
    out = capsys.readouterr().out
    assert out.count("ValueError: no such puzzle") == 1
    assert out.count("a reward failed [error:ValueError] and counts 0.0") == 1
    assert Watching.graders > 0
    assert graders() == []


def test_a_reward_that_stops_the_run_leaves_it_resumable(start, one_engine, tmp_path, capsys) -> None:
    down = tmp_path / "down"

    async def reward(output: str, target: int) -> float:
        if down.exists():
            raise StopRun("the judge does not reply; start it")
        return sum(ord(c) % 32 for c in output) / (1 + len(output))

    class Outage(Trainer):
        def train_step(self, iteration: int) -> None:
            if iteration == 1:
                down.touch()
            super().train_step(iteration)

    settings = {"reward_function": reward, "reward_concurrency": 8, "num_iterations": 3}
    trainer = start(one_engine, Outage, **settings, experiment_name="stopped")
    with pytest.raises(RunError, match="stopped the run: the judge does not reply; start it"):
        trainer.fit()
    status = json.loads(trainer.run_dir.status.read_text())
    assert status["status"] == "failed"
    assert "start it" in status["reason"]
    assert "to resume: " in capsys.readouterr().out
    down.unlink()
    resumed = start(one_engine, **settings, experiment_name="stopped").fit(resume=trainer.run_dir.path)
    assert resumed.checksum == start(one_engine, **settings).fit().checksum


class KeptProbe(Probe):
    """A probe on kept engines."""

    kept: KeptEngines

    def launch_engines(self) -> EnginePool:
        return self.kept


def test_a_probe_measures_engines_and_leaves_nothing(start, two_engines, tmp_path) -> None:
    data = {"eval_dataloader_dict": {"all": [(QUESTIONS, TARGETS)]}, "population_size": 6}
    probe = start(two_engines, KeptProbe, **data)
    speed = probe.measure(tmp_path)
    assert (speed.engines, speed.members, probe.n_engines) == (2, 1, 2)
    assert speed.prompts == len(QUESTIONS)
    assert 0 < speed.tokens <= 8
    assert min(speed.tokens_per_second, speed.switch, speed.generate, speed.evaluation_answer) > 0
    assert 0 < speed.update + 6 * speed.update_member < 10
    work = work_of(probe.config, len(QUESTIONS), len(QUESTIONS))
    assert times_of(probe.config, work, speed, 2, probe.chunk).iteration > speed.generate
    base = MasterWeights.load(Path(probe.config.model_name), "float32").tensor_checksums()
    assert two_engines._call(two_engines._slots, "tensor_checksums") == [base, base]
    assert list(tmp_path.iterdir()) == []
