r"""Adds rules to a character map as SentencePiece compiles it, so that it starts lines as we do.

Our tokenizer gives each line T5's dummy ``▁``; SentencePiece gives one to each text. A rule that
puts a space after each run of newlines and tabs makes the same ids of it, for whoever reads
``spiece.model`` (SentencePiece itself, llama.cpp), and a rule back makes the same text.

A map is a double-array trie (darts-clone) over UTF-8, with what stands for each key:

    size of the trie in bytes: u32 | units: u32 each | replacements, each ended by a zero byte

    unit of a node:  label in bits 0-7 | bit 8: a key ends here | offset in bits 10-30
    unit of a value: bit 31 | where its replacement begins

A node's children lie at ``node ^ offset ^ label``, its value at ``node ^ offset``.
"""

import itertools
import struct
from collections.abc import Iterator, Mapping

_EMPTY = struct.pack("<II1020x", 1024, 1 << 10)
_BLOCK = 256
_ENDS, _VALUE, _LABEL = 1 << 8, 1 << 31, 0xFF
_OFFSET = 10
_LONGEST = 31
"""Most keys that SentencePiece follows from one place are 32, so no run can be longer."""
_MIXED = 8


def starts_lines(charsmap: bytes) -> bytes:
    r"""Return a map that also puts a space after each run of newlines and tabs.

    Runs of more than 31, and runs of more than eight in which newlines follow tabs, are no keys:
    a longer one is taken in pieces, with a space after each.
    """
    lines_then_tabs = (
        "\n" * lines + "\t" * (size - lines)
        for size in range(1, _LONGEST + 1)
        for lines in range(size + 1)
    )
    mixed = (
        "".join(run)
        for size in range(1, _MIXED + 1)
        for run in itertools.product("\n\t", repeat=size)
    )
    return extended(charsmap, {run: run + " " for run in {*lines_then_tabs, *mixed}})


def ends_lines() -> bytes:
    """Return the map of a text that is decoded: the space after a newline or a tab goes."""
    return extended(_EMPTY, {"\n ": "\n", "\t ": "\t"})


def extended(charsmap: bytes, rules: Mapping[str, str]) -> bytes:
    """Return a map with more rules.

    Args:
        charsmap: The map; what it has under the rules' first characters is dropped.
        rules: Text by key. Keys consist of newlines, tabs and spaces; a key that is the beginning
            of a longer one is no trouble.

    Returns:
        The new map; ``charsmap`` as it is where the place of a first character is taken in it.
    """
    charsmap = charsmap or _EMPTY
    (size,) = struct.unpack_from("<I", charsmap)
    units = list(struct.unpack_from(f"<{size // 4}I", charsmap, 4))
    units += [0] * (-len(units) % _BLOCK)
    replacements = bytearray(charsmap[4 + size :])
    root = units[0] >> _OFFSET
    prefixes = {key[:end] for key in rules for end in range(1, len(key) + 1)}
    nodes = {prefix: root ^ ord(prefix) for prefix in prefixes if len(prefix) == 1}
    if any(units[node] and units[node] & _LABEL != ord(key) for key, node in nodes.items()):
        return charsmap
    free = _free_bases(units)
    for prefix in sorted(prefixes, key=lambda prefix: (len(prefix), prefix)):
        node, base = nodes[prefix], next(free)
        units[node] = (node ^ base) << _OFFSET | ord(prefix[-1])
        for label in "\n\t ":
            if prefix + label in prefixes:
                nodes[prefix + label] = base ^ ord(label)
        if prefix in rules:
            units[node] |= _ENDS
            units[base] = _VALUE | len(replacements)
            replacements += rules[prefix].encode() + b"\0"
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + bytes(replacements)


def _free_bases(units: list[int]) -> Iterator[int]:
    """Yield bases whose value and children by newline, tab and space nobody else has."""
    # Closed under exclusive or, so that what stands at one base never is at another.
    closed = {a ^ b ^ c for a in (0, 0x0A) for b in (0, 0x09) for c in (0, 0x20)}
    bases = [base for base in range(_BLOCK) if base == min(base ^ each for each in closed)]
    while True:
        start = len(units)
        units += [0] * _BLOCK
        yield from (start + base for base in bases)
