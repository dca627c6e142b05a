"""Compile the project's C sources on first use, and cache the shared libraries."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import shlex
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mnist_mamba.atomic_write import replacing

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "MNIST_MAMBA_CACHE"
_OPTIONAL_FLAGS = ("-fopenmp", "-march=native")
_HEADER_SUFFIXES = (".h", ".inc")
_LIBRARY_SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
_STDERR_TAIL = 2000
_COMPILE_TIMEOUT_S = 300


class NativeBuildError(RuntimeError):
    """A C library could not be built; the message holds the command and its output."""


def csrc_dir() -> Path:
    """Return the folder of the C sources: csrc/ of a checkout, or the copy inside a wheel.

    Raises:
        NativeBuildError: neither exists.
    """
    package = Path(__file__).resolve().parent
    candidates = (package.parents[1] / "csrc", package / "_csrc")
    for candidate in candidates:
        if (candidate / "scan").is_dir():
            return candidate
    tried = " or ".join(str(candidate) for candidate in candidates)
    raise NativeBuildError(f"C sources not found: expected a folder scan/ in {tried}")


def shared_flags(name: str) -> tuple[str, ...]:
    """Return the compiler flags that csrc/flags.mk has under `name`, like "SCAN_MATH".

    Raises:
        NativeBuildError: there is no such file, or no such name in it.
    """
    path = csrc_dir() / "flags.mk"
    for line in _read(path).decode().splitlines():
        key, separator, flags = line.partition(" := ")
        if separator and key == name:
            return tuple(flags.split())
    raise NativeBuildError(f"{path} has no line `{name} := flags`")


def isa_flags(pattern: str) -> dict[str, tuple[str, ...]]:
    """Return flags by source name, from a pattern like "kernel_{}.c"; none but on x86-64.

    The sources run only after a check of the processor.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {}
    return {pattern.format(isa): shared_flags(f"ISA_{isa}") for isa in ("avx2", "avx512")}


def build_library(
    name: str,
    sources: Sequence[Path],
    include_dirs: Sequence[Path] = (),
    cflags: Sequence[str] = (),
    file_cflags: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Compile C sources into a shared library, or find it in the cache.

    The compiler is `$CC`, else `cc`. Flags that it may not support, `-fopenmp` (always asked for)
    and `-march=native`, are dropped if it does not. The cache key covers the contents of the
    sources and of every header (.h, .inc) in `include_dirs`, the flags, the compiler's version and,
    with `-march=native`, the processor. Concurrent builds are safe: each writes its own temporary
    file and renames it.

    Args:
        name: start of the library's file name.
        sources: the C files.
        include_dirs: folders for `-I`; the cache key covers all headers below them.
        cflags: compiler flags, for instance `-O3`.
        file_cflags: more flags for single sources, by file name: an instruction set that only code
            after a run-time check may use.

    Returns:
        The path of the shared library, in `$MNIST_MAMBA_CACHE`, else `$XDG_CACHE_HOME/mnist_mamba`,
        else `~/.cache/mnist_mamba`, else a private folder in the temporary one.

    Raises:
        NativeBuildError: no compiler, a compile error, a missing source or an unusable cache.
    """
    compiler = _compiler_command()
    flags = (*cflags, "-fopenmp")
    special = file_cflags or {}
    key = _build_key(compiler, flags, special, sources, include_dirs)
    folder = _cache_dir()
    library = folder / f"{name}-{key[:24]}{_LIBRARY_SUFFIX}"
    if library.is_file():
        return library
    # The key has the dropped flags too: which ones a compiler lacks follows from its version.
    supported = [f for f in flags if f not in _OPTIONAL_FLAGS or _flag_works(compiler, f)]
    compile_ = [*compiler, *supported, *(f"-I{folder}" for folder in include_dirs), "-fPIC"]
    logger.info("building %s: %s", library.name, shlex.join((*compiler, *supported)))
    with tempfile.TemporaryDirectory(prefix="mnist_mamba-") as scratch:
        objects = [str(Path(scratch) / f"{i}.o") for i in range(len(sources))]
        commands = [
            [*compile_, *special.get(source.name, ()), "-c", str(source), "-o", target]
            for source, target in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        try:
            with replacing(library) as temporary:
                # -lm comes after its users.
                _run([*compiler, *supported, "-shared", "-o", str(temporary), *objects, "-lm"])
        except OSError as error:
            raise NativeBuildError(f"cannot store {library}: {error}") from error
    return library


def _compiler_command() -> tuple[str, ...]:
    named = os.environ.get("CC", "")
    try:
        return tuple(shlex.split(named)) or ("cc",)
    except ValueError as error:
        raise NativeBuildError(f"CC={named} is not a command: {error}") from error


@functools.lru_cache(maxsize=16)
def _compiler_version(compiler: tuple[str, ...]) -> str:
    """Return the output of --version; lru_cache keeps no exceptions, so a failure is retried."""
    return _run([*compiler, "--version"]).stdout


def _flag_works(compiler: tuple[str, ...], flag: str) -> bool:
    """Whether this compiler can build a library with the flag."""
    with tempfile.TemporaryDirectory(prefix="mnist_mamba-") as folder:
        source = Path(folder) / "probe.c"
        source.write_text("int probe(void);\nint probe(void) { return 0; }\n", encoding="utf-8")
        output = Path(folder) / "probe.so"
        try:
            _run([*compiler, flag, "-shared", "-fPIC", str(source), "-o", str(output)])
        except NativeBuildError as error:
            logger.debug("flag %s dropped: %s", flag, error)
            return False
    return True


def _build_key(
    compiler: tuple[str, ...],
    flags: Sequence[str],
    file_flags: Mapping[str, Sequence[str]],
    sources: Sequence[Path],
    include_dirs: Sequence[Path],
) -> str:
    digest = hashlib.sha256()

    def add(*fields: bytes) -> None:
        for field in fields:  # the length separates fields
            digest.update(len(field).to_bytes(8, "little"))
            digest.update(field)

    add(platform.machine().encode(), _compiler_version(compiler).encode())
    add(*(part.encode() for part in (*compiler, "", *flags)))
    if "-march=native" in flags:
        add(_processor().encode())
    for source in sources:
        more = " ".join(file_flags.get(source.name, ()))
        add(b"source", source.name.encode(), more.encode(), _read(source))
    for folder in include_dirs:
        for header in sorted(folder.rglob("*")):
            if header.suffix in _HEADER_SUFFIXES and header.is_file():
                add(b"header", str(header.relative_to(folder)).encode(), _read(header))
    return digest.hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NativeBuildError(f"cannot read the C source {path}: {error}") from error


@functools.lru_cache(maxsize=1)
def _processor() -> str:
    """Return what -march=native depends on: the instruction sets the kernel lists, or a name."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        wanted = ("flags", "Features", "model name", "CPU part", "isa")
        found = {line.partition(":")[0].strip(): line for line in reversed(lines)}
        fields = [found[field] for field in wanted if field in found]
        if fields:
            return "\n".join(fields)
    return f"{platform.processor()} {platform.node()}"


def _cache_dir() -> Path:
    """Return the cache folder, created and writable."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        folder = Path(named)
        if not _make_writable(folder):
            raise NativeBuildError(f"{CACHE_VARIABLE}={named} is not a writable folder")
        return folder
    for parent in _user_cache_parents():
        if _make_writable(parent / "mnist_mamba"):
            return parent / "mnist_mamba"
    return _private_temp_dir()


def _user_cache_parents() -> Iterator[Path]:
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and Path(xdg).is_absolute():  # the XDG standard: ignore relative paths
        yield Path(xdg)
    with contextlib.suppress(RuntimeError):  # no home folder
        yield Path.home() / ".cache"


def _make_writable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _private_temp_dir() -> Path:
    """Return a folder in the shared temporary one that no other user can write to."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"mnist_mamba-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise NativeBuildError(
            f"no cache folder is writable, not even {folder}: {error}; set {CACHE_VARIABLE}"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o077:
        raise NativeBuildError(
            f"{folder} is not a private folder of this user (mode 0700); set {CACHE_VARIABLE}"
        )
    return folder


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a compiler command; if it fails, raise NativeBuildError with the end of its stderr."""
    shown = shlex.join(command)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_COMPILE_TIMEOUT_S,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise NativeBuildError(
            f"C compiler {command[0]!r} not found: install gcc or clang, or set CC"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeBuildError(f"the compiler could not run: {shown}: {error}") from error
    if done.returncode != 0:
        tail = done.stderr.strip()[-_STDERR_TAIL:]
        raise NativeBuildError(f"the compiler failed ({done.returncode}): {shown}\n{tail}")
    return done
