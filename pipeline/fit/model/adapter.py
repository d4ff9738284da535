"""A saved adapter as what a run starts from: its base, its settings, what cannot be trained on."""

import dataclasses
from pathlib import Path
from typing import Any

from pipeline.config import FitConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.fit.model.lora import ADAPTER_FILES, is_adapter
from pipeline.hub.download import find_model_file
from pipeline.json_object import read_json_object

_PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
}
"""What an adapter must have so that ``--lora-*`` says all of it; what is left out is so."""


def with_adapter_settings(config: FitConfig) -> FitConfig:
    """Return the settings with those of the adapter to start from, if it is one.

    Raises:
        ConfigError: A flag contradicts the adapter, or it is of another kind.
        ModelError: Its config cannot be read.
    """
    folder = Path(config.model_name_or_path)
    if not is_adapter(folder):
        return config
    saved = _read(folder)
    for name, plain in _PLAIN.items():
        found = saved.get(name) or plain
        if found != plain:
            raise _other_kind(folder, f"{name} {found}")
    try:
        wanted: dict[str, Any] = {
            "lora_r": int(saved["r"]),
            "lora_alpha": int(saved["lora_alpha"]),
            "lora_dropout": float(saved["lora_dropout"]),
            "lora_target_modules": ",".join(sorted(saved["target_modules"])),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise _other_kind(folder, repr(error)) from error
    for name, value in wanted.items():
        given = getattr(config, name)
        if given != getattr(FitConfig, name) and not _is_same(given, value):
            raise ConfigError(
                "another setting than that of the adapter to start from",
                where="--" + name.replace("_", "-"),
                got=f"{given}, but {folder} was made with {value}",
                do="leave the flag out",
            )
    return dataclasses.replace(config, **wanted)


def _is_same(given: Any, saved: Any) -> bool:
    if isinstance(given, str):
        return sorted(map(str.strip, given.split(","))) == sorted(saved.split(","))
    return bool(given == saved)


def base_name(name: str, cache_dir: str | None) -> str:
    """Return the folder or hub name of an adapter's base; of a model, its own."""
    return find_base(Path(name), cache_dir) if is_adapter(Path(name)) else name


def find_base(adapter: Path, cache_dir: str | None = None) -> str:
    """Return the folder or hub name of the model that an adapter was trained on.

    Args:
        adapter: Its folder.
        cache_dir: Where files from the hub are kept; None: the Hugging Face cache.

    Raises:
        ModelError: The adapter's config does not tell, or it is not where that says.
    """
    base = _read(adapter).get("base_model_name_or_path")
    try:
        found = base and find_model_file(base, "config.json", cache_dir)
        got = "no config.json"
    except ModelError as error:
        found, got = None, error.got
    if not found:
        raise ModelError(
            "the model that an adapter was trained on cannot be found",
            where=base or adapter,
            got=got if base else "no base_model_name_or_path",
            do=f"put it there, or its place into {adapter / ADAPTER_FILES[1]} as "
            "base_model_name_or_path",
        )
    return str(base)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_FILES[1]
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            "an adapter's config cannot be read",
            where=path,
            got=repr(error),
            do="copy the adapter's folder again",
        ) from error


def _other_kind(folder: Path, got: str) -> ConfigError:
    return ConfigError(
        "training does not resume from an adapter of this kind",
        where=folder / ADAPTER_FILES[1],
        got=got,
        do="start from an adapter of duet fit, or merge this one with PEFT and start from that",
    )
