"""Compile the project's C sources on first use, and cache the shared libraries."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "MNIST_MAMBA_CACHE"
_OPTIONAL_FLAGS = {"-fopenmp": "on one thread", "-march=native": "slower"}
"""Flags that a compiler may lack, and how a library without them runs."""
_HEADER_SUFFIXES = (".h", ".inc")
_LIBRARY_SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
_STDERR_TAIL = 2000
_COMPILE_TIMEOUT_S = 300
_BUILD_BYTES = 2 << 20  # more than a build needs


_forks = 0


def _note_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def this_process() -> tuple[int, int]:
    """Return what tells this process from its parents, from whom it was forked by Python or by C.

    In another PID namespace, a child can have its parent's number.
    """
    return os.getpid(), _forks


_importer = this_process()


def is_forked() -> bool:
    """Return whether this process was forked, by Python or by C, after this module's import.

    Then it may use one thread only: OpenMP waits for ever for the parent's threads.
    """
    return this_process() != _importer


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
    """Compile C sources into a shared library, or find it in the cache; test that it loads.

    The compiler is `$CC`, else `cc`. Flags that it may not support, `-fopenmp` (always asked for)
    and `-march=native`, are dropped with a warning if it does not, and the library's name lists
    them: another process tries them again. The cache key covers the contents of the
    sources and of every header (.h, .inc) in `include_dirs`, the flags, the compiler's version and,
    with `-march=native`, the processor. Concurrent builds are safe: each renames its own library.

    The cache is `$MNIST_MAMBA_CACHE`, else the first of `$XDG_CACHE_HOME/mnist_mamba`,
    `$HOME/.cache/mnist_mamba`, `$TMPDIR/mnist_mamba-UID` and `/tmp/mnist_mamba-UID` that only this
    user and root can change, and that libraries can be loaded from.

    Args:
        name: start of the library's file name.
        sources: the C files.
        include_dirs: folders for `-I`; the cache key covers all headers below them.
        cflags: compiler flags, for instance `-O3`.
        file_cflags: more flags for single sources, by file name: an instruction set that only code
            after a run-time check may use.

    Raises:
        NativeBuildError: no compiler, a compile error, a missing source, no usable cache, or a
            library that cannot be loaded.
    """
    compiler, flags = _compiler_command(), (*cflags, "-fopenmp")
    inputs = (file_cflags or {}, sources, include_dirs)
    key = _build_key(compiler, flags, *inputs)
    refused: list[str] = []
    for place in _cache_places():
        try:
            folder = _private_folder(place)
            library = _cached(folder, f"{name}-{key}")
            if not library:
                dropped = [flag for flag in flags if _is_missing(flag, compiler, folder)]
                stem = "-".join((name, *(f"without{flag}" for flag in dropped), key))
                library = _cached(folder, stem)
            if not library:
                with _scratch(folder, stem) as built:
                    note = f"compiling the C library {name}, once, in a few seconds, into {folder}"
                    logger.warning("; ".join((note, *refused)))
                    used = [flag for flag in flags if flag not in dropped]
                    _compile(built, compiler, used, *inputs)
                    library = _store(built, folder)
            _check_loads(library, compiler)
            return library
        except OSError as error:
            refused.append(f"{place}: {error}")
    raise NativeBuildError(
        f"no folder for the compiled C library: {'; '.join(refused)}; set {CACHE_VARIABLE} to one "
        "that only you can write to, on a file system with free space that is not mounted noexec"
    )


def _cached(folder: Path, stem: str) -> Path | None:
    return next(filter(_is_intact, folder.glob(f"{stem}-*{_LIBRARY_SUFFIX}")), None)


@contextlib.contextmanager
def _scratch(folder: Path, stem: str) -> Iterator[Path]:
    """Yield the path of a library in a temporary folder; raise OSError if the disk is full.

    The body may raise NativeBuildError: if the disk is full by then, OSError replaces it.
    """
    builder = this_process()
    scratch = Path(tempfile.mkdtemp(prefix="build-", dir=folder))
    built = scratch / f"{stem}{_LIBRARY_SUFFIX}"
    try:
        _check_space(built)
        try:
            yield built
        except NativeBuildError:
            _check_space(built)
            raise
    finally:
        if this_process() == builder:  # not a child that was forked meanwhile
            shutil.rmtree(scratch, ignore_errors=True)


def _check_space(file: Path) -> None:
    """Raise OSError if a new file cannot have the size of a build."""
    file.write_bytes(bytes(_BUILD_BYTES))
    file.unlink()


def _check_loads(library: Path, compiler: tuple[str, ...]) -> None:
    """Load a library; raise OSError if the folder forbids it, else NativeBuildError if it fails."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        denied = ("failed to map segment", os.strerror(errno.EACCES))
        if str(library) in str(error) and any(cause in str(error) for cause in denied):
            raise
        raise NativeBuildError(
            f"the compiled {library} cannot be loaded: {error}; check what {shlex.join(compiler)} "
            "builds and links, then remove this file"
        ) from error


@functools.lru_cache(maxsize=64)
def _is_missing(flag: str, compiler: tuple[str, ...], folder: Path) -> bool:
    """Return whether a flag is optional and the compiler lacks it; warn once if so."""
    if flag not in _OPTIONAL_FLAGS:
        return False
    try:
        with _scratch(folder, "probe") as output:
            probe = output.with_suffix(".c")
            probe.write_text("int probe(void);\nint probe(void) { return 0; }\n", encoding="utf-8")
            command = [*compiler, flag, "-shared", "-fPIC", str(probe), "-o", str(output)]
            _run(command, TMPDIR=str(output.parent))
    except NativeBuildError as error:
        why = textwrap.shorten(str(error), 500)
        effect = _OPTIONAL_FLAGS[flag]
        logger.warning(f"C code will run {effect}: the compiler does not take {flag}: {why}")
        return True
    return False


def _compile(
    output: Path,
    compiler: tuple[str, ...],
    flags: Sequence[str],
    file_flags: Mapping[str, Sequence[str]],
    sources: Sequence[Path],
    include_dirs: Sequence[Path],
) -> None:
    """Compile `output`; all temporary files, also the compiler's, are in its folder."""
    run = functools.partial(_run, TMPDIR=str(output.parent))
    compile_ = [*compiler, *flags, *(f"-I{folder}" for folder in include_dirs), "-fPIC"]
    objects = [str(output.with_name(f"{i}.o")) for i in range(len(sources))]
    commands = [
        [*compile_, *file_flags.get(source.name, ()), "-c", str(source), "-o", target]
        for source, target in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, commands))
    link = [*compiler, *flags, "-shared", "-o", str(output)]
    if sys.platform == "darwin":  # a library contains its path there
        link.append(f"-Wl,-install_name,{output.name}")
    run([*link, *objects, "-lm"])  # -lm comes after its users
    if not output.exists():
        raise NativeBuildError(
            f"{shlex.join(compiler)} succeeded but wrote no library: set CC to a C compiler"
        )


def _store(built: Path, folder: Path) -> Path:
    """Move a library into the cache; its new name ends with a hash of its contents."""
    built.chmod(0o755)  # whatever the umask is
    with built.open("rb") as file:
        os.fsync(file.fileno())
        return built.rename(folder / f"{built.stem}-{_digest(file.read())}{built.suffix}")


def _is_intact(library: Path) -> bool:
    """Whether a library is a whole file (if not, loading it can end the process), not from others.

    A link is refused: it may lead to another user's file.
    """
    with contextlib.suppress(OSError):  # unreadable, or just removed
        # Reading a FIFO would wait for ever.
        if stat.S_ISREG(library.lstat().st_mode) and _is_private(library):
            return library.stem.endswith(_digest(library.read_bytes()))
    return False


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]


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


def _build_key(
    compiler: tuple[str, ...],
    flags: Sequence[str],
    file_flags: Mapping[str, Sequence[str]],
    sources: Sequence[Path],
    include_dirs: Sequence[Path],
) -> str:
    parts: list[object] = [platform.machine(), _compiler_version(compiler), compiler, tuple(flags)]
    if "-march=native" in flags:
        parts.append(_processor())
    parts += [(s.name, tuple(file_flags.get(s.name, ())), _read(s)) for s in sources]
    for folder in include_dirs:
        paths = (path for path in sorted(folder.rglob("*")) if path.suffix in _HEADER_SUFFIXES)
        parts += [(str(path.relative_to(folder)), _read(path)) for path in paths if path.is_file()]
    return _digest(repr(parts).encode())


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


def _cache_places() -> list[Path]:
    """Return the folders to try; the system's variables count if absolute (XDG standard)."""
    if named := os.environ.get(CACHE_VARIABLE):
        return [Path(named)]
    temporary = f"mnist_mamba-{os.geteuid()}"
    places = [
        Path(os.environ.get("XDG_CACHE_HOME", ""), "mnist_mamba"),
        Path(os.environ.get("HOME", ""), ".cache", "mnist_mamba"),
        Path(os.environ.get("TMPDIR", ""), temporary),
        Path("/tmp", temporary),
    ]
    return [place for place in places if place.is_absolute()]


def _private_folder(place: Path) -> Path:
    """Return `place` without symbolic links, created if missing, after a check of its safety.

    Raises:
        OSError: it cannot be created, others can change it, or no library can be loaded from it.
    """
    folder = Path(os.path.realpath(place))
    links = [path for path in (place, *place.parents) if path.is_symlink()]
    # Downwards: others cannot exchange what is in a folder that passed.
    for part in (*links, *reversed(folder.parents), folder):
        if not os.path.lexists(part):
            with contextlib.suppress(FileExistsError):
                part.mkdir(mode=0o700)
        if not _is_private(part, is_parent=part != folder):
            found = f"{stat.filemode(part.lstat().st_mode)} of user {part.lstat().st_uid}"
            raise PermissionError(f"{part} is {found}, not a folder that only you can change")
    if os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise PermissionError(f"{folder} is on a file system that is mounted noexec")
    return folder


def _is_private(path: Path, is_parent: bool = False) -> bool:
    """Whether nobody but this user and root can change a file or folder (OpenSSH's StrictModes).

    A parent may be sticky like /tmp, where others cannot rename what is not theirs, or belong to
    the owner of /, who is not user 0 in a user namespace without root. A link has no mode.
    """
    found = path.lstat()
    owners = {0, os.geteuid()} | ({Path("/").lstat().st_uid} if is_parent else set())
    if stat.S_ISLNK(found.st_mode) or (is_parent and found.st_mode & stat.S_ISVTX):
        return found.st_uid in owners
    return found.st_uid in owners and not found.st_mode & 0o022


def _run(command: Sequence[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a compiler command; if it fails, raise NativeBuildError with the end of its stderr."""
    shown = shlex.join(command)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=_COMPILE_TIMEOUT_S,
            env={**os.environ, **variables, "LC_ALL": "C"},
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
