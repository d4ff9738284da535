"""A conversation to its pairs: which assistant turns become targets, and why others do not."""

from collections import Counter
from collections.abc import Sequence

from pipeline.conversation import Role, Turn


def answer_turns(turns: Sequence[Turn], reasons: Counter[str]) -> list[int]:
    """Return the indices of the turns that are answers.

    An answer is an assistant turn with a human turn somewhere before it that is not blank. The
    others are counted in ``reasons`` and stay in the history of later answers.

    >>> counts = Counter()
    >>> human, assistant = Role.HUMAN, Role.ASSISTANT
    >>> turns = [Turn(assistant, "Hi"), Turn(human, "2+2?"), Turn(assistant, "4"),
    ...          Turn(human, "3+3?"), Turn(assistant, " ")]
    >>> answer_turns(turns, counts)
    [2]
    >>> dict(counts)
    {'answer_without_question': 1, 'empty_answer': 1}
    """
    answers, asked = [], False
    for i, turn in enumerate(turns):
        if turn.role is Role.HUMAN:
            asked = True
        elif turn.role is Role.ASSISTANT:
            if not asked:
                reasons["answer_without_question"] += 1
            elif not turn.text.strip():
                reasons["empty_answer"] += 1
            else:
                answers.append(i)
    return answers
