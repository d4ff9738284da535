"""Settings of what is pushed to the Hugging Face hub."""

from dataclasses import dataclass

from pipeline.config.fields import NAMED, Settings, option, require


@dataclass(frozen=True, kw_only=True)
class HubOptions(Settings):
    """What is pushed to the Hugging Face hub when all is done."""

    push_to_hub: bool = option(
        False, help="Push the result to the Hugging Face Hub when it is complete."
    )
    hub_model_id: str | None = option(
        None,
        NAMED,
        help="Repository to push to: OWNER/NAME, or NAME. Default: the name of --output-dir.",
    )
    hub_private_repo: bool | None = option(
        None, help="Whether a new repository is private. Default: the account's setting."
    )
    hub_token: str | None = option(
        None,
        secret=True,
        help="Hub token with write access; visible to other users of this machine. Default: "
        "HF_TOKEN, or the token of hf auth login.",
    )

    def check(self) -> None:
        """Refuse what the settings say together."""
        super().check()
        for name in ("hub_model_id", "hub_private_repo", "hub_token"):
            require(
                self.push_to_hub or getattr(self, name) is None,
                name,
                "no --push-to-hub",
                "give --push-to-hub too, or leave it out",
            )
