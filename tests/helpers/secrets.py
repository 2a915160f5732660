"""Planted secrets, and a search for them in files."""

import base64
import json
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path

SECRETS = {
    "HF_TOKEN": "hf_planted/Secret+One==7fQ",
    "WANDB_API_KEY": "5e" * 20,
    "AWS_SECRET_ACCESS_KEY": "wJalrPlanted/K7MDENG+bPxRfiCYSecret",
    "OPENAI_API_KEY": "sk-planted-0123456789abcdefSecret",
    "GITHUB_TOKEN": "ghp_plantedSecret0123456789abcdef",
    "MY_PASSWORD": "p@ss word&planted",
}


def secrets_in(folder: Path, secrets: Iterable[str]) -> list[Path]:
    """Return the files below ``folder`` whose name or content holds a secret.

    A secret is found verbatim, JSON-escaped, URL-encoded, in hexadecimal, and in base64 at any offset of a longer text.
    """
    forms = [form for secret in secrets for form in _forms(secret)]
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in files if any(form in os_bytes(path) or form in path.read_bytes() for form in forms)]


def os_bytes(path: Path) -> bytes:
    return str(path).encode(errors="surrogateescape")


def _forms(secret: str) -> Iterator[bytes]:
    data = secret.encode()
    yield data
    yield json.dumps(secret)[1:-1].encode()
    yield urllib.parse.quote(secret, safe="").encode()
    yield urllib.parse.quote_plus(secret).encode()
    yield data.hex().encode()
    for before in range(3):  # preceding bytes shift the base64 text; its first and last groups include neighbours
        text = base64.b64encode(b"\0" * before + data)
        inner = text[4 * bool(before) : len(text) - 4]
        yield inner
        yield inner.translate(bytes.maketrans(b"+/", b"-_"))
