"""Finds one file of a model, in a folder or on the Hugging Face hub (its local cache first)."""

import logging
from pathlib import Path

from pipeline.errors import ModelError


def find_model_file(name_or_path: str, filename: str, cache_dir: str | None = None) -> Path | None:
    """Return the path of a model's file, or None where the model has no such file.

    Raises:
        ModelError: The folder does not exist and the hub does not have, or give, the model.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        path = folder / filename
        return path if path.is_file() else None
    # Imported late: only names of the hub need it.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    # It would announce each retry; what comes of them is said once, below.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return Path(hf_hub_download(name_or_path, filename, cache_dir=cache_dir))
    except HFValidationError:
        got = "neither a folder nor a name of the form OWNER/NAME"
    except LocalEntryNotFoundError:
        got = "no such folder, not in the hub's cache, and the hub cannot be reached"
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError, ValueError) as error:
        got = str(error).splitlines()[0]
    raise ModelError(
        "the model cannot be found",
        where=name_or_path,
        got=got,
        do="give a folder with config.json and a tokenizer, or a hub name",
    )
