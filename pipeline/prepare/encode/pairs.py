"""A conversation to its pairs: which assistant turns become targets, and why others do not."""

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from pipeline.conversation import Role, Turn, has_visible


@dataclass(slots=True)
class PairCounts:
    """What is counted while conversations become rows."""

    reasons: Counter[str] = field(default_factory=Counter)
    """What was left out or cut, by name."""
    answers_with_unknown: int = 0
    """Rows whose answer holds a token that the vocabulary does not know."""
    lost: Counter[str] = field(default_factory=Counter)
    """The characters that these answers lost."""
    rows: int = 0
    """How many there are."""
    each: "list[PairCounts]" = field(default_factory=list)
    """The same of each conversation, in order."""

    def take(self, each: "Sequence[PairCounts]") -> None:
        """Take in the counts of conversations, one by one."""
        for counts in each:
            if counts.reasons:  # most have none, and an update takes long
                self.reasons.update(counts.reasons)
            if counts.lost:
                self.lost.update(counts.lost)
            self.answers_with_unknown += counts.answers_with_unknown
            self.rows += counts.rows
        self.each += each


def answer_turns(
    turns: Sequence[Turn], reasons: Counter[str], untrained: Set[int] = frozenset()
) -> list[int]:
    """Return the indices of the turns that are answers, as far as text alone tells.

    An answer is an assistant turn with a human turn somewhere before it that is trained and has a
    visible character. The others are counted in ``reasons`` and stay in the history of later
    answers.

    Args:
        turns: Of a conversation.
        reasons: Takes the counts.
        untrained: Indices of turns that are history only.

    >>> counts = Counter()
    >>> human, assistant = Role.HUMAN, Role.ASSISTANT
    >>> turns = [Turn(assistant, "Hi"), Turn(human, "2+2?"), Turn(assistant, "4"),
    ...          Turn(human, "3+3?"), Turn(assistant, " "), Turn(assistant, "5"), Turn(human, "?")]
    >>> answer_turns(turns, counts, untrained={5})
    [2]
    >>> for name, count in counts.items():
    ...     print(name, count)
    answer_without_question 1
    empty_answer 1
    not_trained 1
    question_without_answer 1
    """
    answers, asked, unanswered = [], False, 0
    for i, turn in enumerate(turns):
        if turn.role is Role.HUMAN:
            asked = True
            unanswered += 1
        elif turn.role is Role.ASSISTANT:
            unanswered = 0
            if not asked:
                reasons["answer_without_question"] += 1
            elif i in untrained:
                reasons["not_trained"] += 1
            elif not has_visible(turn.text):
                reasons["empty_answer"] += 1
            else:
                answers.append(i)
    if unanswered:
        reasons["question_without_answer"] += unanswered
    return answers
