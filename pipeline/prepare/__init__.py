"""The first stage: ShareGPT records in, a prepared folder out. ``prepare(config)`` runs it.

In the order of the data:

files/           paths -> files, files -> segments, a segment -> the JSON values or rows in it
  sources          paths           -> files, in order
  file_kind        a file          -> how it is read, or what it is instead
  file_index       knows the files that earlier runs read
  anchors          text            -> places where it may be cut, chosen by its content
  planning         files           -> segments
  segments         a segment       -> records and faults
  json_values      text            -> the values in it          (tables: rows of Parquet and Arrow)
  elements         a value         -> the records that it is made of
  text_window      bytes           -> the text around the place that is read
  streams          a file          -> its bytes, unpacked
read/            a record -> a conversation, or the reason why it is none; parts -> conversations
encode/          a segment -> its chunk of rows (segment_encoder: all that a worker does)
  by_line/         rows of the lossless tokenizer, each text tokenized once
  whole_texts/     rows of a model's own chat template, or of another tokenizer
  rows/            what both share: which answers, what they lose, the columns
engines/         where that is done: here, in other processes, on a Ray cluster
  ordering         segments        -> chunks, in order, joined, without repeats
preparation.py   chunks          -> the prepared folder          (collected: what is counted)
cache.py         finds an earlier preparation, locks a new one
stage.py         finds that folder, or has it made; copies it to a URL
options.py       which settings decide the rows (encode/settings.py: with the tokenizer)
memory.py        the same in memory, nothing on disk
"""

from pipeline.callable_module import make_callable

make_callable(__name__)
