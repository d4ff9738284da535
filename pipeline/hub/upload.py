"""A complete folder -> a repository on the Hugging Face hub.

What the hub can refuse (the token, the name, a place to write) it refuses before a run takes time:
``create`` asks it. What it refuses later costs nothing but the upload: the folder is there.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import HubOptions
from pipeline.console.logs import note
from pipeline.errors import ConfigError, DuetError, OutputError

_CARD = "README.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class HubRepo:
    """Where a model is pushed to, and by whose leave."""

    name: str
    """``OWNER/NAME``, or ``NAME`` for one of the token's owner."""
    private: bool | None = None
    """Of one that is new; None: what the owner's account says."""
    token: str | None = field(default=None, repr=False)
    """None: that of ``HF_TOKEN`` or of a login."""

    @classmethod
    def from_options(cls, options: HubOptions, folder: Path) -> "HubRepo":
        """Return what the settings ask for; ``folder``, which is pushed, gives a name."""
        name = options.hub_model_id or folder.resolve().name
        return cls(name=name, private=options.hub_private_repo, token=options.hub_token or None)

    def create(self) -> None:
        """Create the repository, or find it there.

        Raises:
            ConfigError: There is no token, or the name is none of a repository.
            OutputError: The hub refuses it, or cannot be reached.
        """
        do = "give a token and an --hub-model-id that it may write to, or leave --push-to-hub out"
        with self._one_line(do=do):
            self._full_name()

    def _full_name(self) -> str:
        """Return the repository's name with its owner's; create it if it is not there."""
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import HFValidationError

        if (token := self.token or get_token()) is None:
            raise ConfigError(
                "no token of the Hugging Face hub",
                where="--push-to-hub",
                got="none in HF_TOKEN, of a login or as --hub-token",
                do="run hf auth login, or set HF_TOKEN to a token that may write",
            )
        try:
            url = HfApi(token=token).create_repo(self.name, private=self.private, exist_ok=True)
        except HFValidationError as error:
            raise ConfigError(
                "not the name of a repository",
                where="--hub-model-id",
                got=self.name,
                do="give --hub-model-id OWNER/NAME, of letters, digits, '-', '_' and '.'",
            ) from error
        return str(url.repo_id)

    def upload(self, folder: Path, files: Sequence[str], *, again: str) -> None:
        """Push a folder's model, as it is and nothing else, and its card.

        Args:
            folder: A complete one.
            files: Names, or patterns of names, of what a model may consist of. Those in the
                repository that the folder does not have are deleted: a loader would mix them in.
            again: How to push it once more, for the one who has to.

        Raises:
            ConfigError: There is no token.
            OutputError: The hub refuses it, or cannot be reached.
        """
        from huggingface_hub import HfApi

        with self._one_line(do=f"{folder} is complete; push it with {again}"):
            repo_id = self._full_name()
            HfApi(token=self.token).upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message="Push a model of duet-t5",
                allow_patterns=[*files, _CARD],
                delete_patterns=list(files),
            )
        note(f"pushed to {repo_id} on the Hugging Face hub")

    @contextlib.contextmanager
    def _one_line(self, *, do: str) -> Iterator[None]:
        # Its retries would be announced one by one; what comes of them is said once.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        try:
            yield
        except DuetError:
            raise
        except Exception as error:  # the client, its storage and the network have their own
            raise OutputError(
                "the model cannot be pushed",
                where=f"{self.name} on the Hugging Face hub",
                got=_first_words(error),
                do=do,
            ) from error


def _first_words(error: Exception) -> str:
    """Return the first line of an error, and what the hub itself says."""
    first = (str(error).splitlines() or [type(error).__name__])[0].strip()
    said = getattr(error, "server_message", None)
    return f"{first} {said}" if said and said not in first else first or type(error).__name__
