"""Model and rows fit each other: found out from files alone, before anything is made."""

from pipeline.config.views import ModelSettings
from pipeline.errors import ModelError
from pipeline.fit.model.adapter import base_name
from pipeline.fit.model.loading import load_config, model_errors, quiet_transformers
from pipeline.fit.model.sizes import vocabulary_rows
from pipeline.fit.model.token_ids import check_vocabulary, own_token_ids, piece_ids
from pipeline.model_kind import check_model_kind
from pipeline.tokenizer import TextTokenizer


def check_model(settings: ModelSettings, tokenizer: TextTokenizer) -> None:
    """Refuse a model that the rows cannot be trained with, by its files without its weights.

    Raises:
        ModelError: It is no encoder-decoder, reads bytes, or the rows have another vocabulary.
    """
    name = base_name(settings.name)
    check_model_kind(name, settings.cache_dir)
    if settings.from_scratch:
        return
    with model_errors(name), quiet_transformers():
        own_ids = own_token_ids(name, settings.cache_dir)
    check_vocabulary(name, tokenizer, own_ids)
    rows = vocabulary_rows(load_config(name, settings.cache_dir))
    known = min(piece_ids(tokenizer).values(), default=tokenizer.vocab_size)
    if own_ids is None and rows < known:
        raise ModelError(
            "the data were prepared for another model",
            where=name,
            got=f"no tokenizer, and {rows} embedding rows for {known} tokens in the data",
            do="give the model that the data were prepared for",
        )
