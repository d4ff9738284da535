"""How a CUDA device is set up and what it says, as far as one can tell without one."""

import os
from typing import Any

import pytest
import torch

from pipeline.config import FitConfig
from pipeline.fit import device
from pipeline.fit.device import (
    data_sheet_peak,
    is_out_of_memory,
    precision_notes,
    set_allocator,
)
from pipeline.fit.stage import fit
from tests.fit.helpers import changed

CUDA = torch.device("cuda")
NEW, OLD = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"


def test_a_run_has_no_cudnn_attention_and_an_allocator_that_grows(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(NEW, raising=False)
    monkeypatch.delenv(OLD, raising=False)
    torch.backends.cuda.enable_cudnn_sdp(True)
    fit(changed(config, max_steps=1))
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert os.environ[NEW] == "expandable_segments:True"


@pytest.mark.parametrize("name", [NEW, OLD])
def test_the_users_allocator_stays(name: str) -> None:
    environment = {name: "max_split_size_mb:128"}
    set_allocator(environment)
    assert environment == {name: "max_split_size_mb:128"}


@pytest.mark.parametrize(
    ("version", "name"), [("2.4.0", OLD), ("2.8.1+cu126", OLD), ("2.9.0", NEW), ("2.13.0+cpu", NEW)]
)
def test_the_name_is_the_one_that_torch_reads(
    version: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    environment: dict[str, str] = {}
    set_allocator(environment)
    assert environment == {name: "expandable_segments:True"}


def test_this_torch_reads_that_name() -> None:
    if (set_it := getattr(torch._C, "_accelerator_setAllocatorSettings", None)) is None:
        pytest.skip("an older torch")
    set_it("expandable_segments:True")
    with pytest.raises(
        ValueError, match="'True' or 'False'"
    ):  # a word that it did not know would pass
        set_it("expandable_segments:maybe")


FULL = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    torch.distributed.DistBackendError(
        "NCCL error in: ProcessGroupNCCL.cpp:1275, unhandled cuda error\nLast error:\n"
        "Cuda failure 2 'out of memory'"
    ),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
]
OTHERS = [
    ValueError("out of memory"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    torch.distributed.DistBackendError("NCCL error: remote process exited"),
]


@pytest.mark.parametrize("error", FULL)
def test_full_memory_is_known_by_what_any_library_says(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="an older torch")
def test_full_memory_that_an_accelerator_reports() -> None:
    kind: Any = torch.AcceleratorError
    assert is_out_of_memory(kind("CUDA error: out of memory"))
    assert not is_out_of_memory(kind("CUDA error: an illegal memory access was encountered"))


@pytest.mark.parametrize("error", OTHERS)
def test_other_errors_are_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("native", "bf16", "tf32", "said"),
    [
        (False, True, None, "has no bfloat16"),
        (False, False, None, ""),
        (True, True, None, ""),
        (True, False, None, "a tenth"),
        (True, False, True, ""),
        (True, False, False, ""),  # as asked for
    ],
)
def test_a_precision_that_is_not_the_devices_is_said(
    native: bool, bf16: bool, tf32: bool | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda of: "Tesla T4")
    lines = list(precision_notes(CUDA, bf16=bf16, tf32=tf32))
    assert len(lines) == bool(said)
    assert all(said in line and line.startswith("Tesla T4 ") for line in lines)
    assert list(precision_notes(torch.device("cpu"), bf16=bf16, tf32=tf32)) == []


@pytest.mark.parametrize(
    ("name", "bf16", "tf32", "full"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 494, 67),
        ("NVIDIA H100 PCIe", 756, 378, 51),
        ("NVIDIA H200", 989, 494, 67),
        ("NVIDIA A100-SXM4-40GB", 312, 156, 19.5),
        ("NVIDIA A10", 125, 62.5, 31.2),
        ("NVIDIA L4", 121, 60, 30.3),
        ("NVIDIA L40S", 362, 183, 91.6),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6, 82.6),
        ("Tesla T4", None, 8.1, 8.1),
        ("Tesla V100-PCIE-16GB", None, 14, 14),
        ("Tesla V100-SXM2-32GB", None, 15.7, 15.7),
        ("NVIDIA A10G", None, None, None),  # another device than A10
        ("NVIDIA GeForce RTX 4090 D", None, None, None),
        ("some other", None, None, None),
    ],
)
def test_data_sheets(name: str, bf16: float | None, tf32: float | None, full: float | None) -> None:
    found = [
        data_sheet_peak(name, torch.bfloat16),
        data_sheet_peak(name, torch.float32, tf32=True),
        data_sheet_peak(name, torch.float32),
    ]
    assert found == [None if value is None else value * 1e12 for value in (bf16, tf32, full)]


def test_no_entry_hides_a_later_one() -> None:
    names = [name for name, _ in device.DATA_SHEETS]
    for i, name in enumerate(names):
        assert data_sheet_peak(name, torch.float32) == device.DATA_SHEETS[i][1].float32 * 1e12
