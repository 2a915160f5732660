"""A whole run on real Ray and vLLM at the command line, with installed plugins, looked at by several tests."""

import os
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

import numpy as np
import psutil
import pytest

from esplug.config import make_config
from esplug.report.figures import of_one
from esplug.report.page import render
from esplug.report.run_data import read_run
from esplug.runs.summary import summarise
from tests.helpers.processes import command_of, descendants, lives, mark_of
from tests.helpers.run_files import read_evaluation, read_iteration, read_metrics, strict_json, tensors_of

pytestmark = pytest.mark.vllm

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
                    family |= {relative.pid: relative for relative in descendants(process.pid)}
                    seen |= {" ".join(command_of(relative)) for relative in family.values()}
                    time.sleep(0.1)
            finally:
                process.kill()
        _, alive = psutil.wait_procs(family.values(), timeout=10)
        left = [command_of(relative) for relative in alive if lives(relative)]
        left += [command_of(other) for other in psutil.process_iter() if mark_of(other) == mark]
        return Finished(process.wait(), out.read_text(), err.read_text(), seen, [" ".join(each) for each in left])

    def train(self, *arguments: object, task: str = "codes", command: str = "train") -> Finished:
        model = ["--task", task, "--model-name", self.model, "--config", "settings.toml"]
        return self.esplug(command, *model, *arguments)


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
