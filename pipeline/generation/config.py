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
    below,
    option,
    require,
    share,
)

EngineName = Literal["transformers", "ctranslate2"]
_TRAINED = "The trained folder: the --output-dir of fit."


def at_most(high: int) -> Bound:
    """Return the bound of a value that is ``high`` or less."""
    return Bound(lambda value: value <= high, f"give {high} or less")


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(Settings):
    """How answers are written; names and meanings are those of transformers' generation."""

    max_new_tokens: int | None = option(
        None,
        at_least(1),
        help="Most tokens of an answer. Default: what the longest of the training could have.",
    )
    temperature: float = option(
        0.0, at_least(0), at_most(100), help="0: the likeliest token; above: sample."
    )
    top_p: float = option(
        0.95, above(0), share(), help="Sample from the likeliest tokens of this total probability."
    )
    top_k: int = option(0, at_least(0), help="Sample from so many of the likeliest tokens. 0: off.")
    num_beams: int = option(
        1,
        at_least(1),
        at_most(64),
        help="Beams of a search for the likeliest answer; 1: no search.",
    )
    repetition_penalty: float = option(
        1.0,
        above(0),
        at_most(100),
        help="Above 1, tokens that the answer holds already become less likely.",
    )
    stop: tuple[str, ...] = option(
        (),
        Bound(all, "give the text to stop at, not an empty one"),
        help="An answer ends before this text. Repeatable.",
    )
    seed: int = option(42, at_least(0), below(1 << 32), help="Seed of the sampling.")
    engine: EngineName = option(
        "transformers",
        help="What computes: transformers, or ctranslate2 (the export is made once and kept).",
    )
    bf16: bool | None = option(
        None, help="Compute in bfloat16. Default: on a GPU that has it, not on a CPU."
    )
    max_batch_tokens: int | None = option(
        None,
        at_least(1),
        help="Most tokens of what is answered at once: sources and answers, padding counted. "
        "Default: what a part of the free memory holds.",
    )

    def check(self) -> None:
        """Refuse what the settings say together."""
        super().check()
        require(
            self.num_beams == 1 or self.temperature == 0,
            "num_beams",
            f"{self.num_beams} with --temperature {self.temperature}",
            "give one of the two: a search draws nothing",
        )


@dataclass(frozen=True, kw_only=True)
class ChatConfig(GenerationOptions):
    """Settings of ``duet chat``: talk to a trained model."""

    model: str = option(REQUIRED, NAMED, help=_TRAINED, positional=True)
    message: str | None = option(None, help="Answer this one message and end.")
    system: str | None = option(None, help="A system text in place of the usual header.")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(GenerationOptions):
    """Settings of ``duet generate``: conversations in, the same with a model's answers out."""

    model: str = option(REQUIRED, NAMED, help=_TRAINED, positional=True)
    data_path: tuple[str, ...] = option(
        REQUIRED,
        NAMED,
        help="A file, a folder or a glob of conversations, as prepare reads them. Repeatable.",
    )
    output_path: str = option(REQUIRED, NAMED, LOCAL_OUTPUT, help="The JSON Lines file to write.")
    all_turns: bool = option(
        False, help="Answer each human turn, after the history as it is; else the last one."
    )
    role: tuple[str, ...] = option(
        (), help="One more speaker name, NAME=human|assistant|system|tool. Repeatable."
    )


@dataclass(frozen=True, kw_only=True)
class ServeConfig(GenerationOptions):
    """Settings of ``duet serve``: a trained model behind OpenAI's HTTP interface."""

    model: str = option(REQUIRED, NAMED, help=_TRAINED, positional=True)
    host: str = option(
        "127.0.0.1",
        NAMED,
        help="Address to listen on. One that other machines reach wants an API key.",
    )
    port: int = option(8000, at_least(0), at_most(65535), help="Port to listen on; 0: any free.")
    api_key: str | None = option(
        None,
        secret=True,
        help="Key that every request must bring. The environment variable DUET_API_KEY is safer: "
        "others on this machine can see flags.",
    )
    max_queue: int = option(
        256, at_least(1), help="Requests that may wait; more are told to come again (429)."
    )


@dataclass(frozen=True, kw_only=True)
class EvalConfig(GenerationOptions):
    """Settings of ``duet eval``: how good trained models are on known answers."""

    models: tuple[str, ...] = option(
        REQUIRED, NAMED, help="Trained folders, one or more.", positional=True
    )
    data_path: tuple[str, ...] = option(
        REQUIRED, NAMED, help="A prepared folder; or conversations, as prepare reads them."
    )
    split: Literal["train", "eval"] = option("eval", help="The split of a prepared folder.")
    max_samples: int | None = option(
        None, at_least(1), help="Judge so many pairs, spread over the split. Default: all."
    )
    baseline: str | None = option(
        None, help="The model that training started from, judged untrained beside the others."
    )
    generate: bool = option(True, help="Judge answers too, not the loss alone.")
