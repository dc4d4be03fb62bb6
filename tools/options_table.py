"""Write the tables of `docs/configuration.md`: options and variables, compared with AWS's.

    python -m tools.options_table

An option's effect and default are click's help text. `reference_options` says how it differs from
the option of AWS's mount-s3. The text around the tables is written by hand.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import click

from mountpoint.cli import main as cli
from tools.reference_options import OPTIONS, VARIABLES, Known

DOCUMENT = Path(__file__).parents[1] / "docs" / "configuration.md"
REGENERATE = "python -m tools.options_table"

#: Variables that replace options.
ENVIRONMENT = {
    "--region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "--endpoint-url": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "--dual-stack": ("AWS_USE_DUALSTACK_ENDPOINT",),
    "--profile": ("AWS_PROFILE",),
    "--ca-bundle": ("AWS_CA_BUNDLE",),
    "--debug": ("MOUNTPOINT_LOG",),
    "--debug-crt": ("MOUNTPOINT_LOG",),
}

#: Variables that no option replaces.
ONLY_VARIABLES = {
    "MOUNTPOINT_LOG": "which lines are logged: `LEVEL` or `TARGET=LEVEL`, separated by commas; "
    "overrides `--debug` and `--debug-crt`",
    "AWS_USE_FIPS_ENDPOINT": "`true`: use endpoints that are validated for FIPS 140",
    "AWS_MAX_ATTEMPTS": "largest number of attempts for a request, 1 to 1000",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "`true`: ignore endpoints in variables and in the AWS "
    "configuration",
    "AWS_EC2_METADATA_DISABLED": "`true`: do not ask the EC2 instance for region, type or "
    "credentials",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT": "address of the instance metadata service",
    "HTTPS_PROXY": "proxy for requests to S3 and for credentials; for `http://` endpoints use "
    "`HTTP_PROXY`",
    "NO_PROXY": "hosts to reach without a proxy",
    "OTEL_EXPORTER_OTLP_HEADERS": "headers of requests to the collector; the library's other "
    "variables work, too ([metrics.md](metrics.md))",
    "NO_COLOR": "no colours on a terminal",
    "TMPDIR": "directory for temporary files, which hold written data when memory is short "
    "([writing.md](writing.md#new-files))",
    "XDG_STATE_HOME": "directory for the journals of pending uploads ([cleanup.md](cleanup.md))",
}

DEFAULT = re.compile(r"\s*\[default: (.*)\]$", re.DOTALL)


def context() -> click.Context:
    """Return the context that click needs to show the options."""
    return click.Context(cli.main, info_name="mount-s3", **cli.main.context_settings)


def options(*, hidden: bool = False) -> list[click.Option]:
    """Return the options that the help shows; with `hidden`, all options."""
    found = [each for each in cli.main.get_params(context()) if isinstance(each, click.Option)]
    return [each for each in found if hidden or not each.hidden]


def long_name(option: click.Option) -> str:
    """Return the name that documents use: the first long name."""
    return next((name for name in option.opts if name.startswith("--")), option.opts[0])


def described(option: click.Option) -> tuple[str, str, str]:
    """Return an option's names with its value, its default and its effect."""
    record = option.get_help_record(context())
    assert record is not None
    value = "" if option.is_flag else f" {option.make_metavar(context())}"
    names = ", ".join(f"`{name}{value}`" for name in option.opts)
    text = " ".join(record[1].split())
    found = DEFAULT.search(text)
    return names, found[1] if found else "", DEFAULT.sub("", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _row(*cells: str) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _rows(known: dict[str, Known]) -> Iterator[tuple[str, str]]:
    """Yield topic and row of each option."""
    for option in options():
        names, default, effect = described(option)
        name = long_name(option)
        variables = ", ".join(ENVIRONMENT.get(name, ()))
        theirs = known.get(name)
        reference = "only here" if theirs is None else theirs.differs or "same"
        topic = getattr(option, "topic", "Other options")
        yield topic, _row(names, default, variables, effect, reference)


def tables() -> str:
    """Return all tables."""
    topics: dict[str, list[str]] = {}
    for topic, row in _rows({each.name: each for each in OPTIONS}):
        topics.setdefault(topic, []).append(row)
    heads = ["option", "default", "variable", "effect", "compared with AWS's 1.24"]
    lines: list[str] = []
    for topic, rows in topics.items():
        lines += [f"### {topic}", "", _row(*heads), "|---" * len(heads) + "|", *rows, ""]
    lines += ["### Variables without an option", ""]
    lines += [_row("variable", "effect", "compared with AWS's 1.24"), "|---|---|---|"]
    spoken = {name for names in ENVIRONMENT.values() for name in names}
    for name, effect in ONLY_VARIABLES.items():
        theirs = VARIABLES[name] or "same" if name in VARIABLES else "only here"
        lines.append(_row(f"`{name}`", effect, theirs))
    for name, theirs in VARIABLES.items():
        if name not in spoken and name not in ONLY_VARIABLES:
            lines.append(_row(f"`{name}`", "none", theirs))
    return "\n".join(lines) + "\n"


def updated(text: str) -> str:
    """Return the document with the current tables."""
    begin, end = "<!-- tables: made by tools/options_table.py -->\n", "<!-- end of the tables -->"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"{DOCUMENT} has no marks around the tables")
    return f"{before}{begin}\n{tables()}\n{end}{after}"


def main() -> None:
    """Write the document."""
    DOCUMENT.write_text(updated(DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
