"""What an engine is asked to do: tasks, each called with the SegmentEncoder of its process first.

They stand apart from it, so that a parent with workers hands them over without NumPy and Arrow,
whose imports would be a third of its time.
"""

from typing import TYPE_CHECKING

from pipeline.prepare.encode.chunk_content import Edit
from pipeline.prepare.files.anchors import Anchor
from pipeline.prepare.files.segments import Piece, Segment
from pipeline.store.chunk_cache import Chunk

if TYPE_CHECKING:
    from pipeline.prepare.encode.segment_encoder import SegmentEncoder


def anchors(
    encoder: "SegmentEncoder", whole: Piece, start: int, end: int, usual: int
) -> list[Anchor]:
    """Return the anchors in a stretch of a file."""
    return encoder.anchors(whole, start, end, usual)


def row_ranges(encoder: "SegmentEncoder", whole: Piece, usual: int) -> list[tuple[int, int]]:
    """Return the ranges of rows that a table is read in."""
    return encoder.row_ranges(whole, usual)


def encode(encoder: "SegmentEncoder", segment: Segment) -> Chunk | None:
    """Return the chunk of a segment; None where the segment is not clean."""
    return encoder.encode(segment)


def edit(encoder: "SegmentEncoder", segment: Segment, chunk: Chunk, change: Edit) -> Chunk:
    """Return a segment's chunk as the segments around its own want it."""
    return encoder.edit(segment, chunk, change)


def tokenizer_files(encoder: "SegmentEncoder") -> dict[str, bytes]:
    """Return the files of the tokenizer, to be kept beside the rows."""
    settings = encoder.settings
    return settings.tokenizer.saved_files(model_max_length=settings.model_max_length)
