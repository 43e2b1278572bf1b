"""The files of CIFAR-10's Python version, read without running what they hold.

They are pickles, and a pickle is a program that may import and call anything. Here its operations
are read one by one: those that the published files have build texts, numbers, lists and
dictionaries, and any other is refused.
"""

import pickletools
from typing import Any

import numpy as np

_MARK = object()
# What an array and its dtype are rebuilt by in the published files; nothing of it is called.
_ARRAY, _DTYPE = "numpy.core.multiarray _reconstruct", "numpy dtype"


def read_batch(where: str, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Reads the pixels and labels of one file.

    Args:
        where: what errors call the file.
        data: its content, a pickle of `{"data": u8[n, pixels], "labels": [n numbers], ...}`.

    Returns:
        Pixels u8[n, pixels] and labels i64[n].

    Raises:
        ValueError: for a file that is damaged, or has operations that the published files do not
            have.
    """
    try:
        batch = _build(data)
        _, shape, dtype, by_columns, content = batch["data"]
        if dtype not in ("u1", "|u1") or by_columns:
            raise ValueError(f"an array of {dtype}")
        pixels = np.frombuffer(content.encode("latin-1"), np.uint8).reshape(shape)
        return pixels, np.array([_whole(label) for label in batch["labels"]], np.int64)
    except (LookupError, AttributeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} must be a file of CIFAR-10's Python version as published, a pickle of its "
            f"'data' and 'labels', got: {error!r}"
        ) from error


def _whole(label: Any) -> int:
    if type(label) is not int:
        raise ValueError(f"a label {label!r}")
    return label


def _build(data: bytes) -> Any:
    """What a pickle makes, with arrays as lists [version, shape, dtype, by columns, content]."""
    stack: list[Any] = []
    memory: dict[Any, Any] = {}

    def pop(count: int) -> tuple[Any, ...]:
        if len(stack) < count:
            raise IndexError("too few operands")
        items = tuple(stack[len(stack) - count :])
        del stack[len(stack) - count :]
        return items

    def pop_to_mark() -> tuple[Any, ...]:
        marks = [i for i, item in enumerate(stack) if item is _MARK]
        items = pop(len(stack) - marks[-1] - 1)
        stack.pop()
        return items

    for operation, argument, _ in pickletools.genops(data):
        match operation.name:
            case "PROTO":
                pass
            case "MARK":
                stack.append(_MARK)
            case "BININT" | "BININT1" | "BININT2" | "SHORT_BINSTRING" | "BINSTRING" | "GLOBAL":
                stack.append(argument)
            case "NONE" | "NEWFALSE":
                stack.append(None)
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE":
                stack.append(pop_to_mark())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(pop(int(operation.name[-1])))
            case "BINPUT" | "LONG_BINPUT":
                memory[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memory[argument])
            case "APPENDS":
                items = pop_to_mark()
                stack[-1].extend(items)
            case "SETITEMS":
                items = pop_to_mark()
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "REDUCE":
                function, arguments = pop(2)
                if function not in (_ARRAY, _DTYPE):
                    raise ValueError(f"a call of {function!r}")
                stack.append([] if function == _ARRAY else arguments[0])
            case "BUILD":
                (state,) = pop(1)
                # A dtype's state is its byte order, which single bytes have none of.
                if isinstance(stack[-1], list):
                    stack[-1].extend(state)
            case "STOP":
                return stack.pop()
            case other:
                raise ValueError(f"the operation {other}")
    raise ValueError("no end")
