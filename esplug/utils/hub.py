"""The Hugging Face Hub: whether it is in reach, and which commit a name stands for."""

import logging
from typing import Literal

from esplug.utils.text import one_line

TIMEOUT = 5.0  # seconds for the one question whether the Hub is there


def hub_revision(name: str, revision: str | None, kind: Literal["dataset", "model"] = "dataset") -> str | None:
    """Ask the Hub, once and briefly, which commit a revision is; ``None`` where the Hub is out of reach.

    Args:
        name: ``owner/name``.
        revision: branch, tag or commit; ``None`` for the newest.
        kind: of repository.

    Raises:
        LookupError: the Hub has no such repository or revision, or does not give it out.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries would stand above our one line
    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        return ask(name, revision=revision, timeout=TIMEOUT).sha
    except (HfHubHTTPError, HFValidationError) as error:
        raise LookupError(one_line(error)) from error
    except Exception:  # which kind depends on the library's version and its network client
        return None
