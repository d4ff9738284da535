r"""Conversations to rows of ids where a source is tokenized as one text: slower, for any tokenizer.

So it is with a model's own chat template, whose text is known only when it is rendered, and with
tokenizers whose pieces cross lines. What does not fit the window is left out of the conversation,
not of the ids: a row's source is always the text of some conversation.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from pipeline.conversation import Conversation
from pipeline.prepare.encode.pairs import PairCounts, answer_turns
from pipeline.prepare.encode.rows.batch import Rows
from pipeline.prepare.encode.rows.losses import losses
from pipeline.prepare.encode.rows.targets import Targets
from pipeline.prepare.encode.rows.unknown import Unknowns
from pipeline.prepare.encode.whole_texts.fitting import SourceFitter
from pipeline.store.shards import id_dtype, row_schema
from pipeline.tokenizer import TextTokenizer
from pipeline.window import Ids


class WholeTextEncoder:
    """Makes the rows of conversations, in their order.

    Args:
        tokenizer: The tokenizer.
        model_max_length: Most ids of an encoder row.
        target_length: Most ids of a decoder row; an answer that is cut has no end token.
        last_turn_only: Make a pair of each conversation's last answer alone.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        model_max_length: int,
        target_length: int,
        *,
        last_turn_only: bool = False,
    ) -> None:
        self.schema = row_schema(tokenizer.vocab_size)
        self._dtype = id_dtype(self.schema)
        self._tokenizer = tokenizer
        self._fitter = SourceFitter(tokenizer, model_max_length)
        unknowns = Unknowns(tokenizer, has_words=False)
        self._targets = Targets(
            tokenizer, target_length, unknowns, self._dtype, last_turn_only=last_turn_only
        )

    def encode(
        self, conversations: Sequence[Conversation], counts: PairCounts
    ) -> Iterator[pa.RecordBatch]:
        """Yield all pairs of some conversations, as batches of ``row_schema``.

        Args:
            conversations: Each is tokenized by itself.
            counts: What was left out, cut or lost is counted here.
        """
        each, rows = [PairCounts() for _ in conversations], Rows()
        for conversation, own in zip(conversations, each, strict=True):
            answers = self._answers(conversation, own)
            fit = self._fitter.of(conversation)
            for at, answer in answers:
                source = fit(at, own.reasons)
                if source is None:
                    own.reasons["template_refused"] += 1
                    continue
                labels, is_cut = self._targets.cut(answer)
                own.reasons["answer_cut"] += is_cut
                rows.add([np.array(source, self._dtype)], labels, conversation.id, at)
                own.rows += 1
                if rows.is_full:
                    yield rows.batch(self.schema)
                    rows = Rows()
            if answers and not own.rows:
                own.reasons["no_pair"] += 1
        if rows.turns:
            yield rows.batch(self.schema)
        self._targets.count_lost()
        counts.take(each)

    def _answers(self, conversation: Conversation, counts: PairCounts) -> list[tuple[int, Ids]]:
        """Return the answers that become rows: turn and ids of each, uncut."""
        turns = conversation.turns
        answers = answer_turns(turns, counts.reasons, conversation.untrained)
        if not answers:
            counts.reasons["no_pair"] += 1
            return []
        ids = self._tokenizer.encode_batch([turns[at].text for at in answers])
        found = [(at, np.array(i, self._dtype), True) for at, i in zip(answers, ids, strict=True)]
        chosen = self._targets.choose(found, conversation, counts)
        for at, answer in chosen:
            lost = losses(turns[at].text, answer.tolist(), self._tokenizer)
            counts.reasons.update(lost)
        return chosen
