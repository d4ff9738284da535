"""A chat: its turns so far, and what is done to them."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.console.terminal import visible
from pipeline.conversation import Conversation, Role, Turn
from pipeline.errors import DuetError, InputError
from pipeline.generation.chat.terminal import say
from pipeline.generation.conversations import read_conversations
from pipeline.prepare.files.reading import find_files
from pipeline.prepare.read.values import clean
from pipeline.store.atomic import write_file

HELP = """\
/new         start over           /undo        take back the last question and its answer
/retry       answer it again      /system TEXT in place of the usual header; none: the usual
/save FILE   write the chat       /load FILE   continue the first conversation of a file
/help        this                 ctrl-c ends an answer, ctrl-d the chat"""

_FROM = {Role.HUMAN: "human", Role.ASSISTANT: "gpt", Role.SYSTEM: "system", Role.TOOL: "tool"}


@dataclass(slots=True)
class Session:
    """The turns of a chat."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    """Without the system turn."""

    def conversation(self) -> Conversation:
        """Return the chat as the model is asked it."""
        first = [Turn(Role.SYSTEM, self.system)] if self.system else []
        turns = [*first, *self.turns]
        return Conversation("chat", [turn._replace(text=clean(turn.text)) for turn in turns])

    def undo(self) -> Turn | None:
        """Take back the last question and what followed; return it, if there was one."""
        humans = [i for i, turn in enumerate(self.turns) if turn.role is Role.HUMAN]
        if not humans:
            return None
        question = self.turns[humans[-1]]
        del self.turns[humans[-1] :]
        return question

    def save(self, path: Path) -> None:
        """Write the chat as a ShareGPT record, which ``prepare`` and ``/load`` read.

        Raises:
            OutputError: It cannot be written.
        """
        turns = [{"from": _FROM[t.role], "value": t.text} for t in self.conversation().turns]
        write_file(path, json.dumps([{"conversations": turns}], ensure_ascii=False, indent=2))

    def load(self, path: Path) -> None:
        """Go on with the first conversation of a file.

        Raises:
            InputError: There is none.
        """
        if not path.is_file():
            raise InputError(
                "no such file",
                where=path,
                got="nothing there" if not path.exists() else "a folder",
                do="give a file that /save wrote, or a ShareGPT export",
            )
        for item in read_conversations(find_files([str(path)])):
            if item.conversation is not None:
                turns = item.conversation.turns
                is_system = turns[0].role is Role.SYSTEM
                self.system = turns[0].text if is_system else None
                self.turns = list(turns[is_system:])
                return
        raise InputError(
            "no conversation in the file",
            where=path,
            got="no record of one",
            do="give a file that /save wrote, or a ShareGPT export",
        )


def run_command(session: Session, line: str) -> Turn | None:
    """Carry out a line that begins with a slash.

    Returns:
        A question to ask (again), if the command means that.
    """
    name, _, argument = line.strip().partition(" ")
    argument = argument.strip()
    if name == "/retry":
        question = session.undo()
        if question is None:
            say("there is no question yet")
        return question
    try:
        say(visible(_done(session, name, argument)))
    except DuetError as error:
        say(visible(str(error)))
    return None


def _done(session: Session, name: str, argument: str) -> str:
    """Carry out a command other than ``/retry``; return what to say of it."""
    if name == "/new":
        session.turns.clear()
        return "a new conversation"
    if name == "/undo":
        question = session.undo()
        return "there is no question yet" if question is None else "the last question is gone"
    if name == "/system":
        session.system = argument or None
        return "a new system text" if argument else "the usual header"
    if name in ("/save", "/load"):
        if not argument:
            return f"{name} needs the name of a file"
        path = Path(argument).expanduser()
        if name == "/save":
            session.save(path)
            return f"{len(session.turns)} turns in {path}"
        session.load(path)
        return f"{len(session.turns)} turns from {path}"
    if name == "/help":
        return HELP
    return f"no such command: {name}; see /help. To say it to the model, put a blank before it."
