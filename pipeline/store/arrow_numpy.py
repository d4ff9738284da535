"""Arrow arrays from NumPy's and back, by their buffers.

``pa.array`` and ``to_numpy`` import pandas, where it is installed, to tell its types from others:
a tenth of a second of each process, and nothing here is of pandas.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def numbers(values: npt.NDArray[Any]) -> pa.Array:
    """Return numbers as Arrow has them, without a copy."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)], 0)


def strings(texts: Sequence[str]) -> pa.StringArray:
    """Return texts of less than 2 GB together as Arrow has them."""
    encoded = [text.encode("utf-8") for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers, 0)


def lists(values: npt.NDArray[Any], lengths: Sequence[int]) -> pa.ListArray:
    """Return lists of numbers, which stand in ``values`` one after another."""
    ends = np.cumsum([0, *lengths], dtype=np.int32)
    return pa.ListArray.from_arrays(numbers(ends), numbers(values))


def as_numpy(array: pa.Array) -> npt.NDArray[Any]:
    """Return the numbers of an array without nulls, without a copy."""
    dtype = array.type.to_pandas_dtype()
    values: npt.NDArray[Any] = np.frombuffer(array.buffers()[1], dtype)
    return values[array.offset : array.offset + len(array)]
