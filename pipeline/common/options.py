"""Command lines that choose or change params."""

from __future__ import annotations

import argparse

from pipeline.common.params import Params, ParamsError, load_params, read_yaml


def add_set_option(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the option `--set KEY=VALUE`, and return the parser."""
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="any other param by its dotted key; may be given several times",
    )
    return parser


def parse_params(parser: argparse.ArgumentParser) -> Params:
    """Parse the command line, and return params.yaml with the values that it changes."""
    return with_overrides(load_params(), parser.parse_args())


def with_overrides(params: Params, arguments: argparse.Namespace) -> Params:
    """Return the params with the command line's values, checked like those of the file."""
    given = vars(arguments)
    changes = {key: value for key, value in given.items() if "." in key and value is not None}
    for word in given.get("set", []):
        key, equals, text = word.partition("=")
        if not equals:
            raise ParamsError(f"--set {word}: expected KEY=VALUE, e.g. train.seed=1")
        changes[key] = read_yaml(text, f"--set {word}")
    return params.changed(changes, "command line") if changes else params
