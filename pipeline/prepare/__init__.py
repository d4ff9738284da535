"""The first stage: ShareGPT records in, a prepared folder out. ``prepare(config)`` runs it.

sources.py     paths         -> files, in order
formats.py     a file        -> what it is, and its bytes, unpacked
reader.py      bytes         -> records and faults, as a stream
records.py     a record      -> Conversation, or the reason why it is none
rejections.py  those reasons -> rejected.jsonl
joining.py     parts         -> whole conversations, repeats left out
pairs.py       conversation  -> the answers that become targets
encoding.py    pairs         -> rows of ids, cut to the window
workers.py     batches       -> rows, in order, in one process or several
tally.py       batches       -> counts
cache.py       finds an earlier preparation, locks a new one
stage.py       all of it     -> the prepared folder
memory.py      the same in memory, nothing on disk
"""

from pipeline.callable_module import make_callable

make_callable(__name__)
