r"""Write the man pages in `docs/man` from the programs' help.

    python -m tools.man_pages

click writes its help through a formatter. `ManFormatter` is a formatter that writes man(7) instead
of text in columns, so a page has everything that `--help` has: topics, examples, the commands of
`mount-s3ctl`. click-man (0.6) is no alternative: it has no topics and no text after the options,
and does not escape backslashes and leading quotes, which are commands for troff.
"""

import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

import click

from mountpoint import __version__
from mountpoint.cli import main as cli
from mountpoint.ctl import main as ctl
from tools.options_table import ENVIRONMENT, ONLY_VARIABLES

DIRECTORY = Path(__file__).parents[1] / "docs" / "man"
REGENERATE = "python -m tools.man_pages"
#: The date of the pages: that of the texts in this module.
DATE = "2026-11-23"

EXIT_STATUS = {
    "mount-s3": [
        ("0", "Mounted in the background, or unmounted in the foreground."),
        ("1", "Not mounted. One or two lines say why."),
        ("2", "An unknown option, or an invalid value."),
    ],
    "mount-s3ctl": [
        ("0", "Success. Also after Ctrl-C, for a command that runs until then."),
        ("1", "Something failed. One or two lines say what."),
        ("2", "An unknown option, or an invalid value."),
        ("130", "Interrupted by Ctrl-C before the command was done."),
    ],
}
SEE_ALSO = {
    "mount-s3": "mount-s3ctl(1), fusermount(1), fstab(5), mount.fuse(8), umount(8)",
    "mount-s3ctl": "mount-s3(1)",
}


#: An option in a sentence.
OPTION = re.compile(r"(?<![\w-])--?[a-z][\w-]*")


def escaped(text: str, *, code: bool = False) -> str:
    """Escape `text` for troff; in `code` a hyphen stays the ASCII character of options."""
    text = text.replace("\\", "\\e")
    if code:
        text = text.replace("-", "\\-")
    else:
        text = OPTION.sub(lambda found: found[0].replace("-", "\\-"), text)
        lines = textwrap.wrap(text, 78, break_long_words=False, break_on_hyphens=False)
        text = "\n".join(lines)
    # A line that begins with one of these would be a command.
    text = re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)
    return "".join(each if ord(each) < 128 else f"\\[u{ord(each):04X}]" for each in text)


def quoted(text: str) -> str:
    """Return `text` as one argument of a macro."""
    return '"' + escaped(text, code=True).replace('"', "\\(dq") + '"'


def marked(names: str) -> str:
    """Return the left side of a list: options in bold, placeholders in italics."""
    words = [
        f"\\fB{escaped(word, code=True)}\\fR"
        if word.startswith("-") or not word.isupper()
        else f"\\fI{escaped(word, code=True)}\\fR"
        for word in names.split()
    ]
    return " ".join(words)


class ManFormatter(click.HelpFormatter):
    """click's help as man(7), below headings of one level: "SH" or "SS"."""

    def __init__(self, level: str) -> None:
        super().__init__(width=10_000)  # troff breaks the lines
        self._level = level

    def _line(self, text: str) -> None:
        self.write(f"{text}\n")

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        """Write the synopsis and the heading of the description."""
        usage = f"\\fB{escaped(prog, code=True)}\\fR {marked(args)}"
        if self._level == "SH":
            self._line(f".SH SYNOPSIS\n{usage}\n.SH DESCRIPTION")
        else:
            self._line(usage)

    def write_heading(self, heading: str) -> None:
        """Write a heading."""
        self._line(f".{self._level} {quoted(heading.upper() if self._level == 'SH' else heading)}")

    def write_paragraph(self) -> None:
        """Do nothing: each text begins a paragraph."""

    def write_text(self, text: str) -> None:
        r"""Write paragraphs; one that begins with \b keeps its lines."""
        if self.current_indent == 0:  # the help's text after the options
            self._line(".SH NOTES")
        for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
            first, _, rest = paragraph.partition("\n")
            if not self.getvalue().rstrip().endswith(("DESCRIPTION", "NOTES")):
                self._line(".PP")
            if first.strip() == "\b":
                lines = [escaped(line.strip(), code=True) for line in rest.splitlines()]
                self._line("\n".join([".RS 4", ".nf", *lines, ".fi", ".RE"]))
            else:
                self._line(escaped(" ".join(paragraph.split())))

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        """Write a list of names and their descriptions."""
        for names, text in rows:
            self._line(f".TP\n{marked(names)}\n{escaped(' '.join(text.split()))}")


def context_of(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    """Return the context that click needs to write a command's help."""
    return click.Context(command, info_name=name, parent=parent, **command.context_settings)


def page(name: str, command: click.Command) -> str:
    """Return a program's page."""
    context = context_of(command, name, None)
    formatter = ManFormatter("SH")
    command.format_help(context, formatter)
    title = f".TH {quoted(name.upper())} 1 {DATE} {quoted(f'{name} {__version__}')}"
    short = escaped(command.get_short_help_str(200).rstrip("."))
    parts = [f'.\\" Made by tools/man_pages.py\n{title} "User Commands"\n.SH NAME\n']
    parts += [f"{escaped(name, code=True)} \\- {short}\n", formatter.getvalue()]
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            inner = command.get_command(context, each)
            if inner is not None and not inner.hidden:
                below = ManFormatter("SS")
                inner.format_help(context_of(inner, each, context), below)
                parts += [f".SH {quoted(each.upper())}\n", below.getvalue()]
    ending = ManFormatter("SH")
    if name == "mount-s3":
        ending.write_heading("Environment")
        ending.write_dl(variables())
    ending.write_heading("Exit status")
    ending.write_dl(EXIT_STATUS[name])
    ending.write_heading("See also")
    ending.write(re.sub(r"([\w.-]+)\((\d)\)", _reference, SEE_ALSO[name]) + "\n")
    return "".join([*parts, ending.getvalue()])


def variables() -> list[tuple[str, str]]:
    """Return the environment variables and their descriptions, without Markdown."""
    found = [
        (name, f"replaces {option}.") for option, names in ENVIRONMENT.items() for name in names
    ]
    told = [name for name, _ in found if name not in ONLY_VARIABLES]
    rows = [row for row in found if row[0] in told]
    for name, effect in ONLY_VARIABLES.items():
        text = re.sub(r" \(\[.*?\]\(.*?\)\)", "", effect).replace("`", "")
        rows.append((name, f"{text}."))
    return sorted(rows)


def _reference(found: re.Match[str]) -> str:
    return f"\\fB{escaped(found[1], code=True)}\\fR({found[2]})"


def pages() -> dict[str, str]:
    """Return the pages by file name."""
    programs: dict[str, click.Command] = {"mount-s3": cli.main, "mount-s3ctl": ctl.main}
    return {f"{name}.1": page(name, command) for name, command in programs.items()}


def main() -> None:
    """Write the pages."""
    DIRECTORY.mkdir(exist_ok=True)
    for name, text in pages().items():
        (DIRECTORY / name).write_text(text)


if __name__ == "__main__":
    main()
