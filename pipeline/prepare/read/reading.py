"""Files to parts: records are parsed, joined, chosen, cut, and all that is left out is kept."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pipeline.config import PrepareConfig
from pipeline.conversation import Conversation, Place
from pipeline.logs import ByteProgress
from pipeline.prepare.cutting import Part, cut_parts
from pipeline.prepare.encode.dataset_stats import Tally
from pipeline.prepare.found import Fault, Known, Record
from pipeline.prepare.passage_log import PassageLog
from pipeline.prepare.read.joining import join_parts
from pipeline.prepare.read.reader import Find, read_records
from pipeline.prepare.read.records import RecordCounts, parse_record, roles_with
from pipeline.prepare.read.rejections import RejectedFile, content_of, rejection_of
from pipeline.prepare.read.sources import Source
from pipeline.prepare.read.values import RejectedError
from pipeline.store.fingerprint import (
    ContentHash,
    accepted_frame,
    rejected_frame,
    turns_digest,
)
from pipeline.store.passages import Rejection


class Reading:
    """Reads some files once, and knows afterwards what was in them.

    Args:
        config: The settings.
        sources: The files, in order.
        log: Keeps what is read for later runs.
        find: Finds what earlier runs kept; None: nothing is known.
    """

    def __init__(
        self,
        config: PrepareConfig,
        sources: Sequence[Source],
        log: PassageLog,
        find: Find | None,
    ) -> None:
        """Open nothing yet."""
        self._config, self._sources = config, sources
        self._log, self._find = log, find
        self._roles = roles_with(config.extra_roles())
        self._seen = set[bytes]()
        self.tally, self.content = Tally(), ContentHash()
        self.source_counts = [Counter[str]() for _ in sources]
        self.source_forms = [Counter[str]() for _ in sources]
        """How many records of each file were read in another form than a list of turns."""
        self._noted = RecordCounts()
        self.first_rejection = ""

    def parts(
        self, key_of: Callable[[Part], str], progress: ByteProgress, rejected: RejectedFile
    ) -> Iterator[Part | Known]:
        """Yield the parts, in order.

        Args:
            key_of: Returns a part's key.
            progress: Hears of each byte.
            rejected: Takes what is left out.
        """
        self._rejected = rejected
        for part in cut_parts(self._chosen(progress)):
            if isinstance(part, Known):
                self._take(part)
            else:
                self._log.part(part, key_of(part))
            yield part

    def _chosen(self, progress: ByteProgress) -> Iterator[tuple[Conversation, bytes] | Known]:
        """Yield the conversations that are kept, joined and without repeats, and their digests."""
        records = self._accepted(progress)
        for found in join_parts(records) if self._config.join_parts else records:
            if isinstance(found, Known):
                if self._agrees(found):
                    yield found
                continue
            digest = turns_digest(found.turns, found.tools)
            is_kept = self._is_kept(digest)
            self._log.conversation(found.place, found.id, digest, is_kept=is_kept)
            if is_kept:
                yield found, digest

    def _is_kept(self, digest: bytes) -> bool:
        """Take in a conversation; tell whether it is none that was there before."""
        self.content.conversation(digest)
        if self._config.dedup:
            if digest in self._seen:
                self.tally.reasons["duplicate"] += 1
                return False
            self._seen.add(digest)
        self.tally.conversations += 1
        return True

    def _agrees(self, known: Known) -> bool:
        """Tell whether the same conversations of a passage are repeats as when it was read."""
        if not self._config.dedup:
            return True
        seen = set[bytes]()
        for name, is_kept in known.passage.conversations:
            digest = bytes.fromhex(name)
            if is_kept == (digest in self._seen or digest in seen):
                return False
            seen.add(digest)
        return True

    def _take(self, known: Known) -> None:
        """Take in all that reading a passage would give."""
        passage, place = known.passage, known.place
        assert place is not None, "it was looked at"
        self._log.known(place)
        self.source_counts[place.file]["records"] += passage.records
        self.tally.accepted += passage.records - len(passage.rejections)
        self.content.records(passage.frames)
        for rejection in passage.rejections:
            position = known.position + rejection.position
            self._leave_out(replace(rejection, position=position), place.file)
        for digest, _ in passage.conversations:
            self._is_kept(bytes.fromhex(digest))

    def _accepted(self, progress: ByteProgress) -> Iterator[Conversation | Known]:
        """Yield the records that are conversations, and leave out the others."""
        for file, source in enumerate(self._sources):
            for found in read_records(source, progress.advance, self._find):
                if isinstance(found, Known):
                    if self._is_followed(found, file):
                        yield found
                else:
                    conversation = self._conversation(found, file)
                    if conversation is not None:
                        yield conversation

    def _conversation(self, found: Record | Fault, file: int) -> Conversation | None:
        """Return the conversation in a record; None where it is left out."""
        self.source_counts[file]["records"] += 1
        place = None if found.offset is None else Place(file, found.offset)
        try:
            conversation = self._parse(found)
        except RejectedError as error:
            rejection = rejection_of(found, error)
            self._note(place, rejected_frame(error.reason, content_of(found, error)), rejection)
            self._leave_out(rejection, file)
            return None
        self.tally.accepted += 1
        if self._noted:  # what is counted of a record is not in a passage
            self.tally.records.update(self._noted)
            self.source_forms[file].update(self._noted.forms)
            self._noted = RecordCounts()
        elif not (conversation.untrained or conversation.tools):
            conversation.place = place
        self._note(conversation.place, accepted_frame(conversation), None)
        return conversation

    def _note(self, place: Place | None, frame: str, rejection: Rejection | None) -> None:
        self.content.records(frame)
        self._log.record(place, frame, rejection)

    def _parse(self, found: Record | Fault) -> Conversation:
        """Return the conversation in a record; what is counted of it is noted."""
        if isinstance(found, Fault):
            raise RejectedError(found.reason, found.detail)
        return parse_record(
            found.value, self._roles, self._noted, clean_html=self._config.clean_html
        )

    def _is_followed(self, known: Known, file: int) -> bool:
        """Tell whether there is a conversation behind a passage; note which."""
        try:
            known.next_conversation = self._parse(known.following)
        except RejectedError:
            return False
        self._noted = RecordCounts()  # it is read again
        known.place = Place(file, known.offset)
        return True

    def _leave_out(self, rejection: Rejection, file: int) -> None:
        name = self._sources[file].name
        self.source_counts[file]["rejected"] += 1
        self.tally.rejected += 1
        self.tally.reasons[rejection.reason] += 1
        self.first_rejection = self.first_rejection or (
            f"; the first: {name}, record {rejection.position}, "
            f"{rejection.reason}: {rejection.detail}"
        )
        self._rejected.write(name, rejection)
