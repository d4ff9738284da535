"""What a prepared folder holds, for people: ``duet inspect``.

``stage`` puts it together out of pairs (rows as texts, with what was cut), fidelity (what comes
back exactly) and left_out (what was read, what was not, and why).
"""

from collections.abc import Iterator

from pipeline.config import InspectConfig
from pipeline.inspection.stage import description


def inspect_prepared(config: InspectConfig) -> Iterator[str]:
    """Yield the lines of a description of a prepared folder, as plain text.

    Raises:
        PreparedFolderError: The folder is missing, incomplete or damaged.
        InputError: What was asked for is not in it.
    """
    for line in description(config):
        yield from line.plain.split("\n")
