"""A model's files, in a folder or on the Hugging Face hub (its local cache first)."""

import contextlib
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pipeline.console.progress import Wait
from pipeline.errors import ModelError

_OUT_OF_REACH = set[str]()
"""Cached models whose hub was found so: asking it again takes half a minute a file."""


def find_model_file(name_or_path: str, filename: str, cache_dir: str | None = None) -> Path | None:
    """Return the path of a model's file, or None where the model has no such file.

    Where the hub is out of reach, a model in the cache has the files that are there with its
    ``config.json``. A hub that answers, and fails to give one file, is no such hub.

    Raises:
        ModelError: The folder does not exist and the hub does not have, or give, the model; or the
            file may not be read.
    """
    folder = Path(name_or_path)
    with permission_errors():
        if folder.is_dir():
            path = folder / filename
            if not path.is_file():
                return None
            path.open("rb").close()  # here, as some libraries call what they may not read missing
            return path
    # Imported late: only names of the hub need it.
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    # It would announce each retry; what comes of them is said once, below.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        is_lost = name_or_path in _OUT_OF_REACH
        return Path(
            hf_hub_download(name_or_path, filename, cache_dir=cache_dir, local_files_only=is_lost)
        )
    except HFValidationError:
        got = "neither a folder nor a name of the form OWNER/NAME"
    except LocalEntryNotFoundError:
        is_cached = isinstance(try_to_load_from_cache(name_or_path, "config.json", cache_dir), str)
        if is_cached and (is_lost or _is_out_of_reach(name_or_path)):
            _OUT_OF_REACH.add(name_or_path)
            return None
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


def _is_out_of_reach(name: str) -> bool:
    """Return whether the hub gives nothing of a model, be it that this machine is offline."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"))
    except HfHubHTTPError:  # it answers
        return False
    except Exception:  # whatever the network raises
        return True
    return False


@contextlib.contextmanager
def permission_errors() -> Iterator[None]:
    """Call a missing permission to read a model's folder or file that, in one clear line."""
    try:
        yield
    except PermissionError as error:
        raise ModelError(
            "a model may not be read",
            where=error.filename,
            got="permission denied",
            do="have its owner allow it, with chmod -R a+rX and the model's folder",
        ) from error


def check_readable(folder: Path) -> None:
    """Refuse a folder in which there is something that may not be read.

    For when a library could not read it: safetensors says "no such file" then.

    Raises:
        ModelError: There is.
    """
    with permission_errors(), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in folder.iterdir():
            if path.is_file():
                path.open("rb").close()


@contextlib.contextmanager
def counted_weights(title: str) -> Iterator[None]:
    """Wait for weights, counted where transformers would draw a bar of its own."""
    from transformers.utils import logging as untyped

    # Before transformers 5 there is no such hook.
    set_hook: Any = getattr(untyped, "set_tqdm_hook", lambda hook: None)
    with Wait(title, unit="weights") as wait:

        def count(make: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            is_counted = len(args) == 1 and isinstance(args[0], Collection)
            return wait.each(args[0]) if is_counted else make(*args, **kwargs)

        before = set_hook(count)
        try:
            yield
        finally:
            set_hook(before)
