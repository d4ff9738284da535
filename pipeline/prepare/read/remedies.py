"""What to do about records and answers that were left out, by the reason for most of them."""

from collections.abc import Mapping

REMEDIES = {
    "broken_arrow": "get the file again: it is cut off or damaged, as after a broken download",
    "broken_json": "write the records as JSON, as json.dump(…, allow_nan=False) does",
    "broken_parquet": "get the file again: it is cut off or damaged, as after a broken download",
    "cut_off": "get the whole file: it ends too early, as after a broken download",
    "invalid_utf8": "save the file as UTF-8",
    "no_turns": "give records with turns in them",
    "not_text": "give conversations of text alone",
    "unknown_role": "say who speaks: --role NAME=human, --role NAME=assistant",
    "wrong_shape": "write the records in a form that is read: the docs, data.md, have a table",
    "answer_without_question": "give conversations in which a human speaks first",
    "empty_answer": "give answers with text in them",
    "not_trained": 'take "weight": 0 and "train": false from the answers that are meant',
    "question_without_answer": "give conversations in which the assistant answers",
    "template_refused": "give --chat-template duet, or a longer --model-max-length",
    "unknown_answer": "take a model whose vocabulary has the answers' characters",
}
"""Advice, in a few words, for each reason that leaves out a record or an answer."""

_NO_RECORDS = "give a file with records in it"


def remedy_for(reasons: Mapping[str, int]) -> str:
    """Return what to do where these reasons left nothing: about the commonest of them.

    >>> remedy_for({"no_pair": 9, "empty_answer": 3, "not_trained": 5})
    'take "weight": 0 and "train": false from the answers that are meant'
    """
    found = [name for name in reasons if name in REMEDIES]
    return REMEDIES[max(found, key=lambda name: reasons[name])] if found else _NO_RECORDS
