"""Helpers for this repository: not part of the distribution."""
