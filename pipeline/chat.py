"""Talks to a trained model, with the template, tokenizer and window of its training."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import ChatConfig
from pipeline.conversation import Role, Turn
from pipeline.errors import ModelError
from pipeline.fit.model import load_trained
from pipeline.template import PROMPT, TAGS, Escaper, header_text, split_system, turn_text
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from pipeline.window import Ids, cut_header, cut_source, make_window, saved_length


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
        elif message.strip():
            turns.append(Turn(Role.HUMAN, message))
            answer = speaker.answer(turns)
            turns.append(Turn(Role.ASSISTANT, answer))
            print(answer, flush=True)


def _read_message() -> str | None:
    print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def source_ids(tokenizer: TextTokenizer, turns: list[Turn], model_max_length: int) -> list[int]:
    """Return the encoder ids for the answer to ``turns``: those that training would have made."""
    window = make_window(tokenizer, model_max_length, PROMPT, np.int64)
    escape = Escaper(tokenizer.normalize)
    sentence, first = split_system(turns)
    texts = [header_text(sentence, escape), *(turn_text(turn, escape) for turn in turns[first:])]
    ids: list[Ids] = [np.array(ids, np.int64) for ids in tokenizer.encode_batch(texts)]
    header, _ = cut_header(ids[0], window)
    (tag,) = tokenizer.encode_batch([TAGS[turns[-1].role]])
    row, _ = cut_source(header, ids[1:], len(tag), window)
    return [int(i) for i in row]


class Speaker:
    """A trained model that answers."""

    def __init__(self, config: ChatConfig) -> None:
        """Load model and tokenizer."""
        self._config = config
        folder = Path(config.model)
        if not (folder / "config.json").is_file():
            raise ModelError(
                "no trained model",
                where=folder,
                got="no config.json in it",
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
