"""The first stage: ShareGPT records in, a prepared folder out. ``prepare(config)`` runs it.

sources.py   paths        -> files, in order
reader.py    a file       -> records and faults, as a stream
records.py   a record     -> Conversation, or the reason why it is none
joining.py   parts        -> whole conversations, repeats left out
pairs.py     conversation -> the answers that become targets
encoding.py  pairs        -> rows of ids, cut to the window
stage.py     all of it    -> the prepared folder
"""

from pipeline.callable_module import make_callable

make_callable(__name__)
