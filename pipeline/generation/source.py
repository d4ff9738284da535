"""Conversations to the encoder ids of an answer: those that training would have made."""

from dataclasses import replace

from pipeline.conversation import Conversation, Role, Turn
from pipeline.errors import RecordError
from pipeline.prepare.encode.encoders import PairEncoder, make_pair_encoder
from pipeline.prepare.encode.pairs import PairCounts
from pipeline.tokenizer import TextTokenizer

_UNLIMITED = 1 << 30


class SourceEncoder:
    """Makes the encoder rows of conversations that want an answer.

    They are made by what makes the training's rows, with an answer that is then thrown away.

    Args:
        tokenizer: The trained model's.
        model_max_length: Its window.
    """

    def __init__(self, tokenizer: TextTokenizer, model_max_length: int) -> None:
        self._tokenizer, self.model_max_length = tokenizer, model_max_length
        self._encoder = _pair_encoder(tokenizer, model_max_length)

    def ids(self, conversation: Conversation) -> list[int]:
        """Return the ids for the answer that follows a conversation's turns.

        Raises:
            RecordError: No human turn is among them, or the model's template refuses them.
        """
        return _last_row(self._encoder, conversation)

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a text that is all of an encoder row, as training's rows are.

        That of a model's own chat template has its control tokens in it, and nothing around it.
        """
        tokenizer = self._tokenizer
        if tokenizer.template is not None:
            return tokenizer.encode_rendered(text)
        (ids,) = tokenizer.encode_batch([text])
        return [*tokenizer.prefix_ids, *ids, tokenizer.eos_id]

    def dropped_turns(self, conversation: Conversation) -> int:
        """Return how many of the oldest turns the window has no room for."""
        whole = _pair_encoder(self._tokenizer, _UNLIMITED)
        turns = conversation.turns
        first = int(bool(turns) and turns[0].role is Role.SYSTEM)
        most = len(turns) - first - 1
        for count in range(most):
            rest = turns[first + count :]
            if not any(turn.role is Role.HUMAN for turn in rest):
                return count
            shorter = replace(conversation, turns=turns[:first] + rest)
            if len(_last_row(whole, shorter)) <= self.model_max_length:
                return count
        return most


def _pair_encoder(tokenizer: TextTokenizer, length: int) -> PairEncoder:
    return make_pair_encoder(tokenizer, length, length, last_turn_only=True)


def _last_row(encoder: PairEncoder, conversation: Conversation) -> list[int]:
    if not any(turn.role is Role.HUMAN for turn in conversation.turns):
        raise RecordError(
            "a conversation without a question",
            where=conversation.id,
            got=f"{len(conversation.turns)} turns, none of a human",
            do="add a human turn",
        )
    turns = [*conversation.turns, Turn(Role.ASSISTANT, "?")]
    asked = replace(conversation, turns=turns, untrained=frozenset())
    rows = list(encoder.encode([asked], PairCounts()))
    if not rows:
        raise RecordError(
            "the model's chat template does not take this conversation",
            where=conversation.id,
            got=f"{len(conversation.turns)} turns",
            do="shorten it, or leave out what the template has no place for",
        )
    ids: list[int] = rows[-1].column("input_ids")[-1].as_py()
    return ids
