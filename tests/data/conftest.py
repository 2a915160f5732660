"""Fixtures that keep tests away from the real Hub and its cache."""

import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch) -> None:
    """Keep the cache of the datasets library out of the home directory."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def no_hub(monkeypatch) -> None:
    """Set the Hub's address to one where nothing listens."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", "http://127.0.0.1:9")
