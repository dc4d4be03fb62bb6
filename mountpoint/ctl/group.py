"""The common parts of all `mount-s3ctl` commands: `--json`, errors, exit codes.

A command writes its result to standard output. With `--json` the result is JSON, and so is an
error, on standard error: an object with "error", "hint" and "exit_code". Exit codes: 0; 1 for a
MountError; 2 for an invalid command line; 130 for Ctrl-C. Commands that run until Ctrl-C handle it
themselves, and exit with 0.
"""

import json
import sys
from typing import IO, Any

import click

from mountpoint.errors import MountError
from mountpoint.log.format import printable_lines

INTERRUPTED = 130

json_option = click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")


def write_json(result: Any) -> None:
    """Write a command's result, or one result of a stream, as a line of JSON."""
    click.echo(json.dumps(result))


def confirm(question: str, did: str, do: str) -> None:
    """Ask before something is removed. Raises MountError unless the answer is yes.

    `did` and `do` are the verb: "nothing was removed", "add --yes to remove".
    """
    try:
        confirmed = click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():  # the user pressed Ctrl-C
            raise
        raise MountError(
            f"nothing was {did}: standard input is no terminal to ask for confirmation",
            f"add --yes to {do} without confirmation",
        ) from None
    if not confirmed:
        raise MountError(f"nothing was {did}: the answer was not yes")


class Group(click.Group):
    """A group of commands that report errors as JSON if the command line has --json."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line. Look for --json first: an error may come before it."""
        ctx.meta[__name__] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        as_json = ctx.meta[__name__]
        try:
            return super().invoke(ctx)
        except MountError as error:
            raise _Failure(error.what, error.hint, as_json) from None
        except click.UsageError as error:
            raise (_Misuse(error.format_message(), "", as_json) if as_json else error) from None
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True, nl=sys.stderr.isatty())  # put the shell's prompt on a new line
            raise click.exceptions.Exit(INTERRUPTED) from None


class _Failure(click.ClickException):
    """An error with a hint, as text or as JSON."""

    def __init__(self, what: str, hint: str, as_json: bool) -> None:
        super().__init__(printable_lines(f"{what}\n{hint}".strip()))
        error = {"error": what, "hint": hint, "exit_code": self.exit_code}
        self._json = error if as_json else None

    def show(self, file: IO[Any] | None = None) -> None:
        """Write it to standard error."""
        if self._json is None:
            super().show(file)
        else:
            click.echo(json.dumps(self._json), file=file, err=True)


class _Misuse(_Failure):
    """An invalid command line."""

    exit_code = click.UsageError.exit_code
