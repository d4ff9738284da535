"""``duet doctor``: versions, devices, disk and network, and what is missing with its remedy.

Packages are imported in a process of their own: one that is broken, or takes the process with it,
is a line of the table and no more.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from pipeline import __version__
from pipeline.commands.flags import TRUE
from pipeline.config import DoctorConfig
from pipeline.console.progress import Wait
from pipeline.console.units import file_size, memory_size

DISTRIBUTION = "duet-t5"
EXTRAS = {
    "ctranslate2": "duet export --format ctranslate2, --engine ctranslate2",
    "eval": "duet eval: chrF, BLEU, ROUGE-L",
    "html": "duet prepare --clean-html",
    "lora": "--lora-r",
    "quantize": "--quantize 4bit, --optim adamw_8bit",
    "ray": "duet prepare --engine ray",
    "report": "duet report",
    "serve": "duet serve",
    "trackers": "--report-to",
}
"""What each extra is for."""
_MODULES = {"protobuf": "google.protobuf", "universal-pathlib": "upath", "pyyaml": "yaml"}
"""Packages that are imported by another name."""
_SECONDS = 120.0
"""Until a package that is being imported counts as hanging."""
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_HUB = "https://huggingface.co"
_SECONDS_FOR_HUB = 3.0


def doctor(config: DoctorConfig) -> str:
    """Return what this machine has, as a table or as JSON; whatever is broken is in it."""
    found = examine()
    if config.json:
        return json.dumps(found, indent=2, ensure_ascii=False)
    return "\n".join(_lines(found))


def examine() -> dict[str, Any]:
    """Return what this machine has, as JSON takes it."""
    requirements, extras = _requirements()
    everything = {r.name: r for group in extras.values() for r in group} | requirements
    found = {name: _version(name) for name in everything}
    with Wait("importing the packages"):
        probed = probe([_module(name) for name in everything if found[name] is not None])
    packages = {
        name: {
            "version": found[name],
            "wants": str(requirement.specifier),
            "problem": _problem(requirement, found[name], probed.get(_module(name), {})),
        }
        for name, requirement in sorted(everything.items())
        if name in requirements or found[name] is not None
    }
    return {
        "duet": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "packages": packages,
        "devices": probed.get("torch", {}).get("devices", []),
        "disk": dict(_disk()),
        "hub": _hub(),
        "extras": {name: _extra(name, group, packages) for name, group in sorted(extras.items())},
    }


def _requirements() -> tuple[dict[str, Requirement], dict[str, list[Requirement]]]:
    """Return what this package requires, and what each of its extras does."""
    required: dict[str, Requirement] = {}
    extras: dict[str, list[Requirement]] = {name: [] for name in EXTRAS}
    try:
        texts = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # run from a folder, without an installation
        texts = []
    for requirement in map(Requirement, texts):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            required[requirement.name] = requirement
        for name, group in extras.items():
            if requirement.marker is not None and requirement.marker.evaluate({"extra": name}):
                group.append(requirement)
    return required, extras


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _module(name: str) -> str:
    return _MODULES.get(name.lower(), name.replace("-", "_"))


def _problem(
    requirement: Requirement, version: str | None, probed: Mapping[str, Any]
) -> str | None:
    """Return what is wrong with a package, with its remedy; None: nothing."""
    wanted = f'pip install "{requirement.name}{requirement.specifier}"'
    if version is None:
        return f"missing: {wanted}"
    if probed.get("error"):
        again = f'pip install --force-reinstall "{requirement.name}{requirement.specifier}"'
        return f"broken, {probed['error']}: {again}"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"too old: {wanted}"
    return None


def probe(modules: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Import packages in another process; return what came of each, by name.

    A package that ends the process is named, and the rest is tried in a new one.
    """
    found: dict[str, dict[str, Any]] = {}
    rest = list(modules)
    while rest:
        command = [sys.executable, "-m", "pipeline.commands.probe", *rest]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_SECONDS * len(rest), check=False
            )
            output, end = done.stdout, _end(done.returncode)
        except subprocess.TimeoutExpired as late:
            output, end = _text(late.stdout), "hangs when it is imported"
        lines = [json.loads(line) for line in output.splitlines()]
        found |= {line["name"]: line for line in lines}
        rest = rest[len(lines) :]
        if rest:
            found[rest[0]] = {"name": rest[0], "error": end}
            rest = rest[1:]
    return found


def _text(output: bytes | str | None) -> str:
    return output.decode("utf-8") if isinstance(output, bytes) else output or ""


def _end(code: int) -> str:
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"ends the process that imports it ({how})"


def _hf_home() -> Path:
    return Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")


def _disk() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the folders that fill up, with the bytes that are free there."""
    folders = {
        "working folder": Path.cwd(),
        "models from the hub": Path(os.environ.get("HF_HUB_CACHE") or _hf_home() / "hub"),
        "temporary files": Path(tempfile.gettempdir()),
    }
    for name, folder in folders.items():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        shown = str(folder).replace(str(Path.home()), "~", 1)
        try:
            yield name, {"path": shown, "free": shutil.disk_usage(there).free}
        except OSError as error:
            yield name, {"path": shown, "free": None, "problem": str(error)}


def _hub() -> dict[str, Any]:
    """Return whether the hub can be reached, and whether there is a token; never its value."""
    address = os.environ.get("HF_ENDPOINT") or _HUB
    token = _hf_home() / "token"
    has_token = bool(os.environ.get("HF_TOKEN")) or token.exists()
    switch = next((name for name in _OFFLINE if os.environ.get(name, "").lower() in TRUE), None)
    state = f"offline: {switch} is set" if switch else _reach(address)
    return {"address": address, "state": state, "token": has_token}


def _reach(address: str) -> str:
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=_SECONDS_FOR_HUB):
            return "reachable"
    except urllib.error.HTTPError as error:  # someone answers
        return f"reachable, answers {error.code}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"not reachable: {getattr(reason, 'strerror', None) or reason}"


def _extra(
    name: str, group: Sequence[Requirement], packages: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    missing = [r.name for r in group if packages.get(r.name, {}).get("version") is None]
    return {
        "for": EXTRAS[name],
        "missing": missing,
        "install": f'pip install "{DISTRIBUTION}[{name}]"' if missing else None,
    }


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"duet {found['duet']}, Python {found['python']}, {found['platform']}"
    yield "\npackages"
    for name, package in found["packages"].items():
        yield f"  {name:<20}{package['version'] or '-':<16}{package['problem'] or 'ok'}"
    if not found["packages"]:
        yield "  unknown: the package is not installed"
    yield "\ndevices"
    for device in found["devices"]:
        yield f"  {device['device']:<20}{_device(device)}"
    if not found["devices"]:
        yield "  unknown: torch cannot be imported"
    yield "\nfree disk"
    for name, disk in found["disk"].items():
        free = disk.get("problem") if disk["free"] is None else file_size(disk["free"])
        yield f"  {name:<20}{free:<16}{disk['path']}"
    hub = found["hub"]
    yield "\nhub"
    yield f"  {hub['address']:<36}{hub['state']}; {'a' if hub['token'] else 'no'} token"
    yield "\nextras"
    for name, extra in found["extras"].items():
        state = "ok" if not extra["missing"] else extra["install"]
        yield f"  {name:<20}{state:<36}{extra['for']}"
    problems = [f"{n} {p['problem']}" for n, p in found["packages"].items() if p["problem"]]
    yield ""
    yield from (f"problem: {problem}" for problem in problems)
    yield "" if problems else "no problem found"


def _device(device: Mapping[str, Any]) -> str:
    parts = [device["name"]]
    if "cores" in device:
        parts.append(f"{device['cores']} cores")
    if "memory" in device:
        parts.append(memory_size(device["memory"]))
    if device.get("features"):
        parts.append(" ".join(device["features"]))
    if "bf16" in device:
        parts.append("bf16 in hardware" if device["bf16"] else "no bf16 in hardware")
    parts.append("attention with position bias: " + (", ".join(device["attention"]) or "none"))
    return "; ".join(parts)
