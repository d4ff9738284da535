"""Talks to a trained model, with the template, tokenizer and window of its training."""

import sys
from pathlib import Path

from pipeline.console.terminal import visible
from pipeline.conversation import Role, Turn
from pipeline.generation.chat.session import Session, run_command
from pipeline.generation.chat.terminal import input_history, read_message, say
from pipeline.generation.config import ChatConfig
from pipeline.generation.engine.scheduler import Engine
from pipeline.generation.model import TrainedModel, open_model

_STOPPED = "(stopped)"


def chat(config: ChatConfig) -> None:
    """Answer one message, or each line that is typed until the end of input.

    Answers go to stdout, everything else to stderr.

    Raises:
        InputError, ModelError: The folder holds no model that can be loaded.
        ConfigError: A package is missing, or an answer would be too long.
    """
    model = open_model(Path(config.model), config)
    with model.engine() as engine, input_history():
        chatting = _Chat(config, model, engine)
        if config.message is not None:
            if not chatting.answer(Turn(Role.HUMAN, config.message)):
                raise KeyboardInterrupt
            return
        say("Type a message; /help lists commands, ctrl-d ends.")
        while (line := chatting.next_line()) is not None:
            chatting.take(line)


class _Chat:
    """A chat with a model."""

    def __init__(self, config: ChatConfig, model: TrainedModel, engine: Engine) -> None:
        self._config, self._model, self._engine = config, model, engine
        self._session = Session(system=config.system)
        self._answers = self._dropped = 0

    def next_line(self) -> str | None:
        """Return the next line that is typed; ctrl-c takes back what is half typed."""
        while True:
            try:
                return read_message()
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                say("\nctrl-d ends the chat")

    def take(self, line: str) -> None:
        """Answer a message, or carry out a command."""
        if not line.strip():
            return
        question: Turn | None = Turn(Role.HUMAN, line)
        if line.startswith("/"):
            question = run_command(self._session, line)
        if question is not None:
            self.answer(question)

    def answer(self, question: Turn) -> bool:
        """Answer a question on stdout as the words come; return whether it came to its end."""
        session = self._session
        session.turns.append(question)
        self._tell_of_window()
        # Each answer draws anew: the first with the seed itself.
        sampling = self._model.sampling(self._config, seed=self._config.seed + self._answers)
        self._answers += 1
        answer = self._engine.submit(self._model.source.ids(session.conversation()), sampling)
        pieces = []
        try:
            for piece in answer:
                pieces.append(piece)
                print(visible(piece), end="", flush=True)
            is_whole = True
        except KeyboardInterrupt:
            answer.cancel()
            is_whole = False
        print(flush=True)
        if not is_whole:
            say(_STOPPED)
        session.turns.append(Turn(Role.ASSISTANT, "".join(pieces)))
        return is_whole

    def _tell_of_window(self) -> None:
        """Say when more turns than before have no room in the window."""
        dropped = self._model.source.dropped_turns(self._session.conversation())
        if dropped > self._dropped:
            length = self._model.source.model_max_length
            turns = "the first turn" if dropped == 1 else f"the first {dropped} turns"
            say(f"(the window of {length:,} tokens has no room for {turns})")
        self._dropped = dropped
