"""Tables of a document that a module of the tests makes.

They stand between `begin`, a line that names the module, and END.
"""

END = "<!-- end -->"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_tables(document: str, begin: str, tables: str) -> str:
    """Return the document with these tables in place of those that it has."""
    before, _, rest = document.partition(begin)
    _, _, behind = rest.partition(END)
    return f"{before}{begin}\n\n{tables}\n\n{END}{behind}"
