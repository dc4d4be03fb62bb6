"""A command line: its arguments end with a zero byte each."""

import contextlib

import click

from mountpoint.cli.main import main
from mountpoint.cli.settings import make_config
from mountpoint.errors import MountError


def read(data: bytes) -> None:
    """Make a configuration of it: an error in words, or one."""
    arguments = [part.decode("utf-8", "surrogateescape") for part in data.split(b"\0")]
    with contextlib.suppress(MountError, click.ClickException):
        context = main.make_context("mount-s3", arguments, resilient_parsing=False)
        parsed = dict(context.params)
        for name in ("check", "as_json"):
            parsed.pop(name)
        make_config(**parsed)
