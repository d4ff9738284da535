"""Numbers as people read them, rounded up, spread; nothing here knows what they measure."""

from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@overload
def round_up(value: int, multiple: int) -> int: ...
@overload
def round_up(value: "npt.NDArray[np.int64]", multiple: int) -> "npt.NDArray[np.int64]": ...
def round_up(value: Any, multiple: int) -> Any:
    """Return the next multiple of a number, or of each in an array.

    >>> round_up(32_109, 128), round_up(128, 128)
    (32128, 128)
    """
    return -(-value // multiple) * multiple


def spread(count: int, most: int | None) -> list[int]:
    """Return so many of ``count`` places, spread over all; None: all of them.

    >>> spread(10, 3), spread(2, None), spread(5, 1)
    ([0, 4, 9], [0, 1], [0])
    """
    if most is None or most >= count:
        return list(range(count))
    return [place * (count - 1) // max(most - 1, 1) for place in range(most)]


def percent(share: float) -> str:
    """Return a share in hundredths.

    >>> percent(0.0417)
    '4.2 %'
    """
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """Return a time in units that a person thinks in; seconds only below ten minutes.

    >>> [duration(seconds) for seconds in (42.3, 154, 2_380, 100_000)]
    ['42 s', '2 min 34 s', '40 min', '27 h 47 min']
    """
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 599.5:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def counted(count: int, noun: str, nouns: str = "") -> str:
    """Return a number of things.

    >>> counted(1, "thread"), counted(1_200, "step"), counted(0, "process", "processes")
    ('1 thread', '1,200 steps', '0 processes')
    """
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def memory_size(size: float) -> str:
    """Return bytes as memory is counted.

    >>> memory_size(3 << 29), memory_size(5 << 20), memory_size(700), memory_size(0)
    ('1.50 GiB', '5.0 MiB', '0.7 KiB', '0')
    """
    if size >= 1 << 30:
        return f"{size / (1 << 30):,.2f} GiB"
    if size >= 1 << 20:
        return f"{size / (1 << 20):,.1f} MiB"
    return f"{size / (1 << 10):,.1f} KiB" if size else "0"


def file_size(size: float) -> str:
    """Return bytes as disks are counted.

    >>> file_size(999), file_size(125_400_000)
    ('999 B', '125.4 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
