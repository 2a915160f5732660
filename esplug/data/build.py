"""Data set builder: saves the rows that a plugin makes, with a record of their sources."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from esplug import plugins
from esplug.data.hub_datasets import Rows, find_commit, load_commit, load_local_copy, out_of_reach
from esplug.errors import PluginError, UserError
from esplug.hookspecs import HubSource, Row
from esplug.plugins import PluginInfo
from esplug.plugins.loading import hook_errors
from esplug.utils.text import cause

#: Folder of each part that ``build`` returns.
FOLDERS = {"train": "train", "eval": "evaluation_suite"}


@dataclass(frozen=True)
class SourceRecord:
    """A source that was fetched."""

    repo: str  # id on the Hub
    config: str | None  # if the data set has several
    split: str
    revision: str  # commit, or "local" if a local copy does not record it
    licence: str  # in the data set's card, or else the plugin's statement
    rows: int
    sha256: str  # of the rows as canonical JSON


@dataclass(frozen=True)
class SplitRecord:
    """A split that was saved: its name, number of rows, and their checksum as canonical JSON."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Built:
    """A data set that was saved."""

    plugin: PluginInfo
    splits: Mapping[Path, Sequence[SplitRecord]]  # in each folder
    sources: Sequence[SourceRecord]  # empty if the plugin generated the rows


def folders(name: str, out: Path) -> list[Path]:
    """Return the folders of a data set: training rows, then evaluation rows."""
    return [out / folder / name for folder in FOLDERS.values()]


def build(name: str, out: Path, source: Path | None = None, force: bool = False) -> Built:
    """Build the data set of this name and save it as DatasetDicts below ``out``.

    Args:
        name: name of the plugin.
        out: parent of ``train/NAME`` and ``evaluation_suite/NAME``, each with a ``provenance.json``.
        source: folder of local copies of Hub repositories, as ``owner/name``; ``None`` to use the Hub.
        force: replace existing folders.

    Raises:
        UserError: a folder exists, or a source is not available.
        PluginError: there is no such data set, or its plugin fails.
    """
    plugin = plugins.find("dataset", name)
    existing = [folder for folder in folders(name, out) if folder.exists()]
    if existing and not force:
        raise UserError(f"{existing[0]} exists already; --force replaces it, --out writes elsewhere")
    fetcher = _Fetcher(source)
    hooks = plugins.load("dataset", name)
    with hook_errors(plugin, "build"):
        made = hooks.build(fetch=fetcher)
    parts = _checked(plugin, made)
    records: dict[Path, list[SplitRecord]] = {}
    staged = {}
    try:
        for part, splits in parts.items():
            folder = out / FOLDERS[part] / name
            staged[folder] = folder.with_name(f".{name}.partial")
            records[folder] = [SplitRecord(split, len(rows), checksum(rows)) for split, rows in splits.items()]
            _save(plugin, staged[folder], splits, _provenance(plugin, records[folder], fetcher.records))
        for folder, ready in staged.items():
            if folder.exists():
                shutil.rmtree(folder)
            ready.rename(folder)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    finally:
        for ready in staged.values():
            shutil.rmtree(ready, ignore_errors=True)
    return Built(plugin, records, fetcher.records)


def checksum(rows: Sequence[Row]) -> str:
    """Return the SHA-256 of rows, each as a line of JSON with sorted keys."""
    digest = sha256()
    for row in rows:
        text = json.dumps(dict(row), sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


@dataclass
class _Fetcher:
    """Fetches rows for a plugin and records each source."""

    local: Path | None
    records: list[SourceRecord] = field(default_factory=list)

    def __call__(self, source: HubSource) -> list[Row]:
        revision, splits = self._from_hub(source) if self.local is None else self._from_copy(source, self.local)
        if source.split not in splits:
            shown = f"{source.repo}:{source.config}" if source.config else source.repo
            raise UserError(f"{shown}: no split {source.split!r} (splits: {', '.join(splits)})")
        rows: list[Row] = [dict(row) for row in splits[source.split]]
        licence, sha256sum = self._licence(source), checksum(rows)
        record = SourceRecord(source.repo, source.config, source.split, revision, licence, len(rows), sha256sum)
        self.records.append(record)
        return rows

    def _licence(self, source: HubSource) -> str:
        """Return the licence in the data set's card, or else the plugin's statement."""
        from huggingface_hub import DatasetCard

        card = str(self.local / source.repo / "README.md") if self.local else source.repo
        try:
            stated = DatasetCard.load(card, ignore_metadata_errors=True).data.get("license")
        except Exception:  # without a readable card, the rows are still usable
            stated = None
        return ", ".join(stated) if isinstance(stated, list) else str(stated or source.licence)

    def _from_hub(self, source: HubSource) -> tuple[str, dict[str, Rows]]:
        revision = find_commit(source.repo, source.revision, f"{source.repo}:")
        if revision is None:
            raise UserError(f"{source.repo}: {out_of_reach(source.repo, f'DIR/{source.repo}', '--source DIR')}")
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
        return revision, load_local_copy(folder, source.config, str(folder))


def _revision_of_copy(folder: Path) -> str:
    """Return the commit of a local copy from the metadata files of ``hf download``, or ``local`` without them."""
    notes = (folder / ".cache" / "huggingface" / "download").rglob("*.metadata")
    commits = {note.read_text(encoding="utf-8").partition("\n")[0].strip() for note in notes}
    return commits.pop() if len(commits) == 1 else "local"


def _checked(plugin: PluginInfo, parts: Any) -> dict[str, dict[str, list[Row]]]:
    """Return the plugin's parts, with the rows of each split."""
    if not isinstance(parts, Mapping) or not parts or not parts.keys() <= FOLDERS.keys():
        found = ", ".join(map(str, parts)) if isinstance(parts, Mapping) else type(parts).__name__
        wanted = "{'train': ..., 'eval': ...}"
        raise PluginError(f"{plugin}: build returned {found or 'nothing'}; it must return {wanted}")
    for part, splits in parts.items():
        if not isinstance(splits, Mapping) or not splits or not all(splits.values()):
            raise PluginError(f"{plugin}: build returned no rows for {part!r}, or a split of it is empty")
    return {part: {name: list(rows) for name, rows in splits.items()} for part, splits in parts.items()}


def _provenance(plugin: PluginInfo, splits: Sequence[SplitRecord], sources: Sequence[SourceRecord]) -> str:
    """Return a folder's ``provenance.json``. It has no dates, so the same sources give the same bytes."""
    record: dict[str, Any] = {"name": plugin.name, "distribution": plugin.distribution, "version": plugin.version}
    record |= {"sources": list(map(asdict, sources)), "splits": list(map(asdict, splits))}
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def _save(plugin: PluginInfo, folder: Path, splits: Mapping[str, Sequence[Row]], provenance: str) -> None:
    import datasets

    shutil.rmtree(folder, ignore_errors=True)
    datasets.disable_progress_bars()  # they would appear above the table
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
    (folder / "provenance.json").write_text(provenance, encoding="utf-8")
