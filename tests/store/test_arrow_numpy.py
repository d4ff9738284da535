"""Arrow arrays by their buffers are what Arrow's own ways make."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from pipeline.store.arrow_numpy import as_numpy, lists, numbers, strings


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_numbers_and_lists(dtype: type) -> None:
    values = np.arange(7, dtype=dtype)
    assert numbers(values).equals(pa.array(values))
    rows = [[0, 1, 2], [], [3, 4, 5, 6]]
    made = lists(values, [3, 0, 4])
    made.validate(full=True)
    assert made.equals(pa.array(rows, pa.list_(pa.from_numpy_dtype(dtype))))
    assert as_numpy(made.offsets).tolist() == [0, 3, 3, 7]
    assert as_numpy(numbers(values)[2:5]).tolist() == [2, 3, 4]


@pytest.mark.parametrize("texts", [[], [""], ["a", "", "é😀", "b" * 100]])
def test_strings(texts: list[str]) -> None:
    made = strings(texts)
    made.validate(full=True)
    assert made.equals(pa.array(texts, pa.string()))
    assert numbers(np.zeros(0, np.int32)).equals(pa.array([], pa.int32()))


def test_pandas_is_not_imported() -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow", minversion="26", reason="an older one imports it all the same")
    code = """
import sys
import numpy as np
import pyarrow as pa
from pipeline.store.arrow_numpy import as_numpy, lists, numbers, strings
row = lists(np.arange(3), [1, 2])
table = pa.RecordBatch.from_arrays([row, strings(["a", "b"])], names=["x", "y"])
as_numpy(row.values)
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
