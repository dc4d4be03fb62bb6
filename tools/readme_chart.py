"""Draw the chart of README.md from its table of figures.

    python -m tools.readme_chart

The chart has the rows that have at least two cells, all of them rates such as `44 /s` or `1.09
GB/s`. In each row the longest bar is the fastest program. The SVG is written as plain text: that
needs no library, and the same table gives the same file.
"""

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "README.md"
CHART = ROOT / "docs" / "figures.svg"
HEADING = "### Speed"

WIDTH = 760
BARS_LEFT = 250
LONGEST_BAR = 400
BAR_HEIGHT = 11
ROW_GAP = 12
TOP = 40

#: Fills of the bars, in the order of the table's columns; legible on white and on black.
COLOURS = ("#1f77b4", "#ff7f0e", "#7f8c8d")

RATE = re.compile(r"([\d,.]+) (GB/s|MB/s|/s)")

STYLE = """\
text { font: 12px sans-serif; fill: #24292f; }
@media (prefers-color-scheme: dark) { text { fill: #c9d1d9; } }"""


@dataclass(frozen=True)
class Row:
    """A row of the table: the workload, and one cell for each program."""

    name: str
    cells: list[str]

    def rates(self) -> list[float | None] | None:
        """Return the rate of each program, None for an empty cell; None if a cell is no rate."""
        found = [RATE.fullmatch(cell) for cell in self.cells]
        if any(cell and match is None for cell, match in zip(self.cells, found, strict=True)):
            return None
        rates = [float(match[1].replace(",", "")) if match else None for match in found]
        return rates if len([rate for rate in rates if rate]) > 1 else None


def table(text: str) -> tuple[list[str], list[Row]]:
    """Return the programs and the rows of the table below HEADING."""
    below = text.partition(f"\n{HEADING}\n")[2]
    lines = [line for line in below.split("\n#")[0].splitlines() if line.startswith("|")]
    (_, *programs), _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return programs, [Row(name, cells) for name, *cells in rows]


def draw(text: str) -> str:
    """Return the chart of the table in a document, as SVG."""
    programs, rows = table(text)
    parts = []
    for number, (program, colour) in enumerate(zip(programs, COLOURS, strict=True)):
        left = BARS_LEFT + number * 150
        parts.append(f'<rect x="{left}" y="12" width="11" height="11" fill="{colour}"/>')
        parts.append(f'<text x="{left + 17}" y="22">{escape(program)}</text>')
    top = TOP
    for row in rows:
        rates = row.rates()
        if rates is None:
            continue
        bars = [each for each in zip(rates, row.cells, COLOURS, strict=True) if each[0]]
        fastest = max(rate for rate in rates if rate)
        middle = top + len(bars) * BAR_HEIGHT / 2 + 4
        parts.append(
            f'<text x="{BARS_LEFT - 10}" y="{middle:g}" text-anchor="end">{escape(row.name)}</text>'
        )
        for rate, cell, colour in bars:
            length = round(LONGEST_BAR * (rate or 0) / fastest)
            parts.append(
                f'<rect x="{BARS_LEFT}" y="{top}" width="{length}" height="{BAR_HEIGHT - 1}" '
                f'fill="{colour}"/>'
            )
            parts.append(f'<text x="{BARS_LEFT + length + 6}" y="{top + 9}">{escape(cell)}</text>')
            top += BAR_HEIGHT
        top += ROW_GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}">'
    return "\n".join([head, f"<style>\n{STYLE}\n</style>", *parts, "</svg>", ""])


if __name__ == "__main__":
    CHART.write_text(draw(TABLE.read_text()))
