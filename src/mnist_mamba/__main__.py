"""`mnist-mamba predict PICTURE...`, `score` and `serve`: classify with the C engine."""

from __future__ import annotations

import argparse
import csv
import errno
import io
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from mnist_mamba.c_build import NativeBuildError
from mnist_mamba.classify import classify
from mnist_mamba.config import printable
from mnist_mamba.engine import Engine, EngineError
from mnist_mamba.engine.binding import SHIPPED_MODEL
from mnist_mamba.engine.pictures import FORMATS, PictureError, read_picture

SHADES = " .:-=+*#%@"
CSV_COLUMNS = ("file", "prediction", "class", "probability", "members_asked")
NO_FILE, UNREADABLE = 3, 5
"""Exit codes of a file that cannot be opened or written, and of one that is not a picture, as of
`./mamba`; errors of the engine have theirs."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        prog="mnist-mamba",
        description=f"Classify pictures of any size: {', '.join(FORMATS)}.",
        epilog="Exit codes: 0 all pictures are answered; 2 usage; 3 a file cannot be opened, or "
        "stdout not written, or the address not used; 4 bad model file; 5 a file is not a picture; "
        "7 nothing is drawn in a picture. A picture that fails is named on stderr, the others are "
        "answered, and the largest code is returned.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="predict|score|serve")
    predict = commands.add_parser("predict", help="classify pictures", epilog=parser.epilog)
    predict.add_argument(
        "pictures",
        nargs="+",
        metavar="PICTURE",
        help="a picture file, or a folder of them; - is stdin",
    )
    predict.add_argument("--show", action="store_true", help="print what the model sees")
    lines = predict.add_mutually_exclusive_group()
    lines.add_argument("--json", action="store_true", help="print one line of JSON per picture")
    lines.add_argument("--csv", action="store_true", help="print a table as CSV")
    score = commands.add_parser(
        "score", help="classify a column of a Parquet file", epilog=parser.epilog
    )
    score.add_argument("source", type=Path, metavar="IN.parquet", help="file to read")
    score.add_argument("output", type=Path, metavar="OUT.parquet", help="file to write")
    score.add_argument(
        "--column",
        default="image",
        help="column of images, nested or flat, or picture files, binary or in base64 "
        "(default: %(default)s)",
    )
    serve = commands.add_parser("serve", help="answer HTTP requests", epilog=parser.epilog)
    serve.add_argument("--host", default="127.0.0.1", help="address (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0: any")
    for subparser in (predict, score, serve):
        subparser.add_argument(
            "--model",
            type=Path,
            default=SHIPPED_MODEL,
            help="model file (default: the shipped one)",
        )
    options = parser.parse_args(arguments)
    if options.command == "predict":
        if options.pictures.count("-") > 1:
            parser.error("PICTURE: got - twice, expected it once, as stdin holds one picture")
        if options.csv and options.show:
            parser.error("--csv: got --show, which has no place in a table; expected one of them")
    return options


def answer(engine: Engine, name: str, options: argparse.Namespace) -> str:
    """Classify one picture; return the lines to print."""
    picture = read_picture(os.fdopen(0, "rb") if name == "-" else name)
    image = engine.prepare(picture)
    (result,) = classify(engine, image[None])
    if options.json:
        height, width, channels = (*picture.shape, 1)[:3]
        result = {"file": name, **result}
        result["picture"] = {"width": width, "height": height, "channels": channels}
        if options.show:
            result["pixels"] = image.ravel().tolist()
        return json.dumps(result)
    probability = result["probabilities"][result["prediction"]]
    if options.csv:
        values = (name, result["prediction"], result["class"], probability, result["members_asked"])
        return csv_line(values)
    lines = [f"{printable(name)}: {result['class']}  {probability:.2%}"]
    if options.show:
        grey = image if image.ndim == 2 else image.mean(axis=2)
        shades = np.rint(grey / 255 * (len(SHADES) - 1)).astype(int)
        lines += ["".join(2 * SHADES[shade] for shade in row) for row in shades]
    return "\n".join(lines)


def csv_line(values: tuple[object, ...]) -> str:
    """Return values as a line of CSV, without its end."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def files(name: str) -> Iterator[str]:
    """Yield the files below a folder, except hidden ones, in order; any other name as it is."""
    below = [
        str(path)
        for path in sorted(Path(name).rglob("*"))
        if path.is_file() and not any(part[0] == "." for part in path.relative_to(name).parts)
    ]
    yield from below or [name]


def tell(error: object) -> None:
    """Print an error on stderr. If stderr is closed or full, the exit code alone says it."""
    if sys.stderr:  # print would use stdout instead
        try:
            print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
        except OSError:
            discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Lose what a stream could not write. Python would write it again, and exit with code 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code.

    Raises:
        OSError: stdout cannot be written.
    """
    options = parse(arguments)
    if sys.stdout is None:  # it is closed, and print would write nothing
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # its encoding may lack letters of class names
            stream.reconfigure(errors="backslashreplace")
    try:
        engine = Engine(options.model, threads=1)
    except (EngineError, NativeBuildError) as error:
        tell(error)
        return getattr(error, "status", NO_FILE)
    run = {"predict": predict, "score": score, "serve": serve}[options.command]
    with engine:
        try:
            return run(engine, options)
        except ModuleNotFoundError as error:
            tell(error)
            return NO_FILE


def predict(engine: Engine, options: argparse.Namespace) -> int:
    """Print the class of each picture, name on stderr those that fail; return the exit code."""
    code = 0
    if options.csv:
        print(csv_line(CSV_COLUMNS), flush=True)  # noqa: T201
    for name in (file for given in options.pictures for file in files(given)):
        try:
            lines = answer(engine, name, options)
        except OSError as error:
            tell(f"{printable(name)}: {error.strerror}")
            code = max(code, NO_FILE)
        except (PictureError, EngineError) as error:
            tell(f"{printable(name)}: {error}")
            code = max(code, getattr(error, "status", UNREADABLE))
        else:
            print(lines, flush=True)  # noqa: T201
    return code


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Say in the error of a missing package that this extra installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        advice = f"{error}: run `pip install 'mnist-mamba[{name}]'`"
        raise ModuleNotFoundError(advice, name=error.name) from error


def score(engine: Engine, options: argparse.Namespace) -> int:
    """Write a Parquet file with the answers to another; return the exit code."""
    with extra("parquet"):
        from mnist_mamba import parquet
    try:
        rows = parquet.score(engine, options.source, options.column, options.output)
    except OSError as error:
        tell(error)
        return NO_FILE
    except ValueError as error:
        tell(f"{options.source}: {error}")
        return UNREADABLE
    print(f"{options.output}: {rows} rows", flush=True)  # noqa: T201
    return 0


def serve(engine: Engine, options: argparse.Namespace) -> int:
    """Answer requests until the process gets SIGINT or SIGTERM; return the exit code."""
    with extra("serve"):
        from mnist_mamba import server
    try:
        listener = socket.create_server((options.host, options.port), backlog=2048)
    except (OSError, OverflowError) as error:
        tell(f"{options.host}:{options.port}: {error}; name others by --host and --port")
        return NO_FILE
    host, port = listener.getsockname()[:2]
    print(f"http://{host}:{port} serves {options.model}", flush=True)  # noqa: T201
    server.serve(engine, listener, server.Limits())
    return 0


def command() -> None:
    """Run the command and exit."""
    try:
        sys.exit(main())
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # its reader has ended, as `| head` does
            tell(f"stdout: {error.strerror}")
        if sys.stdout:
            discard(sys.stdout)
        sys.exit(NO_FILE)


if __name__ == "__main__":
    command()
