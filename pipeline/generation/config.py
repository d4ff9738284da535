"""The settings of the commands that use a trained model."""

from dataclasses import dataclass
from typing import Literal

from pipeline.config.fields import (
    LOCAL_OUTPUT,
    NAMED,
    REQUIRED,
    Bound,
    Settings,
    above,
    at_least,
    at_most,
    below,
    option,
    require,
    share,
)

EngineName = Literal["transformers", "ctranslate2"]
_TRAINED = "Trained folder: the --output-dir of fit."


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(Settings):
    """How answers are written; names and meanings are those of transformers' generation."""

    max_new_tokens: int | None = option(
        None,
        at_least(1),
        help="Maximum number of tokens of an answer. Default: the maximum target length in "
        "training.",
    )
    temperature: float = option(
        0.0, at_least(0), at_most(100), help="Sampling temperature, 0 to 100. 0: greedy decoding."
    )
    top_p: float = option(
        0.95,
        above(0),
        share(),
        help="Nucleus sampling: sample from the likeliest tokens of this total probability, "
        "above 0 to 1.",
    )
    top_k: int = option(
        0, at_least(0), help="Sample from this many of the likeliest tokens. 0: off."
    )
    num_beams: int = option(
        1,
        at_least(1),
        at_most(64),
        help="Number of beams for beam search, 1 to 64. 1: no beam search.",
    )
    repetition_penalty: float = option(
        1.0,
        above(0),
        at_most(100),
        help="Repetition penalty; above 1, tokens of the answer so far become less likely.",
    )
    stop: tuple[str, ...] = option(
        (),
        Bound(all, "give the text to stop at, not an empty one"),
        help="Stop string: an answer ends before this text. Repeatable.",
    )
    seed: int = option(42, at_least(0), below(1 << 32), help="Random seed for sampling.")
    engine: EngineName = option(
        "transformers",
        help="Inference engine: transformers, or ctranslate2 (the model is exported once "
        "and kept).",
    )
    bf16: bool | None = option(
        None, help="Compute in bfloat16. Default: on GPUs that support it, not on CPUs."
    )
    max_batch_tokens: int | None = option(
        None,
        at_least(1),
        help="Maximum number of tokens computed at once, inputs and answers with padding. "
        "Default: what a fraction of the free memory holds.",
    )

    def check(self) -> None:
        """Refuse what the settings say together."""
        super().check()
        require(
            self.num_beams == 1 or self.temperature == 0,
            "num_beams",
            f"{self.num_beams} with --temperature {self.temperature}",
            "give one of the two: beam search does not sample",
        )


@dataclass(frozen=True, kw_only=True)
class ChatConfig(GenerationOptions):
    """Settings of ``duet chat``: talk to a trained model."""

    model: str = option(REQUIRED, NAMED, help=_TRAINED, positional=True)
    message: str | None = option(
        None,
        Bound(lambda text: bool(text.strip()), "give a message, not an empty one"),
        help="Answer this message and exit.",
    )
    system: str | None = option(None, help="System text, in place of the default header.")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(GenerationOptions):
    """Settings of ``duet generate``: conversations in, the same with a model's answers out."""

    model: str = option(REQUIRED, NAMED, help=_TRAINED, positional=True)
    data_path: tuple[str, ...] = option(
        REQUIRED,
        NAMED,
        help="File, folder or glob of conversations, in the forms that prepare reads. Repeatable.",
    )
    output_path: str = option(REQUIRED, NAMED, LOCAL_OUTPUT, help="JSON Lines file to write.")
    all_turns: bool = option(
        False,
        help="Answer every human turn, each after its history in the file, and not only the "
        "last one.",
    )
    role: tuple[str, ...] = option(
        (), help="Additional speaker name, as NAME=human|assistant|system|tool. Repeatable."
    )


@dataclass(frozen=True, kw_only=True)
class ServeConfig(GenerationOptions):
    """Settings of ``duet serve``: a trained model with OpenAI's HTTP interface."""

    model: str = option(REQUIRED, NAMED, help=_TRAINED, positional=True)
    host: str = option(
        "127.0.0.1",
        NAMED,
        help="Address to listen on. One that other machines can reach requires an API key.",
    )
    port: int = option(
        8000, at_least(0), at_most(65535), help="Port to listen on. 0: any free port."
    )
    api_key: str | None = option(
        None,
        secret=True,
        help="API key that every request must have. Prefer the environment variable "
        "DUET_API_KEY: flags are visible to other users of this machine.",
    )
    max_queue: int = option(
        256, at_least(1), help="Maximum number of waiting requests; further ones get status 429."
    )


@dataclass(frozen=True, kw_only=True)
class EvalConfig(GenerationOptions):
    """Settings of ``duet eval``: how good trained models are on known answers."""

    models: tuple[str, ...] = option(
        REQUIRED, NAMED, help="Trained folders, one or more.", positional=True
    )
    data_path: tuple[str, ...] = option(
        REQUIRED, NAMED, help="Prepared folder; or conversations, in the forms that prepare reads."
    )
    split: Literal["train", "eval"] = option(
        "eval", help="Split of a prepared folder to evaluate on."
    )
    max_samples: int | None = option(
        None,
        at_least(1),
        help="Maximum number of pairs to evaluate on, spread over the split. Default: all.",
    )
    baseline: str | None = option(
        None,
        help="Model to compare with: a folder or a hub name, usually the one that training "
        "started from.",
    )
    generate: bool = option(
        True, help="Generate answers and score them, beside computing the loss."
    )
