"""Text to ids and back, for both stages, without torch or transformers.

A T5's vocabulary becomes the lossless tokenizer (``lossless.py``); a folder whose tokenizer is
that one already is used as it is; a tokenizer that is no T5's goes through its own fast
tokenizer, unchanged but that no text gives a control id. What is saved beside the rows is what
``AutoTokenizer`` loads; its chat template is the one that makes the rows.
"""

from pipeline.hub.model_files import TOKENIZER_FILES, VOCABULARY_FILES
from pipeline.tokenizer.files import copy_tokenizer
from pipeline.tokenizer.loading import TemplateChoice, load_tokenizer, template_of, tokenizer_of
from pipeline.tokenizer.model_template import RefusedError
from pipeline.tokenizer.preamble import own_part
from pipeline.tokenizer.text import TextTokenizer

__all__ = [
    "TOKENIZER_FILES",
    "VOCABULARY_FILES",
    "RefusedError",
    "TemplateChoice",
    "TextTokenizer",
    "copy_tokenizer",
    "load_tokenizer",
    "own_part",
    "template_of",
    "tokenizer_of",
]
