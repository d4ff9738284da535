"""What a scheduler asks of whatever writes ids: transformers, or CTranslate2."""

from collections.abc import Hashable, Sequence
from typing import Protocol

from pipeline.generation.engine.answer import Answer


class Decoder(Protocol):
    """Writes the answers that it was given, a few ids at a time."""

    max_rows: int
    """Most answers at once."""
    max_tokens: int
    """Most tokens at once, padding counted: what its memory holds."""
    can_join: bool
    """Whether answers may be added while others are being written."""

    @property
    def running(self) -> list[Answer]:
        """Those that are being written; one that is finished or cancelled leaves soon."""
        ...

    def group(self, answer: Answer) -> Hashable:
        """Return a key: only answers with the same one are written together."""
        ...

    def admit(self, answers: Sequence[Answer]) -> None:
        """Begin to write some answers, of one group."""
        ...

    def step(self) -> None:
        """Write the next id of each running answer, or wait for some."""
        ...

    def tidy(self) -> None:
        """Let go of answers that are finished or cancelled, and end those."""
        ...


def padded_tokens(answers: Sequence[Answer]) -> int:
    """Return the tokens that some answers take together at most, padding counted."""
    if not answers:
        return 0
    longest = max(len(a.source) for a in answers) + max(a.sampling.max_new_tokens for a in answers)
    return longest * sum(a.sampling.num_beams for a in answers)
