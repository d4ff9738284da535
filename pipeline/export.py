"""A trained folder -> a folder for those who load it elsewhere: merged, or for CTranslate2.

    huggingface   model.safetensors  config.json  generation_config.json  the tokenizer's files
    ctranslate2   model.bin  config.json  shared_vocabulary.json  the tokenizer's files

The folder is whole or not there.
"""

import contextlib
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

from pipeline.config import ExportConfig
from pipeline.console.logs import note
from pipeline.console.progress import Wait
from pipeline.errors import ConfigError, InputError, OutputError, require_package
from pipeline.fit.checkpoint.pretrained import MODEL_FILES, save_model, writing_errors
from pipeline.fit.model.embedding import is_tied
from pipeline.fit.model.loading import load_trained, quiet_transformers
from pipeline.fit.model.lora import is_adapter
from pipeline.hub.upload import HubRepo
from pipeline.store.atomic import locked_folder, publish_folder
from pipeline.tokenizer import copy_tokenizer

_T5 = ("t5", "mt5")
_FILES = (*MODEL_FILES, "model.bin", "shared_vocabulary.json")
"""What an exported folder may hold."""


def export(config: ExportConfig) -> Path:
    """Write what a trained folder holds in another form.

    Returns:
        ``config.output_dir``.

    Raises:
        InputError: There is no trained folder.
        ConfigError: An adapter that is not to be merged, a package that is missing, or a model
            that the format does not have.
        ModelError: The model, or an adapter's base, cannot be loaded.
        OutputError: The result cannot be written, the output is already there, or the hub does not
            take it.
    """
    source, output = Path(config.model), Path(config.output_dir)
    _check(config, source, output)
    repo = HubRepo.from_options(config, output) if config.push_to_hub else None
    if repo:
        repo.create()
    model = load_trained(source).eval()
    temporary = output.parent / f".{output.name}.{os.getpid()}.tmp"
    with writing_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        _delete_leftovers(output, temporary)
        temporary.mkdir()
    try:
        # Locked until this process ends: see _delete_leftovers.
        with locked_folder(temporary), Wait("exporting", unit="bytes"):
            if config.format == "ctranslate2":
                _save_ctranslate2(temporary, model, source)
            else:
                save_model(temporary, model, source)
            publish_folder(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if repo:
        repo.upload(output, _FILES, again=shlex.join(["hf", "upload", repo.name, str(output), "."]))
    return output


def _delete_leftovers(output: Path, temporary: Path) -> None:
    """Delete what exports of the same target that were killed left: each is a whole model.

    Of one that lives, the folder is locked. It is renamed first, to ``temporary``: where a disk has
    no locks, the other ends with an error and never publishes a half.
    """
    name = re.compile(re.escape(f".{output.name}.") + r"[0-9]+\.tmp")
    found = [path for path in output.parent.iterdir() if name.fullmatch(path.name)]
    # First the one whose process had this one's id, as in a container: it stands in the way.
    for folder in sorted(found, key=lambda path: path != temporary):
        # What is not ours to delete is no reason to end.
        with contextlib.suppress(OSError, OutputError), locked_folder(folder):
            folder.rename(temporary)
            shutil.rmtree(temporary)


def _check(config: ExportConfig, source: Path, output: Path) -> None:
    adapter = is_adapter(source)
    if not adapter and not (source / "config.json").is_file():
        raise InputError(
            "no trained model",
            where=source,
            got="neither config.json nor adapter_config.json in it",
            do="give the --output-dir of duet fit",
        )
    if adapter and not config.merge:
        raise ConfigError(
            "an adapter has to be merged into its base",
            where=source,
            got="no --merge",
            do="add --merge; the folder itself is what PEFT loads",
        )
    if config.merge and not adapter:
        note("--merge is ignored: the model is not an adapter")
    if config.format == "ctranslate2":
        require_package(
            "ctranslate2", where="--format ctranslate2", install='"duet-t5[ctranslate2]"'
        )
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise OutputError(
            "the output already exists",
            where=output,
            got="a file, or a folder that is not empty",
            do="give another --output-dir, or delete it",
        )


def _save_ctranslate2(folder: Path, model: Any, source: Path) -> None:
    """Write a T5 as CTranslate2 loads it into a folder that is there, not atomically.

    Its own converter takes an untied T5 for a tied one where transformers' config says so, and
    scales its logits; and it gives spare rows the names of sentinels, which are there already.
    """
    if model.config.model_type not in _T5:
        raise ConfigError(
            "this export is made for T5 alone",
            where="--format ctranslate2",
            got=model.config.model_type,
            do="use ct2-transformers-converter on the folder",
        )
    from ctranslate2.converters import transformers as converters
    from ctranslate2.specs.model_spec import OPTIONAL
    from transformers import AutoTokenizer

    loader = converters.MT5Loader() if model.config.model_type == "mt5" else converters.T5Loader()
    with quiet_transformers():
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
    spec = loader.get_model_spec(model)
    loader.set_config(spec.config, model, tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    spare = range(len(tokens), model.config.vocab_size)
    loader.set_vocabulary(spec, [*tokens, *(f"<spare_{i}>" for i in spare)])
    if not is_tied(model):
        spec.decoder.scale_outputs = OPTIONAL
    with writing_errors(folder):
        spec.validate()
        spec.optimize()
        spec.save(str(folder))
        copy_tokenizer(source, folder)
