"""Building a data set: its plugin makes the rows, and they are saved with a record of where they come from."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from esplug import plugins
from esplug.data.readers import Rows, load_commit, load_repository
from esplug.errors import PluginError, UserError
from esplug.hookspecs import HubSource, Row
from esplug.plugins import PluginInfo
from esplug.plugins.loading import hook_errors
from esplug.utils.hub import hub_revision
from esplug.utils.text import cause

#: What ``build`` calls its two parts, and the folders they are saved in.
FOLDERS = {"train": "train", "eval": "evaluation_suite"}
_RECORD = "provenance.json"


@dataclass(frozen=True)
class SourceRecord:
    """What was fetched.

    Attributes:
        repo: the data set's id on the Hub.
        config: its configuration, if it has several.
        split: the split taken.
        revision: the commit, or ``local`` where a local copy does not tell.
        licence: as the data set's card states it, else as the plugin gives it.
        rows: how many.
        sha256: of the rows, as canonical JSON.
    """

    repo: str
    config: str | None
    split: str
    revision: str
    licence: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class SplitRecord:
    """What was saved: the split's name, how many rows, and their checksum as canonical JSON."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Built:
    """A data set that was saved.

    Attributes:
        plugin: what made it.
        splits: of each folder written.
        sources: what it was made from; none where the plugin made the rows itself.
    """

    plugin: PluginInfo
    splits: Mapping[Path, Sequence[SplitRecord]]
    sources: Sequence[SourceRecord]


def folders(name: str, out: Path) -> list[Path]:
    """Return where a data set of this name is saved: training rows, then evaluation rows."""
    return [out / folder / name for folder in FOLDERS.values()]


def build(name: str, out: Path, source: Path | None = None, force: bool = False) -> Built:
    """Build the data set of this name and save it as DatasetDicts below ``out``.

    Args:
        name: the plugin's.
        out: gets ``train/NAME`` and ``evaluation_suite/NAME``, each with a ``provenance.json``.
        source: holds local copies of Hub repositories, as ``owner/name``; ``None`` asks the Hub.
        force: replace what is there.

    Raises:
        UserError: a folder is there already, or a source cannot be had.
        PluginError: there is no such data set, or its plugin fails.
    """
    plugin = plugins.find("dataset", name)
    taken = [folder for folder in folders(name, out) if folder.exists()]
    if taken and not force:
        raise UserError(f"{taken[0]} exists already; --force replaces it, --out writes elsewhere")
    fetcher = _Fetcher(source)
    hooks = plugins.load("dataset", name)
    with hook_errors(plugin, "build"):
        made = hooks.build(fetch=fetcher)
    parts = _checked(plugin, made)
    staged = {}
    try:
        for part, splits in parts.items():
            folder = out / FOLDERS[part] / name
            staged[folder] = folder.with_name(f".{name}.partial")
            _save(plugin, staged[folder], splits, _record(plugin, splits, fetcher.records))
        for folder, ready in staged.items():
            if folder.exists():
                shutil.rmtree(folder)
            ready.rename(folder)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    finally:
        for ready in staged.values():
            shutil.rmtree(ready, ignore_errors=True)
    records = {out / FOLDERS[part] / name: _split_records(splits) for part, splits in parts.items()}
    return Built(plugin, records, fetcher.records)


def checksum(rows: Sequence[Row]) -> str:
    """Return the SHA-256 of rows: each as JSON with sorted keys on a line of its own."""
    digest = sha256()
    for row in rows:
        text = json.dumps(dict(row), sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


@dataclass
class _Fetcher:
    """Fetches rows for a plugin and keeps a record of each source."""

    local: Path | None
    records: list[SourceRecord] = field(default_factory=list)

    def __call__(self, source: HubSource) -> list[Row]:
        shown = f"{source.repo}:{source.config}" if source.config else source.repo
        revision, splits = self._from_hub(source) if self.local is None else self._from_copy(source, self.local)
        if source.split not in splits:
            raise UserError(f"{shown}: no split {source.split!r} (splits: {', '.join(splits)})")
        rows: list[Row] = [dict(row) for row in splits[source.split]]
        self.records.append(
            SourceRecord(
                source.repo, source.config, source.split, revision, self._licence(source), len(rows), checksum(rows)
            )
        )
        return rows

    def _licence(self, source: HubSource) -> str:
        """Read the licence from the data set's own card, where it states one."""
        from huggingface_hub import DatasetCard

        card = str(self.local / source.repo / "README.md") if self.local else source.repo
        try:
            stated = DatasetCard.load(card, ignore_metadata_errors=True).data.get("license")
        except Exception:  # no card, or one that cannot be read: the rows are what was asked for
            stated = None
        return ", ".join(stated) if isinstance(stated, list) else str(stated or source.licence)

    def _from_hub(self, source: HubSource) -> tuple[str, dict[str, Rows]]:
        try:
            revision = hub_revision(source.repo, source.revision)
        except LookupError as error:
            raise UserError(f"{source.repo}: not to be had from the Hub: {error}") from error
        if revision is None:
            raise UserError(
                f"{source.repo}: the Hugging Face Hub is out of reach; where it is in reach, run `hf download "
                f"--repo-type dataset {source.repo} --local-dir DIR/{source.repo}`, then give --source DIR"
            )
        return revision, load_commit(source.repo, source.config, revision, source.repo)

    def _from_copy(self, source: HubSource, local: Path) -> tuple[str, dict[str, Rows]]:
        folder = local / source.repo
        if not folder.is_dir():
            raise UserError(
                f"--source {local}: no folder {source.repo} there; get it with `hf download --repo-type dataset "
                f"{source.repo} --local-dir {folder}`"
            )
        revision = _revision_of_copy(folder)
        if source.revision and not revision.startswith(source.revision):
            raise UserError(f"{folder}: holds revision {revision}, not {source.revision}; fetch it with --revision")
        return revision, load_repository(folder, source.config, str(folder))


def _revision_of_copy(folder: Path) -> str:
    """Read the commit of a local copy from what ``hf download`` notes beside it: the first line of each file."""
    notes = (folder / ".cache" / "huggingface" / "download").rglob("*.metadata")
    commits = {note.read_text(encoding="utf-8").partition("\n")[0].strip() for note in notes}
    return commits.pop() if len(commits) == 1 else "local"


def _checked(plugin: PluginInfo, parts: Any) -> dict[str, dict[str, list[Row]]]:
    """Check what the plugin returned.

    Raises:
        PluginError: it is no mapping of the parts to splits with rows.
    """
    if not isinstance(parts, Mapping) or not parts or not parts.keys() <= FOLDERS.keys():
        found = ", ".join(map(str, parts)) if isinstance(parts, Mapping) else type(parts).__name__
        raise PluginError(
            f"{plugin}: build returned {found or 'nothing'}; it must return {{'train': ..., 'eval': ...}}"
        )
    for part, splits in parts.items():
        if not isinstance(splits, Mapping) or not splits or not all(splits.values()):
            raise PluginError(f"{plugin}: build returned no rows for {part!r}, or a split of it is empty")
    return {part: {name: list(rows) for name, rows in splits.items()} for part, splits in parts.items()}


def _split_records(splits: Mapping[str, Sequence[Row]]) -> list[SplitRecord]:
    return [SplitRecord(name, len(rows), checksum(rows)) for name, rows in splits.items()]


def _record(plugin: PluginInfo, splits: Mapping[str, Sequence[Row]], sources: Sequence[SourceRecord]) -> str:
    """Describe a folder in JSON, without dates: building again from the same sources gives the same bytes."""
    record = {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "sources": [asdict(source) for source in sources],
        "splits": [asdict(split) for split in _split_records(splits)],
    }
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def _save(plugin: PluginInfo, folder: Path, splits: Mapping[str, Sequence[Row]], record: str) -> None:
    import datasets

    shutil.rmtree(folder, ignore_errors=True)
    datasets.disable_progress_bars()  # they would stand above the table
    data = datasets.DatasetDict()
    for name, rows in splits.items():
        try:
            data[name] = datasets.Dataset.from_list([dict(row) for row in rows])
        except Exception as error:
            raise PluginError(
                f"{plugin}: the rows of split {name!r} cannot be saved [{cause(error)}]; "
                "a column must hold values of one type"
            ) from error
    data.save_to_disk(str(folder))
    (folder / _RECORD).write_text(record, encoding="utf-8")
