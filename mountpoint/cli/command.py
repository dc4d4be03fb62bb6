"""Parse and show a command line: options by topic, `-o` items, values, errors in click's form.

`-o` items (`fstab`) become long options before the others and are parsed with them, so both ways
accept the same names.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from mountpoint.cli.fstab import REFUSED, long_options
from mountpoint.config import INDEFINITE_TTL_S
from mountpoint.errors import MountError
from mountpoint.log.format import printable_lines
from mountpoint.s3.aws.profile import open_session

#: The number of seconds that stands for the word "minimal".
MINIMAL = -1.0

#: A size as users write it, such as 8M, 8 MiB or 8mb.
_SIZE = re.compile(r"(\d+) ?([KMGT])(?:i?B)?", re.IGNORECASE)

EPILOG = """\
A line in /etc/fstab has the type fuse.mount-s3. Write the long options without dashes, separated
by commas; 'ro' and 'rw' work, too. Put a backslash before a comma, backslash or double quote
inside a value:

\b
  s3://my-bucket/a/ /mnt/data fuse.mount-s3 _netdev,ro,allow-other 0 0

Options of mount(8) for all file systems, such as nofail or noatime, may be among them. Write the
's3://': without it, mount(8) takes a bucket for a path if a file has the same name. mount(8) finds
mount-s3 only in /usr/local/bin and /usr/bin. If it is installed elsewhere, link it there.

Examples:

\b
  mount-s3 my-bucket /mnt/data
  mount-s3 --read-only --region eu-west-1 s3://my-bucket/logs/ ~/logs

Unmount with: umount DIRECTORY, or fusermount -u DIRECTORY.

Environment: AWS_CA_BUNDLE works as --ca-bundle, AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL work as
--endpoint-url. AWS_MAX_ATTEMPTS limits the attempts of each request. MOUNTPOINT_LOG overrides
--debug and --debug-crt. It has LEVEL or TARGET=LEVEL, separated by commas, such as
'debug,awscrt=warn'.
"""


class TopicOption(click.Option):
    """An option that the help lists under a topic; with a `label`, that text is its entry."""

    def __init__(self, *args: Any, topic: str, label: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.topic = topic
        self.label = label

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the left and right column of the help."""
        record = super().get_help_record(ctx)
        return (self.label, record[1]) if record and self.label else record


class MountCommand(click.Command):
    """A command with `-o`, help by topic, and MountErrors in click's form."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse `args` with all `-o` items first, so that other options override them."""
        if args:
            given, _, _ = self.make_parser(ctx).parse_args(list(args))
            with _click_errors():
                names = self._long_names(), self._suggested()
                args = [*long_options(given.get("fstab_options", ()), *names), *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _click_errors():
            return super().invoke(ctx)

    def _long_names(self, *, hidden: bool = True) -> list[str]:
        options = (each for each in self.params if hidden or not getattr(each, "hidden", False))
        names = (name for option in options for name in option.opts)
        return [name[2:] for name in names if name.startswith("--")]

    def _suggested(self) -> list[str]:
        """Return the names to suggest for an unknown item of `-o`."""
        return ["ro", *(each for each in self._long_names(hidden=False) if each not in REFUSED)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments, then the options by topic, in the table's order."""
        with formatter.section("Arguments"):
            formatter.write_dl(
                [
                    ("BUCKET", "Bucket name, access point alias or ARN, or s3://BUCKET/PREFIX/."),
                    (
                        "DIRECTORY",
                        "Existing directory for the mount, or /dev/fd/N (docs/containers.md).",
                    ),
                ]
            )
        topics: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is not None and isinstance(option, click.Option):
                topics.setdefault(getattr(option, "topic", "Options"), []).append(record)
        for topic, records in topics.items():
            with formatter.section(topic):
                formatter.write_dl(records, col_max=30)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the paragraphs after the options, without click's indentation."""
        formatter.write_paragraph()
        formatter.write_text(EPILOG)


@contextlib.contextmanager
def _click_errors() -> Iterator[None]:
    try:
        yield
    except MountError as error:
        raise click.ClickException(printable_lines(str(error))) from None


def octal(text: str) -> int:
    """Return the value of octal digits, as in chmod(1)."""
    try:
        return int(text, 8)
    except ValueError:
        raise click.BadParameter(f"'{text}' is not an octal number such as 0755.") from None


def number_of(unit: str, of_bytes: int = 0) -> Callable[[str | int], int]:
    """Return a parser of whole numbers; `of_bytes` is the unit's size in bytes, for sizes."""

    def read(text: str | int) -> int:
        try:
            return int(text)
        except ValueError:
            size = _SIZE.fullmatch(str(text)) if of_bytes else None
            meant = int(size[1]) << 10 * (1 + "kmgt".index(size[2].lower())) if size else 0
            more = f": {text} is {meant // of_bytes}" if meant and meant % of_bytes == 0 else ""
            raise click.BadParameter(f"'{text}' is not a whole number of {unit}{more}.") from None

    return read


def time_to_live(text: str) -> float:
    """Return the seconds in `text`; `MINIMAL` for the word "minimal"."""
    words = {"minimal": MINIMAL, "indefinite": INDEFINITE_TTL_S}
    if text in words:
        return words[text]
    if re.fullmatch(r"\+?[0-9]+", text):
        return float(text)
    raise click.BadParameter(f"'{text}' is not a whole number of seconds, minimal or indefinite.")


def unless_checking(ctx: click.Context, param: click.Parameter, text: str | None) -> str:
    """Return the directory, or "" if it is missing, which only --check allows."""
    if text is None and not ctx.params.get("check"):
        raise click.MissingParameter(ctx=ctx, param=param)
    return text or ""


def directories(_ctx: click.Context, _param: click.Parameter, text: str) -> list[CompletionItem]:
    """Make the shell complete a directory."""
    return [CompletionItem(text, type="dir")]


def files(_ctx: click.Context, _param: click.Parameter, text: str) -> list[CompletionItem]:
    """Make the shell complete a file."""
    return [CompletionItem(text, type="file")]


def profiles(_ctx: click.Context, _param: click.Parameter, text: str) -> list[CompletionItem]:
    """Return the AWS profiles that begin with `text`."""
    try:
        names = open_session(None).available_profiles
    except MountError:  # mounting reports it
        names = []
    return [CompletionItem(name) for name in names if name.startswith(text)]


def option(topic: str, *names: str, **attributes: Any) -> Callable[[Any], Any]:
    return click.option(*names, cls=TopicOption, topic=topic, **attributes)
