"""The first stage: ShareGPT records in, a prepared folder out. ``prepare(config)`` runs it.

sources.py       paths         -> files, in order
formats.py       a file        -> what it is, and its bytes, unpacked
reader.py        bytes         -> records and faults, as a stream
records.py       a record      -> Conversation, or the reason why it is none
rejections.py    those reasons -> rejected.jsonl
joining.py       parts         -> whole conversations
cutting.py       conversations -> parts, the pieces that are encoded and kept
making.py        parts         -> a prepared folder's shards, found or made, in order
engine.py        which engine makes parts: workers.py on this machine, ray_engine.py on Ray
                 (ray_driver.py speaks with it, through ray_session.py; it runs ray_task.py)
part_encoder.py  a part        -> its files and counts
pairs.py         conversation  -> the answers that become targets
encoding.py      pairs         -> rows of ids, cut to the window
lines.py         texts         -> ids, each distinct word tokenized once
words.py         words         -> ids, put together from units that are kept
unigram.py       units         -> ids, a table of them at once
tally.py         parts         -> counts
options.py       which settings decide the rows
cache.py         finds an earlier preparation, locks a new one
collector.py     keeps Python's garbage collector out of the way
preparation.py   all of it     -> the prepared folder
stage.py         finds that folder, or has it made
remote_output.py the prepared folder -> a URL
memory.py        the same in memory, nothing on disk
"""

from pipeline.callable_module import make_callable

make_callable(__name__)
