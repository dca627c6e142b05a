"""ctypes binding of the C engine."""

from __future__ import annotations

import ctypes
import functools
import math
import operator
import os
import sys
import weakref
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnist_mamba import __version__
from mnist_mamba.c_build import build_library, csrc_dir, is_forked, isa_flags, shared_flags
from mnist_mamba.config import EXIT_MARGIN, LIMITS

LIBRARY_VARIABLE = "MNIST_MAMBA_LIBRARY"
"""Environment variable with the path of a built libmamba to use instead of compiling one.

An empty one counts as unset.
"""

MAX_THREADS = 1024
"""Number of threads that a batch may ask for (csrc/engine/threads.h)."""

PREPARATIONS = ("resize", "mnist")
"""How a picture becomes a model's pixels (docs/pictures.md), in the order of C's numbers."""

EXIT_MARGINS = f"0 or 2^-126 to {EXIT_MARGIN.high:g}"
"""The exit margins that the engine takes; it counts smaller numbers as zero."""

NOTHING_DRAWN = 7
"""Status of a picture without a digit (csrc/include/mamba.h)."""

_u32 = ctypes.c_uint32
_SIZE = ("height", "width", "channels")


_LIBRARIES = {"win32": "mamba.dll", "darwin": "libmamba.dylib"}
_PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED_LIBRARY = _PACKAGE / "_engine" / _LIBRARIES.get(sys.platform, "libmamba.so")
"""The libmamba of a wheel for this platform; a checkout and other wheels have none."""

SHIPPED_MODEL = _PACKAGE / "_engine" / "mnist_mamba.bin"
"""The model that comes with this package."""

if not SHIPPED_MODEL.exists():  # a checkout
    SHIPPED_MODEL = _PACKAGE.parents[1] / "models" / SHIPPED_MODEL.name


class EngineError(RuntimeError):
    """An error of the engine: its message, and `status`, its code (csrc/include/mamba.h)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, str(self))


class _Error(ctypes.Structure):
    _fields_ = (("status", ctypes.c_int), ("message", ctypes.c_char * 256))


class _Picture(ctypes.Structure):
    """`struct mamba_picture`, field by field."""

    _fields_ = (
        ("pixels", ctypes.c_void_p),
        *((name, ctypes.c_size_t) for name in ("width", "height", "channels", "row_stride")),
    )


class _Info(ctypes.Structure):
    """`struct mamba_info`, field by field."""

    _fields_ = (
        *((name, _u32) for name in ("height", "width", "channels", "n_classes")),
        *((name, _u32) for name in ("preparation", "weight_type", "names_bytes", "members")),
        *((name, ctypes.c_float) for name in ("exit_margin", "pixel_mean", "pixel_std")),
        *((name, _u32) for name in ("stem", "patch_height", "patch_width", "stem_width")),
        *((name, _u32) for name in ("d_model", "n_layers", "d_state", "d_conv", "d_inner")),
        *((name, _u32) for name in ("dt_rank", "direction", "pool")),
        *((name, _u32) for name in ("tied_a", "pos_embed", "local_conv", "length")),
        ("norm_eps", ctypes.c_float),
        ("version", _u32),
        ("crc32", _u32),
        ("parameters", ctypes.c_uint64),
        ("file_bytes", ctypes.c_uint64),
    )


class _Model:
    """A model that the C library holds open until the last reference to this object is gone.

    A call of the library holds a reference, so no other thread can close the model meanwhile. That
    needs no lock, which a fork could leave locked in the child for ever. A model does not change,
    so its copy is the same object.

    Args:
        source: a model file: its path, or its bytes, which are copied.
        mmap: map the file.
        named: a built libmamba, or None for the default of `find_library`.
        exit_margin: None for the file's.
    """

    def __init__(
        self, source: Any, mmap: bool, named: str | Path | None, exit_margin: float | None
    ) -> None:
        path = find_library(named)
        self.library = _load(path)
        self._options = (mmap, path if named is not None else None, exit_margin)
        self._as_parameter_ = ctypes.c_void_p()  # ctypes passes it to C
        error = _Error()
        out = (ctypes.byref(self._as_parameter_), ctypes.byref(error))
        self._source: Path | NDArray[np.uint8]
        if isinstance(source, str | os.PathLike):
            self._source = Path(source).absolute()
            opener = self.library.mamba_model_open if mmap else self.library.mamba_model_read
            status = opener(out[0], _c_path(source), out[1])
        else:
            # The engine uses the bytes in place; numpy's memory is aligned for any type.
            self._source = data = np.array(_buffer(source))
            status = self.library.mamba_model_from_bytes(
                out[0], data.ctypes.data, len(data), out[1]
            )
        _check(status, error)
        close = weakref.finalize(self, self.library.mamba_model_close, self._as_parameter_)
        close.atexit = False  # a daemon thread may still use the model then
        if exit_margin is not None:
            _check(self.library.mamba_set_exit_margin(self, exit_margin, out[1]), error)
        info = self.library.mamba_model_info(self).contents
        self.info: dict[str, int | float] = {name: getattr(info, name) for name, _ in info._fields_}
        self.class_names = tuple(
            self.library.mamba_class_name(self, i).decode() for i in range(info.n_classes)
        )

    def __copy__(self) -> _Model:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> _Model:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.info["crc32"], self._source, *self._options)


def _open_again(crc32: int, source: Any, *options: Any) -> _Model:
    """Open the model of a pickle, which must still have this checksum."""
    model = _Model(source, *options)
    if model.info["crc32"] != crc32:
        raise EngineError(
            4,
            f"{source}: got a model with crc32 {model.info['crc32']:08X}, expected {crc32:08X}, "
            "the pickled engine's: the file was replaced",
        )
    return model


def _buffer(source: Any) -> NDArray[np.uint8]:
    try:
        return np.frombuffer(source, dtype=np.uint8)
    except (TypeError, BufferError) as error:
        raise TypeError(
            f"model: got {type(source).__name__}, expected a path or the bytes of a model file, "
            f"without gaps: {error}"
        ) from error


def _c_path(path: str | os.PathLike[str]) -> bytes:
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError(f"path {str(path)!r}: got a NUL character, at which C ends a path")
    return encoded


def _check(status: int, error: _Error) -> None:
    if status:
        raise EngineError(status, error.message.decode(errors="replace"))


class Answers(NamedTuple):
    """A model's answers to n images."""

    logits: NDArray[np.float32]
    """(n, n_classes): the mean over the members that were asked."""
    members_asked: NDArray[np.uint8]
    """(n,): how many members of an ensemble each image needed."""


class Engine:
    """A model file opened by the C engine: images in, logits out.

    Threads may share an engine, and classify at the same time. Copies share the open model: it is
    unmapped once all of them are closed or deleted, and no call is running. A pickle has the path
    of the file, or its bytes, and the options; it opens the same model again or raises. A process
    forked after the import of this module classifies on one thread.

    Args:
        model: a model file (docs/format.md): its path, or its bytes, which are copied. Default: the
            model that comes with this package.
        threads: number of threads, which share the images of a batch; at most 1024; 0 uses all
            cores. The library of a wheel runs on one.
        library: a built libmamba. Default: $MNIST_MAMBA_LIBRARY, else the wheel's, else a library
            compiled from the engine's sources on first use and cached.
        mmap: map the file; False copies it, for a file that may change while it is open.
        exit_margin: members of an ensemble are asked until the two best classes of their mean
            logits are further apart than this, 2^-126 to 1e6; 0 asks all. Default: the file's.

    Attributes:
        info: the model's dimensions and pixel statistics, `struct mamba_info` by name; the shape is
            that of the first member.
        class_names: the name of each class.

    Raises:
        EngineError: the file or the exit margin was refused; the message names field, got and
            expected. Or the named library is not this version's libmamba.
        TypeError, ValueError: an argument has the wrong type or value.
        mnist_mamba.c_build.NativeBuildError: no library was named, and none can be compiled.

    >>> import tempfile
    >>> from mnist_mamba.export import write_model
    >>> from mnist_mamba.model import MambaClassifier, ModelConfig
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "model.bin"
    ...     write_model(path, MambaClassifier(ModelConfig(height=28, width=28, n_classes=10)))
    ...     with Engine(path) as engine:
    ...         images = np.zeros((5, 28, 28), dtype=np.uint8)
    ...         classes, probabilities = engine.predict(images), engine.probabilities(images)
    >>> classes.shape, probabilities.shape, probabilities.sum(axis=1).round(12).tolist()
    ((5,), (5, 10), [1.0, 1.0, 1.0, 1.0, 1.0])
    """

    def __init__(
        self,
        model: str | Path | bytes = SHIPPED_MODEL,
        threads: int = 0,
        library: str | Path | None = None,
        *,
        mmap: bool = True,
        exit_margin: float | None = None,
    ) -> None:
        self._threads = _thread_count(threads)
        margin = None if exit_margin is None else _exit_margin(exit_margin)
        self._model: _Model | None = _Model(model, mmap, library, margin)
        self.info = dict(self._model.info)
        self.class_names: tuple[str, ...] = self._model.class_names

    def answers(self, images: NDArray[Any]) -> Answers:
        """Return the logits of a batch, and how many members of an ensemble each image needed.

        Args:
            images: (n, height, width, channels), or (n, height, width) for one channel; uint8 or
                float32 in [0, 1]: a numpy array in any memory layout, or anything that numpy reads
                as one, such as a torch tensor on the CPU.

        Raises:
            ValueError: no such array, or values outside [0, 1].
            EngineError: the logits are not finite, or the engine was closed.
            MemoryError: no memory for the batch.
        """
        model = self._model  # stays open until this call ends
        if model is None:
            raise EngineError(2, "the engine was closed")
        pixels = _pixels(images, tuple(int(model.info[name]) for name in _SIZE))
        library, n = model.library, len(pixels)
        is_u8 = pixels.dtype == np.uint8
        forward = library.mamba_forward_batch_u8 if is_u8 else library.mamba_forward_batch
        threads = self._threads or library.mamba_max_threads()
        if is_forked():
            threads = 1  # the library may have been loaded after the fork, and not know of it
        threads = min(threads, max(n, 1))
        # Not create_string_buffer, which would clear the arena.
        arena = np.empty(library.mamba_batch_bytes(model, threads), dtype=np.uint8)
        logits = np.empty((n, int(model.info["n_classes"])), dtype=np.float32)
        asked = np.empty(n, dtype=np.uint8)
        memory = (arena.ctypes.data, arena.size, threads, pixels.ctypes.data, n)
        error = _Error()
        out = (logits.ctypes.data, asked.ctypes.data)
        _check(forward(model, *memory, *out, ctypes.byref(error)), error)
        return Answers(logits, asked)

    def logits(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits (n, n_classes) of a batch; arguments and errors as for `answers`."""
        return self.answers(images).logits

    def prepare(self, picture: NDArray[Any]) -> NDArray[np.uint8]:
        """Return what this model sees of a picture of any size, one image for `logits`.

        The model says how to prepare it (docs/pictures.md); arguments and errors are those of
        `prepare_picture`.
        """
        model = self._model
        if model is None:
            raise EngineError(2, "the engine was closed")
        size = [int(model.info[name]) for name in _SIZE]
        return _prepare(model.library.mamba_prepare_for_model, (model,), picture, size)

    def probabilities(self, images: NDArray[Any]) -> NDArray[np.float64]:
        """Return the probabilities (n, n_classes) of all classes, the softmax of the logits.

        Arguments and errors as for `answers`.
        """
        return softmax(self.logits(images))

    def predict(self, images: NDArray[Any]) -> NDArray[np.integer[Any]]:
        """Return the most likely class (n,) of each image.

        Arguments and errors as for `answers`.
        """
        predictions: NDArray[np.integer[Any]] = self.logits(images).argmax(axis=1)
        return predictions

    def close(self) -> None:
        """Give up the model, which running calls and copies keep; closing again has no effect."""
        self._model = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return the probabilities of logits, both (n, n_classes)."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def prepare_picture(
    picture: NDArray[Any],
    height: int,
    width: int,
    channels: int = 1,
    *,
    preparation: Literal["resize", "mnist"] = "mnist",
    library: str | Path | None = None,
) -> NDArray[np.uint8]:
    """Return a picture of any size as a model of this size sees it.

    Args:
        picture: (h, w) or (h, w, channels) uint8, 1 to 65,535 pixels a side: grey, grey and alpha,
            RGB, or RGB and alpha.
        height, width, channels: the size of the result.
        preparation: "mnist" finds the digit and shows it as MNIST does, "resize" scales the
            picture (docs/pictures.md).
        library: as for `Engine`.

    Returns:
        (height, width) if channels is 1, else (height, width, channels).

    Raises:
        EngineError: nothing is drawn (status 7), or the picture has no pixels.
        ValueError: not such an array, another size of the result, or another preparation.

    >>> picture = np.full((200, 300), 240, dtype=np.uint8)
    >>> picture[50:150, 90:110] = 30  # a dark stroke
    >>> prepare_picture(picture, 28, 28)[3:25, 12:16].max(axis=1).tolist()
    [0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, \
255, 255, 0]
    """
    if preparation not in PREPARATIONS:
        raise ValueError(f"preparation: got {preparation!r}, expected one of {PREPARATIONS}")
    size = [
        _whole(name, value) for name, value in zip(_SIZE, (height, width, channels), strict=True)
    ]
    function = _load(find_library(library)).mamba_prepare_picture
    return _prepare(function, (), picture, size, PREPARATIONS.index(preparation), *size)


def _prepare(
    function: Any, before: tuple[Any, ...], picture: Any, size: list[int], *after: int
) -> NDArray[np.uint8]:
    if _has_masks(picture):
        raise ValueError("picture: got masked pixels, expected an array without: fill them first")
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise ValueError(
            f"picture: got shape {pixels.shape} of {pixels.dtype}, expected (height, width) or "
            "(height, width, 1 to 4 channels) of uint8"
        )
    pixels = np.ascontiguousarray(pixels)
    height, width, channels = (*pixels.shape, 1)[:3]
    picture = _Picture(pixels.ctypes.data, width, height, channels, width * channels)
    out = np.zeros(size[:2] if size[2] == 1 else size, dtype=np.uint8)
    error = _Error()
    arguments = (*before, ctypes.byref(picture), *after, out.ctypes.data)
    _check(function(*arguments, ctypes.byref(error)), error)
    return out


def _whole(name: str, value: Any) -> int:
    number: Any = operator.index(value) if hasattr(value, "__index__") else value
    if isinstance(value, bool) or number not in LIMITS[name]:
        raise ValueError(f"{name}: got {value!r}, expected {LIMITS[name]}")
    return int(number)


def is_exit_margin(value: float) -> bool:
    """Return whether the engine takes an exit margin, in a file or from a caller."""
    return value == 0 or 2**-126 <= value <= EXIT_MARGIN.high


def _exit_margin(value: float) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"exit_margin: got {value!r}, expected a number")
    try:
        margin, got = float(value), repr(value)
    except OverflowError:
        margin, got = math.inf, "a number beyond all floats"
    if not is_exit_margin(margin):  # ctypes would round it, perhaps to one that is allowed
        raise EngineError(2, f"exit_margin: got {got}, expected {EXIT_MARGINS}")
    return margin


def _thread_count(threads: int) -> int:
    if isinstance(threads, bool) or not hasattr(threads, "__index__"):
        raise TypeError(f"threads: got {threads!r}, expected a whole number")
    count = operator.index(threads)
    if not 0 <= count <= MAX_THREADS:  # ctypes would cut larger ones
        raise ValueError(f"threads: got {count}, expected 1 to {MAX_THREADS}, or 0 for all cores")
    return count


def _pixels(images: Any, image: tuple[int, ...]) -> NDArray[Any]:
    """Return the checked images as C needs them: one contiguous, aligned array.

    Args:
        images: what the caller passed.
        image: the model's height, width and channels.
    """
    got = f"images ({type(images).__name__})"
    size = image if image[2] > 1 else image[:2]
    expected = f"expected (n, {', '.join(map(str, size))}), uint8 or float32 in [0, 1]"
    try:
        if _has_masks(images):
            raise ValueError("they have masked pixels, fill them first")
        pixels = np.require(images, requirements=["C_CONTIGUOUS", "ALIGNED", "ENSUREARRAY"])
    except (TypeError, ValueError, RuntimeError) as error:  # a ragged list, a tensor on a GPU
        raise ValueError(f"{got} are not an array: {error}; {expected}") from error
    if pixels.shape[1:] not in (image, size):
        hint = ": for one image, pass image[None]" if pixels.shape == size else ""
        raise ValueError(f"{got} have shape {pixels.shape}, {expected}{hint}")
    if pixels.dtype not in (np.uint8, np.float32):
        raise ValueError(f"{got} have dtype {pixels.dtype}, {expected}")
    if pixels.dtype == np.float32:
        low, high = pixels.min(initial=0), pixels.max(initial=0)
        if not (low >= 0 and high <= 1):  # also refuses NaN
            raise ValueError(
                f"{got} have values from {low:.9g} to {high:.9g}, outside [0, 1]: divide pixels of "
                "0 to 255 by 255, or pass them as uint8"
            )
    return pixels


def _has_masks(images: Any) -> bool:
    """Return whether pixels are masked, in one array or in lists of arrays."""
    if isinstance(images, list | tuple):
        return any(map(_has_masks, images))
    return hasattr(images, "__array__") and np.ma.is_masked(np.asanyarray(images))


def find_library(library: str | Path | None = None) -> Path:
    """Return the path of libmamba: `library`, $MNIST_MAMBA_LIBRARY, the wheel's, or compile it.

    Raises:
        EngineError: the named path is not a file.
        mnist_mamba.c_build.NativeBuildError: the library cannot be compiled.
    """
    if library is None:
        library = os.environ.get(LIBRARY_VARIABLE) or None
    if library is not None:
        path = Path(library)
        if not path.is_file():
            problem = "is not a file" if path.exists() else "not found"
            raise EngineError(3, f"{path} {problem}: expected a built libmamba")
        return path.resolve()
    return SHIPPED_LIBRARY if SHIPPED_LIBRARY.exists() else _compiled_library()


@functools.cache
def _compiled_library() -> Path:
    """Return the path of the compiled libmamba; only the first call of a process looks for it."""
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
    """Load the library once, check its version and declare the types of its functions."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(3, f"{path} cannot be loaded: {error}") from error
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    error_out = ctypes.POINTER(_Error)
    batch = [pointer, pointer, size, ctypes.c_int, pointer, size, *[pointer] * 2]
    batch.append(error_out)
    model_out = ctypes.POINTER(pointer)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "mamba_version": (ctypes.c_char_p, []),
        "mamba_model_open": (ctypes.c_int, [model_out, ctypes.c_char_p, error_out]),
        "mamba_model_read": (ctypes.c_int, [model_out, ctypes.c_char_p, error_out]),
        "mamba_model_from_bytes": (ctypes.c_int, [model_out, pointer, size, error_out]),
        "mamba_model_close": (None, [pointer]),
        "mamba_model_info": (ctypes.POINTER(_Info), [pointer]),
        "mamba_set_exit_margin": (ctypes.c_int, [pointer, ctypes.c_float, error_out]),
        "mamba_class_name": (ctypes.c_char_p, [pointer, _u32]),
        "mamba_max_threads": (ctypes.c_int, []),
        "mamba_prepare_picture": (ctypes.c_int, [pointer, *[_u32] * 4, pointer, error_out]),
        "mamba_prepare_for_model": (ctypes.c_int, [pointer, pointer, pointer, error_out]),
        "mamba_batch_bytes": (size, [pointer, ctypes.c_int]),
        "mamba_forward_batch": (ctypes.c_int, batch),
        "mamba_forward_batch_u8": (ctypes.c_int, batch),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name, None)
        if function is None:
            raise _wrong_library(path, f"a library without {name}")
        function.restype, function.argtypes = result, arguments
    version = library.mamba_version().decode(errors="replace")
    if version != __version__:  # its structures may be others
        raise _wrong_library(path, f"libmamba {version}")
    return library


def _wrong_library(path: Path, got: str) -> EngineError:
    return EngineError(
        3,
        f"{path}: got {got}, expected libmamba {__version__}: build it from this version's sources "
        "with `make omp`, or name no library to have one compiled",
    )
