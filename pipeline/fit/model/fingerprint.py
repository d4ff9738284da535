"""What a model is known by: a hash of its shape, and one of its weights.

A checkpoint resumes on the same model alone.
"""

import hashlib
from pathlib import Path

from pipeline.fit.model.adapter import base_name
from pipeline.fit.model.loading import load_config, model_errors
from pipeline.fit.model.lora import ADAPTER_FILES, is_adapter
from pipeline.fit.model.sizes import side_config
from pipeline.hub.download import find_model_file
from pipeline.json_object import read_json_object
from pipeline.store.fingerprint import key_of, sha256_of_file

_PIECES, _PIECE_BYTES = 1024, 4096
"""Of each file of weights, what is hashed: every matrix of a large model has some."""
_SHAPE = (
    "model_type d_model "
    "d_ff d_kv num_heads num_layers num_decoder_layers "  # T5 and its like
    "relative_attention_num_buckets feed_forward_proj "
    "encoder_layers decoder_layers encoder_ffn_dim decoder_ffn_dim "  # BART and its like
    "encoder_attention_heads decoder_attention_heads activation_function"
)
"""The settings that say of what shape a model is, apart from the rows of its embedding."""
_SIDE = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
"""The same of a side that has a config of its own: T5Gemma."""


def architecture(name: str, cache_dir: str | None) -> str:
    """Return a name of the kind of model that a run starts from: a hash of its shape.

    A run whose output folder is the model's own writes ``config.json`` there anew, with defaults
    filled in and the embedding grown: what is hashed is the same before and after.
    """
    settings = load_config(base_name(name, cache_dir), cache_dir)
    shape = {field: getattr(settings, field, None) for field in _SHAPE.split()}
    for side in ("encoder", "decoder"):
        if (own := side_config(settings, side)) is not settings:
            shape[side] = {field: getattr(own, field, None) for field in _SIDE.split()}
    return key_of(shape)


def base_weights(name: str, cache_dir: str | None) -> str:
    """Return a name of the weights, and of the adapter that is started from, if it is one.

    An adapter resumes on these alone.
    """
    with model_errors(name):
        weights = name_of_weights(base_name(name, cache_dir), cache_dir)
        if is_adapter(Path(name)):
            weights = key_of([weights, sha256_of_file(Path(name) / ADAPTER_FILES[0])])
        return weights


def name_of_weights(name: str, cache_dir: str | None) -> str:
    """Return a name of the weights in a model's files: a hash of their sizes and many pieces.

    Hashing all of them would take as long as loading them.

    Raises:
        ValueError, OSError: The files cannot be read.
    """
    digest = hashlib.sha256()
    for path in _weight_files(name, cache_dir):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for i in range(_PIECES):
                file.seek(i * size // _PIECES)
                digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()[:24]


def _weight_files(name: str, cache_dir: str | None) -> list[Path]:
    """Return the files that transformers loads a model's weights from."""
    for whole in ("model.safetensors", "pytorch_model.bin"):
        if (path := find_model_file(name, whole, cache_dir)) is not None:
            return [path]
        if (path := find_model_file(name, f"{whole}.index.json", cache_dir)) is not None:
            found = [find_model_file(name, part, cache_dir) for part in files_of_index(path)]
            return [path for path in found if path is not None]
    return []


def files_of_index(index: Path) -> list[str]:
    """Return the names of the files that an index says the weights are in.

    Raises:
        ValueError, OSError: It does not say.
    """
    try:
        return sorted(map(str, set(read_json_object(index)["weight_map"].values())))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{index.name} is damaged: {error!r}") from error
