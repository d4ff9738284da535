"""Talks to a trained model, with the template, tokenizer and window of its training."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.config import ChatConfig
from pipeline.conversation import Conversation, Role, Turn
from pipeline.errors import ModelError
from pipeline.fit.model.loading import load_trained
from pipeline.fit.model.lora import is_adapter
from pipeline.prepare.encode.encoding import PairEncoder
from pipeline.prepare.encode.pairs import PairCounts
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from pipeline.window import saved_length


def chat(config: ChatConfig) -> None:
    """Answer one message, or each line that is typed until the end of input.

    Answers go to stdout, everything else to stderr.

    Raises:
        ModelError: The folder holds no model that can be loaded.
    """
    speaker = Speaker(config)
    turns = [Turn(Role.SYSTEM, config.system)] if config.system else []
    if config.message is not None:
        print(speaker.answer([*turns, Turn(Role.HUMAN, config.message)]))
        return
    start = list(turns)
    print("Type a message; /new starts over, ctrl-d ends.", file=sys.stderr)
    while (message := _read_message()) is not None:
        if message.strip() == "/new":
            turns = list(start)
            print("a new conversation", file=sys.stderr)
        elif message.strip():
            turns.append(Turn(Role.HUMAN, message))
            answer = speaker.answer(turns)
            turns.append(Turn(Role.ASSISTANT, answer))
            print(answer, flush=True)


def _read_message() -> str | None:
    if sys.stdin.isatty():
        import readline  # noqa: F401  its import gives input() arrow keys and a history

        try:
            # input() writes its prompt to stdout where readline is at work.
            return input("> ")
        except EOFError:
            print(file=sys.stderr)
            return None
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def source_ids(tokenizer: TextTokenizer, turns: list[Turn], model_max_length: int) -> list[int]:
    """Return the encoder ids for the answer to ``turns``: those that training would have made.

    They are made by what makes the training's rows, with an answer that is then thrown away.
    """
    encoder = PairEncoder(tokenizer, model_max_length, model_max_length)
    asked = Conversation("chat", [*turns, Turn(Role.ASSISTANT, "?")])
    *_, rows = encoder.encode([asked], PairCounts())
    ids: list[int] = rows.column("input_ids")[-1].as_py()
    return ids


class Speaker:
    """A trained model that answers."""

    def __init__(self, config: ChatConfig) -> None:
        """Load model and tokenizer."""
        self._config = config
        folder = Path(config.model)
        if not ((folder / "config.json").is_file() or is_adapter(folder)):
            raise ModelError(
                "no trained model",
                where=folder,
                got="neither config.json nor adapter_config.json in it",
                do="give the --output-dir of duet fit",
            )
        self._tokenizer = load_tokenizer(config.model)
        saved = self._tokenizer.files.get("tokenizer_config.json", b"{}")
        self._window = saved_length(json.loads(saved))
        self._model = load_trained(folder).eval()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model.to(self._device)
        torch.manual_seed(config.seed)

    def answer(self, turns: list[Turn]) -> str:
        """Return the model's answer to the last of ``turns``."""
        ids = source_ids(self._tokenizer, turns, self._window)
        sampling: dict[str, Any] = {"do_sample": False, "num_beams": 1}
        if self._config.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": self._config.temperature,
                "top_p": self._config.top_p,
                "top_k": 0,
            }
        with torch.inference_mode():
            output = self._model.generate(
                torch.tensor([ids], device=self._device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=self._device),
                max_new_tokens=self._config.max_new_tokens,
                **sampling,
            )
        return self._tokenizer.decode(output[0, 1:].tolist())
