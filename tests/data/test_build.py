"""`esplug data` on the command line, faulty plugins, and the public benchmarks built from local copies."""

import filecmp
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from esplug import hookimpl, plugins
from esplug.data.batches import load_batch_source, load_eval_splits
from esplug.data.build import build, checksum
from esplug.errors import PluginError, UserError
from esplug.hookspecs import HubSource
from esplug.plugins import PluginInfo
from esplug.plugins.loading import relay
from esplug.plugins.task import Task
from tests.helpers.cli import run_cli
from tests.helpers.timing import within

DATASETS = Path(__file__).parents[2] / "datasets"


@pytest.fixture(autouse=True)
def wide_terminal(cache, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


# --- list and build ----------------------------------------------------------------------------------------


def test_list_shows_data_sets_and_their_folders(monkeypatch, capfd, tmp_path) -> None:
    (tmp_path / "train" / "math").mkdir(parents=True)
    code, out, _ = run_cli(monkeypatch, capfd, "data", "list", "--out", str(tmp_path))
    header, *rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert header == ["name", "distribution", "version", "built"]
    countdown, math = (f"esplug-tasks-{name}" for name in ("countdown", "math"))
    assert ["countdown", countdown, version(countdown), "-"] in rows
    assert ["math", math, version(math), str(tmp_path / "train" / "math")] in rows
    assert ["math_small", math, version(math), "-"] in rows


def test_listing_imports_no_plugin_and_nothing_heavy() -> None:
    code = (
        "import sys, atexit; sys.argv = ['esplug', 'data', 'list']\n"
        "heavy = ('datasets', 'pyarrow', 'huggingface_hub', 'torch', 'numpy', 'esplug_tasks_math', 'reasoning_gym')\n"
        "atexit.register(lambda: print('LOADED', [m for m in heavy if m in sys.modules], file=sys.stderr))\n"
        "from esplug.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stderr


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("countdown", ["train", "200", "countdown_eval", "2,000"]),
        ("math_small", ["train", "1,000", "arithmetic", "75", "word_problems", "75"]),
    ],
)
def test_the_committed_folders_are_what_is_built(name, splits, monkeypatch, capfd, tmp_path) -> None:
    code, out, _ = run_cli(monkeypatch, capfd, "data", "build", name, "--out", str(tmp_path / "out"))
    assert code == 0
    assert all(word in out for word in [*splits, "nothing was downloaded"])
    for folder in (f"train/{name}", f"evaluation_suite/{name}"):
        built, committed = tmp_path / "out" / folder, DATASETS / folder
        assert files(built) == files(committed)
        data = [file for file in files(built) if file != "provenance.json"]
        assert filecmp.cmpfiles(built, committed, data, shallow=False)[0] == data
        record, theirs = (json.loads((where / "provenance.json").read_text()) for where in (built, committed))
        assert record == theirs | {"version": version(record["distribution"])}
        assert record["sources"] == []
        assert record["splits"][0]["sha256"][:12] in out
    assert sorted(path.name for path in (tmp_path / "out").glob("*/*")) == [name, name], "nothing is left beside them"


def test_a_built_data_set_is_read_by_its_task(tmp_path) -> None:
    build("countdown", tmp_path)
    task = Task.load("countdown")
    assert len(load_batch_source(task, str(tmp_path / "train" / "countdown"), 8, 0).prompts) == 200
    assert list(load_eval_splits(task, str(tmp_path / "evaluation_suite"), 5)) == ["countdown_eval"]


def test_an_existing_folder_is_refused_without_force(monkeypatch, capfd, tmp_path) -> None:
    arguments = ["data", "build", "countdown", "--out", str(tmp_path)]
    stray = tmp_path / "evaluation_suite" / "countdown" / "mine.txt"
    stray.parent.mkdir(parents=True)
    stray.write_text("keep")
    code, _, err = run_cli(monkeypatch, capfd, *arguments)
    assert (code, err) == (2, f"error: {stray.parent} exists already; --force replaces it, --out writes elsewhere\n")
    assert files(tmp_path) == ["evaluation_suite/countdown/mine.txt"]
    code, _, _ = run_cli(monkeypatch, capfd, *arguments, "--force")
    assert code == 0
    assert not stray.exists()
    assert {"dataset_dict.json", "provenance.json"} <= set(files(stray.parent))


def test_an_unknown_name_is_one_line_with_the_nearest(monkeypatch, capfd, tmp_path) -> None:
    code, _, err = run_cli(monkeypatch, capfd, "data", "build", "contdown", "--out", str(tmp_path))
    assert code == 2
    assert "did you mean 'countdown'?" in err
    assert err.count("\n") == 1
    assert not files(tmp_path)


def test_without_a_command_the_help_is_shown(monkeypatch, capfd) -> None:
    code, out, _ = run_cli(monkeypatch, capfd, "data")
    assert code == 2
    assert "build" in out


# --- a plugin's faults -------------------------------------------------------------------------------------


@pytest.fixture
def plugin(monkeypatch):
    """Return a function that installs its argument as the hook of a data set 'toy'."""

    def install(function) -> None:
        class Toy:
            @hookimpl
            def build(self, fetch):
                return function(fetch)

        info = PluginInfo("dataset", "toy", "esplug-tasks-toy", "1.0", "toy")
        monkeypatch.setattr(plugins, "find", lambda kind, name: info)
        monkeypatch.setattr(plugins, "load", lambda kind, name: relay(Toy(), info))

    return install


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "build returned NoneType"),
        ({}, "build returned nothing"),
        ({"test": {}}, "build returned test; it must return"),
        ({"train": {}}, "no rows for 'train'"),
        ({"train": [{"q": 1}]}, "no rows for 'train'"),
        ({"train": {"train": []}}, "no rows for 'train'"),
    ],
)
def test_a_wrong_result_names_the_plugin(returned, words, plugin, tmp_path) -> None:
    plugin(lambda fetch: returned)
    with pytest.raises(PluginError) as caught:
        build("toy", tmp_path)
    assert str(caught.value).startswith("dataset 'toy' (esplug-tasks-toy 1.0): build returned")
    assert words in str(caught.value)
    assert not files(tmp_path)


def test_a_failing_plugin_changes_no_files(plugin, tmp_path) -> None:
    plugin(lambda fetch: {"eval": {"a": [{"q": 1}]}})
    built = build("toy", tmp_path)
    assert list(built.splits) == [tmp_path / "evaluation_suite" / "toy"]
    before = files(tmp_path)
    plugin(lambda fetch: 1 / 0)
    with pytest.raises(PluginError, match=r"build failed \[ZeroDivisionError: division by zero\]"):
        build("toy", tmp_path, force=True)
    plugin(lambda fetch: int("many"))
    with pytest.raises(UserError, match=r"^data set 'toy': invalid literal"):
        build("toy", tmp_path, force=True)
    plugin(lambda fetch: {"eval": {"a": [{"q": 1}, {"q": "two"}]}})
    with pytest.raises(PluginError, match=r"'toy' \(esplug-tasks-toy 1\.0\): the rows of split 'a' cannot be saved \["):
        build("toy", tmp_path, force=True)
    assert files(tmp_path) == before


def test_the_checksum_sees_every_change_but_the_order_of_columns() -> None:
    rows = [{"q": "x", "a": 1}, {"q": "y", "a": 2}]
    assert checksum(rows) == checksum([{"a": 1, "q": "x"}, {"a": 2, "q": "y"}])
    others = [rows[::-1], rows[:1], [{"q": "x", "a": "1"}, rows[1]], [rows[0], {"q": "z", "a": 2}], []]
    assert len({checksum(other) for other in [rows, *others]}) == 6


# --- from the Hub, or a copy of it -------------------------------------------------------------------------

SUBJECTS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra"),
    *("number_theory", "prealgebra", "precalculus"),
)
SHA = "0123456789abcdef0123456789abcdef01234567"


def parquet(path: Path, rows: list[dict]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def card(folder: Path, configs: list[tuple[str, str, str]]) -> None:
    """Write a card that names each configuration's split and files."""
    lines = ["---", "configs:"]
    for config, split, path in configs:
        lines += [f"- config_name: {config}", "  data_files:", f"  - split: {split}", f"    path: {path}"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


@pytest.fixture
def copies(tmp_path) -> Path:
    """Write copies of all the repositories that the data set 'math' uses, in their formats, with invented rows."""
    root = tmp_path / "hub"
    math = root / "EleutherAI" / "hendrycks_math"
    card(math, [(subject, "train", f"{subject}/train-*") for subject in SUBJECTS])
    for number, subject in enumerate(SUBJECTS):
        rows = [
            {
                "problem": f"Find {level} plus {number}.",
                "level": f"Level {level}",
                "type": subject.title(),
                "solution": f"We add: $\\boxed{{1}}$ no, $\\boxed{{\\frac{{{level + number}}}{{1}}}}$.",
            }
            for level in (1, 2, 3, 4, 5)
        ]
        rows.append({**rows[0], "level": "Level ?"})
        parquet(math / subject / "train-00000-of-00001.parquet", rows)
    for name in ("a.parquet", "b.parquet"):
        note = math / ".cache" / "huggingface" / "download" / "algebra" / f"{name}.metadata"
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{SHA}\netag\n1700000000.0\n")

    aime = {"id": 60, "problem": "Count.", "solution": "...", "answer": "033", "url": "u", "year": "2024"}
    card(root / "HuggingFaceH4" / "aime_2024", [("default", "train", "data/train-*")])
    parquet(root / "HuggingFaceH4" / "aime_2024" / "data" / "train-00000-of-00001.parquet", [aime])
    amc = [
        {"id": 0, "problem": "Add.", "answer": 142.0, "url": "u"},
        {"id": 1, "problem": "Halve.", "answer": 0.5, "url": "u"},
    ]
    card(root / "AI-MO" / "aimo-validation-amc", [("default", "train", "data/train-*")])
    parquet(root / "AI-MO" / "aimo-validation-amc" / "data" / "train-00000-of-00001.parquet", amc)
    held_out = {
        "problem": "Find  4 plus 2.",
        "solution": "...",
        "answer": "6",
        "subject": "Geometry",
        "level": 4,
        "unique_id": "t",
    }
    jsonl(root / "HuggingFaceH4" / "MATH-500" / "test.jsonl", [held_out])
    (root / "HuggingFaceH4" / "MATH-500" / "README.md").write_text("# MATH-500")
    jsonl(root / "math-ai" / "minervamath" / "test.jsonl", [{"question": "How far?", "answer": "9.6\n"}])
    (root / "math-ai" / "minervamath" / "README.md").write_text("# Minerva")
    config = "OE_TO_maths_en_COMP"
    olympiad = [
        {"id": 1, "question": "Prove nothing.", "final_answer": ["$2$"], "context": None, "subfield": "Algebra"},
        {
            "id": 2,
            "question": "Which?",
            "final_answer": ["1", "$\\frac{1}{2}$ "],
            "context": "Let $x$ be.",
            "subfield": "Algebra",
        },
    ]
    folder = root / "Hothan" / "OlympiadBench"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(  # without a split, as the real card has it
        f"---\nconfigs:\n- config_name: {config}\n  data_files: OlympiadBench/{config}/{config}.parquet\n---\n"
    )
    parquet(folder / "OlympiadBench" / config / f"{config}.parquet", olympiad)
    return root


def test_the_benchmarks_are_built_from_local_copies(copies, monkeypatch, capfd, tmp_path, no_hub) -> None:
    out = tmp_path / "out"
    code, shown, _ = run_cli(monkeypatch, capfd, "data", "build", "math", "--out", str(out), "--source", str(copies))
    assert code == 0
    assert all(text in shown for text in ("EleutherAI/hendrycks_math:algebra", SHA[:12], "mit", "see the repository"))

    import datasets

    train = datasets.load_from_disk(str(out / "train" / "math"))["train"].to_list()
    assert len(train) == 7 * 3 - 1, "levels 3 to 5, less the one that MATH-500 has"
    assert train[0] == {"problem": "Find 3 plus 0.", "answer": "\\frac{3}{1}", "level": 3, "subject": "Algebra"}
    assert {row["level"] for row in train} == {3, 4, 5}
    assert "Find 4 plus 2." not in {row["problem"] for row in train}
    evaluation = datasets.load_from_disk(str(out / "evaluation_suite" / "math"))
    assert {name: split.to_list() for name, split in evaluation.items()} == {
        "aime": [{"problem": "Count.", "answer": "033"}],
        "amc": [{"problem": "Add.", "answer": "142"}, {"problem": "Halve.", "answer": "0.5"}],
        "math": [{"problem": "Find  4 plus 2.", "answer": "6", "level": 4, "subject": "Geometry"}],
        "minerva": [{"problem": "How far?", "answer": "9.6"}],
        "olympiad_bench": [
            {"problem": "Prove nothing.", "answer": "2", "subject": "Algebra"},
            {"problem": "Let $x$ be.\n\nWhich?", "answer": "1, \\frac{1}{2}", "subject": "Algebra"},
        ],
    }
    record = json.loads((out / "train" / "math" / "provenance.json").read_text())
    sources = {(source["repo"], source["config"]): source for source in record["sources"]}
    assert len(sources) == 12
    algebra = sources["EleutherAI/hendrycks_math", "algebra"]
    assert (algebra["revision"], algebra["licence"], algebra["rows"], algebra["split"]) == (SHA, "mit", 6, "train")
    assert len(algebra["sha256"]) == 64
    assert sources["HuggingFaceH4/MATH-500", None]["revision"] == "local"
    assert record["splits"] == [{"name": "train", "rows": 20, "sha256": checksum(train)}]


def test_building_again_from_the_same_copies_gives_the_same_bytes(copies, tmp_path) -> None:
    for name in ("one", "two"):
        build("math", tmp_path / name, copies)
    one, two = tmp_path / "one", tmp_path / "two"
    assert files(one) == files(two)
    assert filecmp.cmpfiles(one, two, files(one), shallow=False)[0] == files(one)


def test_a_hub_out_of_reach_is_one_line_at_once_and_says_what_to_do(monkeypatch, capfd, tmp_path, no_hub) -> None:
    with within(10):
        code, _, err = run_cli(monkeypatch, capfd, "data", "build", "math", "--out", str(tmp_path / "out"))
    assert code == 2
    assert err == (
        "error: HuggingFaceH4/aime_2024: the Hugging Face Hub is out of reach; on a machine that reaches it, run "
        "`hf download --repo-type dataset HuggingFaceH4/aime_2024 --local-dir DIR/HuggingFaceH4/aime_2024`, then "
        "give --source DIR\n"
    )
    assert not files(tmp_path / "out")


def test_a_source_that_lacks_a_repository_says_which(copies, tmp_path) -> None:
    shutil.rmtree(copies / "math-ai")
    with pytest.raises(UserError, match=r"^--source .*hub: no folder math-ai/minervamath there; .*`hf download "):
        build("math", tmp_path / "out", copies)


def test_a_source_with_other_columns_says_which_it_has(copies, tmp_path) -> None:
    jsonl(copies / "math-ai" / "minervamath" / "test.jsonl", [{"query": "How far?", "answer": "1"}])
    with pytest.raises(UserError, match=r"^data set 'math': .* no column 'question'; columns found: query, answer$"):
        build("math", tmp_path / "out", copies)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (HubSource("math-ai/minervamath", "train"), r"^math-ai/minervamath: no split 'train' \(splits: test\)$"),
        (HubSource("EleutherAI/hendrycks_math", "train"), r"add :CONFIG, one of algebra, "),
        (HubSource("EleutherAI/hendrycks_math", "train", "poetry"), r"hendrycks_math: cannot be read: .*poetry"),
        (HubSource("EleutherAI/hendrycks_math", "train", "algebra", "feed"), rf"holds revision {SHA}, not feed"),
    ],
)
def test_data_missing_in_a_copy_are_one_line(source, words, copies, plugin, tmp_path) -> None:
    plugin(lambda fetch: fetch(source))
    with pytest.raises(UserError, match=words) as caught:
        build("toy", tmp_path / "out", copies)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: cc-by-4.0\n---\n# Data\n", "cc-by-4.0"),
        ("---\nlicense:\n- mit\n- other\n---\n", "mit, other"),
        ("---\ntags: [x]\n---\n", "as told"),
        ("no front matter", "as told"),
        (None, "as told"),
    ],
)
def test_the_licence_is_what_the_card_states(card, licence, plugin, tmp_path) -> None:
    folder = tmp_path / "hub" / "owner" / "name"
    folder.mkdir(parents=True)
    jsonl(folder / "test.jsonl", [{"q": "1"}])
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    plugin(lambda fetch: {"eval": {"a": fetch(HubSource("owner/name", "test", licence="as told"))}})
    (source,) = build("toy", tmp_path / "out", tmp_path / "hub").sources
    assert source.licence == licence


def test_the_hubs_own_commit_is_loaded_and_recorded(monkeypatch, plugin, tmp_path) -> None:
    def no_card(*_, **__):
        raise OSError("no card")

    monkeypatch.setattr("huggingface_hub.DatasetCard.load", no_card)
    asked = []

    def load_dataset(name, config, revision):
        asked.append((name, config, revision))
        return {"test": [{"q": 1}]}

    monkeypatch.setattr("esplug.data.hub_datasets.hub_revision", lambda name, revision: SHA)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    plugin(lambda fetch: {"eval": {"a": fetch(HubSource("owner/name", "test", "easy", licence="mit"))}})
    built = build("toy", tmp_path)
    assert asked == [("owner/name", "easy", SHA)]
    assert [(source.revision, source.licence, source.rows) for source in built.sources] == [(SHA, "mit", 1)]
