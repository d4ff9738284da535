"""Model and rows fit each other: found out from files alone, before anything is made."""

from pipeline.config.views import ModelSettings
from pipeline.errors import ModelError
from pipeline.fit.model.adapter import base_name
from pipeline.fit.model.loading import load_config, model_errors, quiet_transformers
from pipeline.fit.model.sizes import vocabulary_rows
from pipeline.fit.model.token_ids import check_vocabulary, first_new_id, model_token_ids
from pipeline.model_kind import check_model_kind
from pipeline.store.fingerprint import sha256_of_text
from pipeline.template import is_chat_template
from pipeline.tokenizer import TextTokenizer, own_part, template_of


def check_model(
    settings: ModelSettings, tokenizer: TextTokenizer, *, any_template: bool = False
) -> None:
    """Refuse a model that the rows cannot be trained with, by its files without its weights.

    Args:
        settings: Which model.
        tokenizer: The rows', with their template.
        any_template: Whether the rows may be of another template than the model's.

    Raises:
        ModelError: It is no encoder-decoder, reads bytes, or the rows have another vocabulary or
            another chat template.
    """
    name = base_name(settings.name)
    check_model_kind(name, settings.cache_dir)
    if settings.from_scratch:
        return
    with model_errors(name), quiet_transformers():
        own_ids = model_token_ids(name, settings.cache_dir)
    check_vocabulary(name, tokenizer, own_ids)
    rows = vocabulary_rows(load_config(name, settings.cache_dir))
    known = first_new_id(tokenizer)
    if own_ids is None and rows < known:
        raise ModelError(
            "the data were prepared for another model",
            where=name,
            got=f"no tokenizer, and {rows} embedding rows for {known} tokens in the data",
            do="give the model that the data were prepared for",
        )
    if not any_template:
        _check_template(name, tokenizer, settings.cache_dir)


def _check_template(name: str, tokenizer: TextTokenizer, cache_dir: str | None) -> None:
    """Refuse rows of one template for a model of another; a model without one takes any."""
    said = template_of(name, cache_dir)
    if said is None:
        return
    model = None if is_chat_template(said) else own_part(said)
    rows = tokenizer.template.own if tokenizer.template else None
    if rows != model:
        raise ModelError(
            "the data were prepared with another chat template than the model's",
            where=name,
            got=f"{_named(rows)} in the data, {_named(model)} with the model",
            do=f"run duet prepare with --model-name-or-path {name}; with --chat-template duet, "
            "too, if it is to learn the tagged text",
        )


def _named(template: str | None) -> str:
    """Return a template's name: how it begins, and a hash of all of it."""
    if template is None:
        return "the tagged text (### Human:)"
    beginning = " ".join(template.split())[:40]
    return f"{beginning!r}… ({sha256_of_text(template)[:8]})"
