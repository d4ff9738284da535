"""LoRA: small matrices beside frozen layers, and the rows of the new pieces, those rows alone.

A branch in how a model is built: what comes out is trained, saved and resumed as any other model.
The adapter is a folder in PEFT's own layout and needs nothing of this project to be loaded:

    adapter_config.json  adapter_model.safetensors  the tokenizer's files

The nine pieces have untrained rows in Flan-T5, so a frozen embedding would never write a newline.
PEFT trains chosen rows (``trainable_token_indices``), but takes every T5 for a tied one, for so
says its config in transformers 5, and would put the rows of ``shared`` into an untied ``lm_head``.
It leaves apart what has other indices: the same ones in another order are enough.

With ``--quantize 4bit`` the frozen layers are in four bits (QLoRA): NF4 with its scales quantized
again, 4.13 bits a weight in place of 32; a layer is expanded for each product. Embeddings, the
output matrix with the rows of the new pieces, norms, and the layers that transformers keeps in
float32 (T5's ``wo``) stay as they are.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.config.views import LoraSettings
from pipeline.errors import ConfigError, ModelError, require_package
from pipeline.fit.model.embedding import embedding_weights, is_tied
from pipeline.fit.model.families import NO_TEXT
from pipeline.hub.download import permission_errors

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
TARGETS = (
    *("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"),  # T5 and its like
    *("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),  # BART and its like
    *("o_proj", "gate_proj", "up_proj", "down_proj"),  # Gemma
)
"""The matrices of attention and feed-forward; a model has some of them."""
WHOLE = ("lm_head", "shared")
"""What is never quantized: a piece of theirs is trained."""
QUANTIZED = (4 + (8 + 32 / 256) / 64) / 32
"""Of the bytes in float32. A block of 64 weights has a scale of 8 bits, 256 scales one of 32."""


def require_peft(where: object) -> None:
    """Refuse what needs PEFT where it is not installed; ``where`` is what needs it."""
    quiet_bitsandbytes()  # PEFT imports it where it is installed
    require_package("peft", where=where, install='"duet-t5[lora]"')


def quiet_bitsandbytes() -> None:
    """Keep off the terminal what it says, once imported, of kernels that it can do without."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quantization(kind: Literal["4bit"] | None, *, bf16: bool) -> dict[str, Any]:
    """Return what ``from_pretrained`` is told besides, so that it quantizes; nothing for nothing.

    Each process loads onto its own GPU, where there is one: that is where bitsandbytes quantizes.
    """
    if kind is None:
        return {}
    from transformers import BitsAndBytesConfig

    make: Any = BitsAndBytesConfig
    config = make(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float32,
        llm_int8_skip_modules=list(WHOLE),
    )
    return {"quantization_config": config, "dtype": torch.float32}


def add_adapter(model: Any, lora: LoraSettings, new_ids: Sequence[int], *, name: str) -> Any:
    """Freeze a model, and return it with a fresh adapter, which is all that is trained.

    Args:
        model: A transformers model, ready to train but for this.
        lora: Rank, scale, dropout and layers of the adapter, and the seed of its start.
        new_ids: The ids whose rows are trained too; they start from the model's own.
        name: What the adapter's config calls the model: a folder or a hub name.

    Raises:
        ConfigError: PEFT is missing, or the model lacks the layers.
    """
    require_peft("--lora-r")
    from peft import LoraConfig, TaskType, get_peft_model

    if Path(name).is_dir():
        name = str(Path(name).resolve())  # the adapter is loaded from other folders, too
    rows = _trained_rows(model, list(new_ids)) if new_ids else None
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_targets(model, lora.target_modules),
        exclude_modules=_without_text(model),
        trainable_token_indices=rows,
        base_model_name_or_path=name,
    )
    with _quiet_peft(), torch.random.fork_rng():
        torch.manual_seed(lora.seed)
        adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = name
    layer: Any
    for layer in adapted.modules():
        if hasattr(layer, "cast_input_dtype_enabled"):
            layer.cast_input_dtype_enabled = False  # it would undo the one cast of ``fuse_layers``
    if rows is not None:
        _share_rows(adapted.get_base_model(), list(rows))
    return adapted


def hold_in_bfloat16(model: Any) -> None:
    """Hold a frozen base in bfloat16, in place, where autocast computes with it in nothing else.

    Those are the matrices of attention and feed-forward, ``wo`` too: 98 % of flan-t5-xxl. Autocast
    would round them in each pass, so that losses and gradients are the same to the bit. Norms,
    position biases and embeddings, of which rows are trained, stay in float32.
    """
    head = {id(module) for module in model.get_output_embeddings().modules()}
    for module in model.modules():
        matrix = isinstance(module, torch.nn.Linear) and id(module) not in head
        if matrix and module.weight.dtype == torch.float32 and not module.weight.requires_grad:
            module.weight.data = module.weight.data.to(torch.bfloat16)


def _targets(model: Any, given: Sequence[str] | None) -> list[str]:
    """Return the last names of the layers that get an adapter.

    The output matrix is none of them: the loss multiplies by it itself, past any adapter.
    """
    embeddings = _names_of_embeddings(model)
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    } - embeddings
    named = TARGETS if given is None else given
    found = [name for name in named if name in linear]
    missing = [] if given is None else [name for name in named if name not in linear]
    if missing or not found:
        wanted = embeddings.intersection(missing)
        rows = f"; the new rows of {', '.join(sorted(embeddings))} are trained anyway"
        raise ConfigError(
            "LoRA on embeddings is not supported" if wanted else "the model has no such layers",
            where="--lora-target-modules",
            got=", ".join(missing or named),
            do="give some of " + ", ".join(sorted(linear)) + (rows if wanted else ""),
        )
    return found


def _without_text(model: Any) -> str | None:
    """Return a pattern of the layers that get no adapter, for no text passes through them."""
    names = {part for name, _ in model.named_modules() for part in name.split(".")} & NO_TEXT
    return rf".*\b({'|'.join(sorted(names))})\..*" if names else None


def _names_of_embeddings(model: Any) -> set[str]:
    """Return the last names of the modules that hold a matrix with a row for each id."""
    weights = {id(weight) for weight in embedding_weights(model)}
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if id(getattr(module, "weight", None)) in weights
    }


def _trained_rows(model: Any, ids: list[int]) -> dict[str, list[int]]:
    """Return PEFT's ``trainable_token_indices``: the modules that hold the rows, with the ids."""
    modules = {id(module): name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if is_tied(model):
        return {modules[id(embedding)]: ids}  # PEFT finds the others by itself
    holders = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and module.weight is embedding.weight
    ]
    return dict.fromkeys(holders, ids) | {modules[id(head)]: ids[::-1]}


def _share_rows(model: Any, names: Sequence[str]) -> None:
    """Let the embeddings of encoder and decoder train the same rows: it is one matrix."""
    wrapper = model.get_input_embeddings()
    for stack in (model.get_encoder(), model.get_decoder()):
        if not hasattr(stack.get_input_embeddings(), "token_adapter"):
            raise ModelError(
                "PEFT cannot train the embeddings of new tokens in this model",
                where="--lora-r",
                got=type(model).__name__,
                do='pip install --upgrade "transformers>=5" "peft>=0.21"',
            )
    rows = wrapper.token_adapter.trainable_tokens_delta
    for name in names:
        module = model.get_submodule(name)
        if module is not wrapper and module is not model.get_output_embeddings():
            module.token_adapter.trainable_tokens_delta = rows


def is_adapted(model: Any) -> bool:
    """Return whether a model is one with an adapter."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, not a whole model."""
    with permission_errors():
        return (folder / ADAPTER_FILES[1]).is_file()


def save_adapter(folder: Path, model: Any, tensors: dict[str, torch.Tensor] | None = None) -> None:
    """Write the adapter's two files, not atomically; ``tensors``: in place of the model's own."""
    with _quiet_peft():
        model.save_pretrained(folder, state_dict=tensors, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a form for a model card, left blank


def restore_adapter(model: Any, folder: Path) -> None:
    """Put a saved adapter's values into a model with a fresh one of the same settings.

    Raises:
        ValueError, RuntimeError, OSError: The files are not those of such an adapter.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(folder / ADAPTER_FILES[0])
    with _quiet_peft():
        result: Any = set_peft_model_state_dict(model, saved)
    missing = [name for name in result.missing_keys if ".lora_" in name or "_delta" in name]
    if missing or result.unexpected_keys:
        name = [*missing, *result.unexpected_keys][0]
        raise ValueError(f"the adapter does not fit the model: {name}")


def merge_adapter(base: Any, folder: Path) -> Any:
    """Return the model with what the adapter in ``folder`` adds to its weights, in place."""
    require_peft(folder)
    from peft import PeftModel

    tied = base.config.tie_word_embeddings
    with _quiet_peft():
        merged = PeftModel.from_pretrained(base, folder).merge_and_unload(safe_merge=True)
    # PEFT compares the encoder's matrix with the head, and would untie T5Gemma; and umT5's logits
    # are scaled by this, whatever the weights are.
    merged.config.tie_word_embeddings = tied
    return merged


@contextlib.contextmanager
def _quiet_peft() -> Iterator[None]:
    """Keep PEFT's use of what transformers gave up, and its advice, off the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
