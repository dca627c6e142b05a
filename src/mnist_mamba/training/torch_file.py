"""Reading a file of torch.save without running code in it and within memory of the file's size."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from typing import Any

import torch

_NAMES = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")
"""Names that a pickle of tensors, numbers and text refers to."""


class TorchFileError(ValueError):
    """Bytes that are not a plain file of torch.save; the message says why."""


def load_plain(data: bytes) -> Any:
    """Return a file's tensors, numbers, text, lists and dictionaries, on the CPU.

    A tensor may be a view that is larger than its storage.

    Raises:
        TorchFileError: damaged, or a file that torch.load would run or unpack to more than its
            size.
    """
    try:
        return torch.load(io.BytesIO(_repacked(data)), map_location="cpu", weights_only=True)
    except TorchFileError:
        raise
    except Exception as error:  # damaged bytes raise many kinds of errors in the parsers
        # Not torch's own message, which advises to load the file without weights_only.
        reason = f"torch.load(weights_only=True) refuses its {len(data)} bytes"
        raise TorchFileError(reason) from error


def _repacked(data: bytes) -> bytes:
    """Return the same zip file after its checks, so that torch's parser cannot see another one."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > len(data) or any(entry.compress_type for entry in entries):
            raise TorchFileError(
                f"its entries have {unpacked} bytes, compressed in {len(data)}: expected entries "
                "without compression, as torch.save writes them"
            )
        contents = {entry.filename: archive.read(entry) for entry in entries}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            if name.lower().endswith(".pkl"):
                _check_names(content)
            archive.writestr(name, content)
    return buffer.getvalue()


def _check_names(pickle: bytes) -> None:
    """Check that a pickle calls nothing but what makes tensors; bytearray(n) takes any memory."""
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name == "GLOBAL" and not _NAMES.fullmatch(str(argument)):
            raise TorchFileError(f"its pickle refers to {argument!r}: expected tensors and numbers")
