"""Text to ids and back, for both stages, without torch or transformers.

A T5's vocabulary becomes the lossless tokenizer (``lossless.py``); a folder whose tokenizer is
that one already is used as it is; a tokenizer that is no T5's goes through its own fast
tokenizer, unchanged. What is saved beside the rows is what ``AutoTokenizer`` loads.
"""

from pipeline.tokenizer.files import TOKENIZER_FILES, VOCABULARY_FILES, copy_tokenizer, source_files
from pipeline.tokenizer.loading import load_tokenizer, tokenizer_of
from pipeline.tokenizer.text import TextTokenizer

__all__ = [
    "TOKENIZER_FILES",
    "VOCABULARY_FILES",
    "TextTokenizer",
    "copy_tokenizer",
    "load_tokenizer",
    "source_files",
    "tokenizer_of",
]
