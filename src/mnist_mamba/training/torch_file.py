"""Reading a file of torch.save without running code in it and within memory of the file's size.

torch.load(weights_only=True) runs no code, but a file of some bytes can make it loop or allocate
without end: an OrderedDict of a tensor that repeats one number, a key of tuples that share tuples.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickletools
import sys
import textwrap
import zipfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS: dict[str, Any] = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_GLOBALS: dict[str, Any] = {
    "collections OrderedDict": dict,
    "torch._utils _rebuild_tensor_v2": Tensor,
    "torch FloatStorage": torch.float32,
    "torch LongStorage": torch.int64,
    "torch ByteStorage": torch.uint8,
}
"""Names that a pickle of tensors refers to, and what they stand for here."""
_PLAIN = (bool, int, float, str, list, dict, Tensor)


class TorchFileError(ValueError):
    """Bytes that are not a plain file of torch.save; the message says why."""


def load_plain(data: bytes) -> Any:
    """Return a file's tensors, numbers, text, tuples, lists and dictionaries, on the CPU.

    No list, dictionary or tensor is in two places, and each tensor is contiguous in memory of its
    own. Attributes of dictionaries, such as `_metadata` of a state dict, are dropped. Reading takes
    less than 10 times the file's size plus 64 MB: a text can widen to 4 bytes per character while
    narrower copies of it still exist.

    Raises:
        TorchFileError: damaged, or a file with other values, or one that takes more memory.
    """
    try:
        # Before zipfile makes an object of each entry's header, with two copies of its name.
        directory = int.from_bytes(data[data.rindex(b"PK\x05\x06") :][12:16], "little")
        if data.count(b"PK\x01\x02") > 2**14 + len(data) // 2**11 or directory > len(data) // 2:
            raise TorchFileError(f"it has too many entries for its {len(data)} bytes")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _Reader(archive, len(data)).content()
    except TorchFileError:
        raise
    except Exception as error:  # damaged bytes raise many kinds of errors in the parsers
        reason = f"its {len(data)} bytes are not what torch.save writes for tensors and numbers"
        raise TorchFileError(reason) from error


def room(size: int) -> int:
    """Return the most bytes that the tensors of a file of `size` bytes may take."""
    return 2**23 + 2 * size


def taken(shape: Sequence[int], itemsize: int) -> int:
    """Return the bytes that a tensor takes, at least those of its Python objects."""
    return max(math.prod(shape) * itemsize, 2**10)


class _Reader:
    """The part of pickle's stack machine that plain values need.

    Args:
        archive: the file, a zip archive.
        size: of the file, in bytes.
    """

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        packed = any(
            entry.compress_type or entry.compress_size != entry.file_size for entry in entries
        )
        if unpacked > size or packed:
            raise TorchFileError(
                f"its entries have {unpacked} bytes, compressed in {size}: expected entries "
                "without compression, as torch.save writes them"
            )
        self._archive = archive
        self._max_opcodes = 2**19 + size // 2**7
        self._room = room(size)
        self._buffers: dict[str, bytearray] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []

    def content(self) -> Any:
        """Return the value that the file describes."""
        (name,) = [name for name in self._archive.namelist() if name.endswith("/data.pkl")]
        self._folder = name.removesuffix("data.pkl")
        if self._archive.read(f"{self._folder}byteorder").decode() != sys.byteorder:
            raise TorchFileError(f"its byte order is not this machine's, {sys.byteorder}-endian")
        for n, (opcode, argument, _) in enumerate(pickletools.genops(self._archive.read(name))):
            if n > self._max_opcodes:
                raise TorchFileError(f"its pickle has more than {n} opcodes")
            self._run(opcode.name, argument)
        (value,) = self._stack
        _check_plain([value])
        return value

    def _run(self, opcode: str, argument: Any) -> None:
        """Run an opcode; values on the stack may be wrong in any way, but share nothing."""
        stack = self._stack
        match opcode:
            case "PROTO" | "STOP":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case _ if opcode in _CONSTANTS:
                stack.append(_CONSTANTS[opcode])
            case _ if opcode in _CONTAINERS:
                stack.append(_CONTAINERS[opcode]())
            case "MARK":
                self._marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self._marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(opcode[-1])
                stack[-n:] = [tuple(stack[-n:])]
            case "APPEND" | "APPENDS":
                items = self._marked() if opcode == "APPENDS" else [stack.pop()]
                _check_plain(items)
                list.extend(stack[-1], items)
            case "SETITEM" | "SETITEMS":
                items = self._marked() if opcode == "SETITEMS" else [stack.pop(-2), stack.pop()]
                if not all(map(_is_key, items[::2])):
                    raise TorchFileError("it has a key that is not a short text or a small number")
                _check_plain(items[1::2])
                dict.update(stack[-1], zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT" if argument == len(self._memo):
                self._memo.append(stack[-1])
            case "BINGET" | "LONG_BINGET":
                stack.append(_shared(self._memo[argument]))
            case "GLOBAL" if argument in _GLOBALS:
                stack.append(_GLOBALS[argument])
            case "GLOBAL":
                name = argument[:100]
                raise TorchFileError(f"its pickle refers to {name!r}: expected tensors and numbers")
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(self._call(stack.pop(), arguments))
            case "BUILD":  # the attributes of the dictionary below
                stack.pop()
            case _:
                raise TorchFileError(f"its pickle has an unexpected opcode, {opcode}")

    def _marked(self) -> list[Any]:
        """Remove the values after the last mark from the stack, and return them."""
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _storage(self, reference: Any) -> _Storage:
        """Return the (n,) numbers of an entry."""
        self._take(2**10)
        match reference:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(n)):
                if key not in self._buffers:
                    self._buffers[key] = bytearray(self._archive.read(f"{self._folder}data/{key}"))
                buffer = self._buffers[key]
                if n and n * dtype.itemsize == len(buffer):
                    return _Storage(torch.frombuffer(buffer, dtype=dtype))
        raise TorchFileError("it has a tensor whose numbers are not in the file")

    def _call(self, function: Any, arguments: Any) -> Any:
        """Return an empty dictionary, or a copy of a view, which torch checks to be inside."""
        match arguments:
            case () if function is dict:
                return {}
            case (_Storage(numbers), offset, tuple(size), tuple(stride), bool(), dict()) if (
                function is Tensor
            ):
                view = numbers.as_strided(size, stride, offset)
                self._take(taken(view.shape, view.itemsize))
                return view.clone(memory_format=torch.contiguous_format)
        raise TorchFileError("it has something else than tensors and dictionaries")

    def _take(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise TorchFileError("its tensors have more numbers than the file")


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Numbers of an entry: tensors copy them, and no value of a file is one."""

    numbers: Tensor


def _check_plain(values: Sequence[Any]) -> None:
    """Check that values are not what only the reader uses: storages, types and functions."""
    for value in values:
        parts = value if type(value) is tuple else (value,)
        if not all(part is None or type(part) in _PLAIN for part in parts):
            raise TorchFileError("it has something else than tensors, numbers and text")


def _is_key(value: Any) -> bool:
    """Return whether a value may be a key; many larger numbers can be chosen to share one hash."""
    is_number = type(value) is int and 0 <= value < 2**16
    return is_number or (type(value) is str and len(value) < 256 and value.isprintable())


def _shared(value: Any) -> Any:
    """Return a value that may be in several places; a container could multiply without end."""
    parts = value if type(value) is tuple and len(value) <= 8 else (value,)
    if any(isinstance(part, (list, dict, tuple, Tensor)) for part in parts):
        raise TorchFileError("it has a list, a dictionary, a tensor or a long tuple in two places")
    return value


def check_like(value: Any, like: Any, name: str) -> None:
    """Check that plain values have the types, keys and shapes of others.

    Args:
        value: the values of a file.
        like: values of the expected types, keys and shapes.
        name: of the value, for error messages.

    Raises:
        ValueError: they differ; the message names the first difference.
    """
    if _kind(value) != _kind(like):
        raise ValueError(f"{name} is {_kind(value)}, expected {_kind(like)}")
    if isinstance(like, dict):
        for wrong, keys in (("lacks", like.keys() - value), ("unknown:", value.keys() - like)):
            if keys:
                raise ValueError(f"{name}: {wrong} {min(map(str, keys))}")
        for key, part in like.items():
            check_like(value[key], part, f"{name}.{key}")
    elif isinstance(like, list):
        for i, (mine, part) in enumerate(zip(value, like, strict=True)):
            check_like(mine, part, f"{name}.{i}")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "a dictionary" if isinstance(value, dict) else f"of type {type(value).__name__}"


def one_line(error: Exception) -> str:
    """Return an error's message as one line of at most 300 characters."""
    return textwrap.shorten(str(error)[:1000], 300, placeholder=" ...")
