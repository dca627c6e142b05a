"""ctypes binding of the C engine."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_mamba.c_build import build_library, csrc_dir, isa_flags, shared_flags

LIBRARY_VARIABLE = "MNIST_MAMBA_LIBRARY"
"""Environment variable with the path of a built libmamba to use instead of compiling one."""

_u32 = ctypes.c_uint32


class EngineError(RuntimeError):
    """An error of the engine: its message, and `status`, its code (csrc/include/mamba.h)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Error(ctypes.Structure):
    _fields_ = (("status", ctypes.c_int), ("message", ctypes.c_char * 256))


class _Info(ctypes.Structure):
    """`struct mamba_info`, field by field."""

    _fields_ = (
        *((name, _u32) for name in ("height", "width", "channels", "n_classes", "stem")),
        *((name, _u32) for name in ("patch_height", "patch_width", "stem_width")),
        *((name, _u32) for name in ("d_model", "n_layers", "d_state", "d_conv", "d_inner")),
        *((name, _u32) for name in ("dt_rank", "direction", "pool")),
        *((name, _u32) for name in ("tied_a", "pos_embed", "local_conv")),
        *((name, _u32) for name in ("members", "length")),
        *((name, ctypes.c_float) for name in ("norm_eps", "pixel_mean", "pixel_std")),
        ("parameters", ctypes.c_uint64),
        ("file_bytes", ctypes.c_uint64),
        ("version", _u32),
        ("crc32", _u32),
    )


class Engine:
    """A model file opened by the C engine: images in, logits out.

    Args:
        model: a model file (docs/format.md): its path, or its bytes, which are copied.
        threads: number of threads, which share the images of a batch; 0 uses all cores.
        library: a built libmamba. Default: $MNIST_MAMBA_LIBRARY, else a library compiled from the
            engine's sources on first use and cached.
        mmap: map the file; False copies it, for a file that may change while it is open.

    Attributes:
        info: the model's dimensions and pixel statistics, `struct mamba_info` by name.

    Raises:
        EngineError: the file was refused; the message names field, got and expected.
        mnist_mamba.c_build.NativeBuildError: no library was named, and none can be compiled.

    >>> import tempfile
    >>> from mnist_mamba.export import write_model
    >>> from mnist_mamba.model import MambaClassifier, ModelConfig
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "model.bin"
    ...     write_model(path, MambaClassifier(ModelConfig(height=28, width=28, n_classes=10)))
    ...     with Engine(path) as engine:
    ...         engine.logits(np.zeros((5, 28, 28), dtype=np.uint8)).shape
    (5, 10)
    """

    def __init__(
        self,
        model: str | Path | bytes,
        threads: int = 0,
        library: str | Path | None = None,
        *,
        mmap: bool = True,
    ) -> None:
        self._model = ctypes.c_void_p()
        self._library = _load(find_library(library))
        error = _Error()
        out = (ctypes.byref(self._model), ctypes.byref(error))
        if isinstance(model, bytes):
            # The engine uses the bytes in place; numpy's memory is aligned for any type.
            self._bytes = np.array(np.frombuffer(model, dtype=np.uint8))
            status = self._library.mamba_model_from_bytes(
                out[0], self._bytes.ctypes.data, len(model), out[1]
            )
        else:
            opener = "mamba_model_open" if mmap else "mamba_model_read"
            status = getattr(self._library, opener)(out[0], os.fsencode(model), out[1])
        self._check(status, error)
        info = self._library.mamba_model_info(self._model).contents
        self.info: dict[str, int | float] = {name: getattr(info, name) for name, _ in info._fields_}
        self.threads = threads or int(self._library.mamba_max_threads())

    def logits(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits of a batch.

        Args:
            images: (n, height, width), uint8 or float32 in [0, 1].

        Returns:
            (n, n_classes) logits.

        Raises:
            ValueError: another shape or dtype, or values outside [0, 1].
            EngineError: the logits are not finite, or the engine was closed.
        """
        if not self._model:
            raise EngineError(2, "the engine was closed")
        expected = (int(self.info["height"]), int(self.info["width"]))
        if images.ndim != 3 or images.shape[1:] != expected:
            raise ValueError(
                f"images have shape {images.shape}, expected (n, {expected[0]}, {expected[1]})"
            )
        if images.dtype == np.uint8:
            forward = self._library.mamba_forward_batch_u8
        elif images.dtype == np.float32:
            forward = self._library.mamba_forward_batch
            if not ((images >= 0) & (images <= 1)).all():
                raise ValueError("images have values outside [0, 1] or NaN")
        else:
            raise ValueError(f"images have dtype {images.dtype}, expected uint8 or float32")
        pixels = np.ascontiguousarray(images)
        logits = np.empty((len(images), int(self.info["n_classes"])), dtype=np.float32)
        if not len(images):
            return logits
        size = self._library.mamba_batch_bytes(self._model, self.threads)
        if not size:
            raise EngineError(2, f"threads = {self.threads}: expected 1 to 1024")
        # Not create_string_buffer, which would clear the arena.
        arena = np.empty(size, dtype=np.uint8)
        error = _Error()
        status = forward(
            self._model,
            arena.ctypes.data,
            size,
            self.threads,
            pixels.ctypes.data,
            len(images),
            logits.ctypes.data,
            ctypes.byref(error),
        )
        self._check(status, error)
        return logits

    def predict(self, images: NDArray[Any]) -> NDArray[np.integer[Any]]:
        """Return the most likely class of each image; arguments and errors as for `logits`."""
        predictions: NDArray[np.integer[Any]] = self.logits(images).argmax(axis=1)
        return predictions

    def close(self) -> None:
        """Unmap the file; closing again has no effect."""
        if self._model:
            self._library.mamba_model_close(self._model)
            self._model = ctypes.c_void_p()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        # __init__ may have failed before it loaded a library.
        if getattr(self, "_library", None) is not None:
            self.close()

    @staticmethod
    def _check(status: int, error: _Error) -> None:
        if status:
            raise EngineError(status, error.message.decode(errors="replace"))


def find_library(library: str | Path | None = None) -> Path:
    """Return the path of libmamba: `library`, else $MNIST_MAMBA_LIBRARY, else compile it.

    Raises:
        EngineError: the named file does not exist.
        mnist_mamba.c_build.NativeBuildError: the library cannot be compiled.
    """
    named = library or os.environ.get(LIBRARY_VARIABLE)
    if named:
        path = Path(named)
        if not path.is_file():
            raise EngineError(3, f"{path} not found: expected a built libmamba")
        return path.resolve()
    csrc = csrc_dir()
    folders = (csrc / "engine", csrc / "engine/kernels")
    return build_library(
        "mamba",
        [source for folder in folders for source in sorted(folder.glob("*.c"))],
        include_dirs=[csrc / folder for folder in ("include", "engine", "simd")],
        # The floating-point flags of ./mamba, and so its bits.
        cflags=["-std=c11", "-O3", *shared_flags("ENGINE_MATH"), "-fvisibility=hidden"],
        file_cflags=isa_flags("{}.c"),
    )


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    """Load the library once, and declare the types of its functions."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(3, f"{path} cannot be loaded: {error}") from error
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    error_out = ctypes.POINTER(_Error)
    batch = [pointer, pointer, size, ctypes.c_int, pointer, size, pointer, error_out]
    model_out = ctypes.POINTER(pointer)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "mamba_model_open": (ctypes.c_int, [model_out, ctypes.c_char_p, error_out]),
        "mamba_model_read": (ctypes.c_int, [model_out, ctypes.c_char_p, error_out]),
        "mamba_model_from_bytes": (ctypes.c_int, [model_out, pointer, size, error_out]),
        "mamba_model_close": (None, [pointer]),
        "mamba_model_info": (ctypes.POINTER(_Info), [pointer]),
        "mamba_max_threads": (ctypes.c_int, []),
        "mamba_batch_bytes": (size, [pointer, ctypes.c_int]),
        "mamba_forward_batch": (ctypes.c_int, batch),
        "mamba_forward_batch_u8": (ctypes.c_int, batch),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
