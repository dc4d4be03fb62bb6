"""The faults that a mount is tried with, and what each operation must return in spite of them.

tests/mount/test_fault_table.py tries all kinds of faults with all operations. The table of
docs/reliability.md comes from here:

    python -m tests.mount.fault_table

writes it; tests/unit/test_docs.py compares it.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests import soak
from tests.faulty_proxy import Exchange, Fault, flip_bit, refuse
from tests.generated_tables import table, with_tables
from tests.mount.fault_operations import OPERATIONS

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "reliability.md"

#: The seconds of --read-timeout of the mounts that are tried.
TOTAL_S = 12
#: Seconds that a busy machine may add. A soak tries all cells at once, besides other tests.
SLACK_S = 8 if soak.TIMES == 1 else 16

RIGHT, EIO, EACCES = "right", "EIO", "EACCES"
#: S3 has no checksum of these bytes, or TLS has to protect them: nothing is promised.
UNNOTICED = "not noticed"

#: A write is right after all if HEAD shows its object (s3/lost_answers).
SHOWN = ("write", "replace", "append", "complete", "rename")
READS = ("read small", "read large", "read random")
LISTS = ("stat", "list", "mkdir", "rmdir")
WRITES = ("write", "parts", "replace", "append")
#: The answers to these have a body.
ANSWERED = (*READS, *LISTS, "begin", "complete", "rename")
EVERY = tuple(OPERATIONS)
NOT_COMPLETE = tuple(each for each in EVERY if each != "complete")


class Silence(NamedTuple):
    """How long operations take if one request is silent, and if all are."""

    says: str
    operations: tuple[str, ...]
    once_s: float
    ever_s: float


#: A request is given up after 5 s if it has bytes of a file, else after 10 s. Bytes that are sent
#: get more time where earlier ones took long. Uploads get whole tries even beyond the total, so
#: that slow connections can succeed. Completing an upload may take long: the client library gives
#: up after 30 s of silence.
PATIENCE = (
    Silence("operations that upload nothing", (*READS, *LISTS, "rename", "unlink"), 10, TOTAL_S),
    Silence("uploads", (*WRITES, "begin", "change"), 20, TOTAL_S + 30),
    Silence("completing an upload", ("complete",), 30, TOTAL_S + 60),
)


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    `strike` causes it, in the request if `before`, else in its answer. `times`: it hits so many
    requests, None: all, for as long as the fault lasts. `each`: so many of every type of request of
    an operation, not only of those that decide over it. All `operations` must end with `outcome`,
    except for those in `others`, within `within_s`; None: within the time of `PATIENCE`. `code`:
    the log names it.
    """

    group: str
    says: str
    strike: Fault
    times: int | None
    outcome: str
    within_s: float | None
    operations: tuple[str, ...] = EVERY
    others: Mapping[str, str] = field(default_factory=dict)
    before: bool = False
    each: bool = False
    code: str = ""

    def outcome_of(self, operation: str) -> str:
        """What the operation must end with."""
        return self.others.get(operation, self.outcome)

    def limit_s(self, operation: str) -> float:
        """Seconds within which it must end, on a busy machine."""
        within_s = self.within_s
        if within_s is None:
            silence = next(each for each in PATIENCE if operation in each.operations)
            within_s = silence.ever_s if self.times is None else silence.once_s
        return within_s + SLACK_S


# --- strikes ---


def set_fields(**fields: object) -> Fault:
    """Return the fault that sets these fields of an exchange."""

    def strike(exchange: Exchange) -> None:
        for name, value in fields.items():
            setattr(exchange, name, value)

    return strike


def with_body(exchange: Exchange, body: bytes) -> None:
    """Send another body, with its own length."""
    exchange.body = body
    exchange.drop_header("content-length")
    exchange.headers.append(("Content-Length", str(len(body))))


def in_the_middle(**fields: object) -> Fault:
    """Return the fault that sets these fields; the connection ends in the middle of the body."""

    def strike(exchange: Exchange) -> None:
        exchange.cut_at = len(exchange.body) // 2
        set_fields(**fields)(exchange)

    return strike


def stall_in_body(exchange: Exchange) -> None:
    exchange.stall_at = len(exchange.body) // 2


def shorter(exchange: Exchange) -> None:
    with_body(exchange, exchange.body[:-50])


def longer(exchange: Exchange) -> None:
    with_body(exchange, exchange.body + b"more" * 50)


def another_range(exchange: Exchange) -> None:
    """Answer with a range that begins later. The first GET of a small file has no range."""
    exchange.status = 206
    exchange.drop_header("content-range")
    last = 6 + len(exchange.body)
    exchange.headers.append(("Content-Range", f"bytes 7-{last}/{last + 1}"))


def page_of_html(exchange: Exchange) -> None:
    """Answer as a captive portal does."""
    exchange.status = 200
    exchange.headers = [("Content-Type", "text/html")]
    with_body(exchange, b"<html><body>Please log in to use this network</body></html>")


def entities(exchange: Exchange) -> None:
    with_body(exchange, b"<!DOCTYPE r [<!ENTITY a 'b'>]><ListBucketResult>&a;</ListBucketResult>")


def without_a_token(exchange: Exchange) -> None:
    with_body(exchange, re.sub(rb">false</IsTruncated>", b">true</IsTruncated>", exchange.body))


def in_circles(exchange: Exchange) -> None:
    with_body(
        exchange,
        re.sub(
            rb"<IsTruncated>false</IsTruncated>",
            b"<IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken>",
            exchange.body,
        ),
    )


#: Redirects lead here, to another name of the same proxy: it would see if one is followed.
FOREIGN_HOST = "localhost"


def redirect(exchange: Exchange) -> None:
    _, _, port = (exchange.header("host") or "").partition(":")
    exchange.status = 307
    exchange.headers = [("Location", f"http://{FOREIGN_HOST}:{port}{exchange.target}")]
    with_body(exchange, b"")


# --- the table ---


def _both(
    group: str,
    says: str,
    strike: Fault,
    *,
    times: int = 1,
    each: bool = True,
    once_s: float | None = 0.0,
    ever_s: float | None = TOTAL_S,
    operations: tuple[str, ...] = EVERY,
    others_once: Mapping[str, str] = {},
    others: Mapping[str, str] = {},
    before: bool = False,
    code: str = "",
) -> list[Kind]:
    """Return the rows of a fault that passes, and of the same one without end."""
    return [
        Kind(
            group,
            says,
            strike,
            count,
            outcome,
            within_s,
            operations,
            exceptions,
            before=before,
            each=each and count is not None,
            code=code if outcome != RIGHT else "",
        )
        for count, outcome, within_s, exceptions in (
            (times, RIGHT, once_s, others_once),
            (None, EIO, ever_s, others),
        )
    ]


def _refusals() -> list[Kind]:
    found = []
    for status, code in ((500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequests")):
        says = f"{status} {code}"
        found += _both("refusals", says, refuse(status, code), times=3, before=True, code=code)
    for status, code in ((400, "ExpiredToken"), (403, "RequestTimeTooSkewed")):
        strike, says = refuse(status, code), f"{status} {code}"
        # In the meantime the mount looks for renewed keys.
        found.append(Kind("refusals", says, strike, None, EACCES, TOTAL_S, before=True, code=code))
    found.append(Kind("refusals", "a redirect to a foreign host", redirect, None, EIO, 0.0))
    return found


def _silence() -> list[Kind]:
    strikes = {
        "silence, and the server gets nothing": (set_fields(delay_s=1e6, status=200), EVERY, ()),
        "silence within the headers": (set_fields(headers_at=30), EVERY, SHOWN),
        "silence in the body": (stall_in_body, ANSWERED, ("complete", "rename")),
        "silence after the last byte": (set_fields(chunked=True, unended=True), EVERY, SHOWN),
        # S3 itself sends spaces for minutes before it answers to a completion.
        "a byte every half second": (set_fields(drip_s=0.5), NOT_COMPLETE, SHOWN),
    }
    kinds = [
        _both(
            "silence",
            says,
            strike,
            each=False,
            once_s=None,
            ever_s=None,
            operations=operations,
            others=dict.fromkeys(shown, RIGHT),
            before="nothing" in says,
        )
        for says, (strike, operations, shown) in strikes.items()
    ]
    return list(itertools.chain(*kinds))


def _cuts() -> list[Kind]:
    ended = {"complete": RIGHT, "rename": RIGHT}
    nothing = set_fields(taken=0, reset=True)
    return [
        *_both("cuts", "a reset, and the server gets nothing", nothing, before=True),
        *_both("cuts", "a reset in the body", in_the_middle(reset=True), **_of(ANSWERED, ended)),
        *_both("cuts", "a body that ends early", in_the_middle(), **_of(ANSWERED, ended)),
        *_both("cuts", "a lost answer", set_fields(lost=True), others=dict.fromkeys(SHOWN, RIGHT)),
    ]


def _of(operations: tuple[str, ...], others: Mapping[str, str]) -> dict[str, Any]:
    return {"operations": operations, "others": others}


def _answers() -> list[Kind]:
    # S3 has no checksums of ranges, but one of the whole, which is known at its end.
    changed = {"read random": UNNOTICED}
    ended = {"complete": RIGHT, "rename": RIGHT}
    found: list[tuple[str, Fault, dict[str, Any]]] = [
        (
            "a changed bit",
            flip_bit,
            _of(READS, changed) | {"others_once": {**changed, "read large": EIO}},
        ),
        (
            "a changed bit in what is sent",
            set_fields(flipped=True),
            {"operations": WRITES, "before": True},
        ),
        ("a body that is too short", shorter, _of(ANSWERED, ended)),
        ("a body that is too long", longer, _of(ANSWERED, ended)),
        ("another range", another_range, {"operations": READS}),
        ("a page of HTML, status 200", page_of_html, {"before": True}),
        ("a listing with entities", entities, {"operations": LISTS}),
        ("a truncated listing without a token", without_a_token, {"operations": LISTS}),
        ("a listing whose token repeats", in_circles, {"operations": LISTS}),
    ]
    kinds = [_both("answers", says, strike, each=False, **rest) for says, strike, rest in found]
    return list(itertools.chain(*kinds))


KINDS = [*_refusals(), *_silence(), *_cuts(), *_answers()]
GROUPS = list(dict.fromkeys(kind.group for kind in KINDS))


# --- the document ---

#: The generated part of the document begins with this line.
BEGIN = "<!-- made by python -m tests.mount.fault_table -->"
#: How the document names operations.
NAMED = {
    EVERY: "all",
    NOT_COMPLETE: "all but complete",
    ANSWERED: "those whose answer has a body",
    READS: "reads",
    LISTS: "lookups and directories",
    WRITES: "uploads of bytes",
}


def tables() -> str:
    """Return the tables of the document. A row is a fault that passes, and the one without end."""
    rows: dict[tuple[str, tuple[str, ...]], dict[bool, str]] = {}
    for kind in KINDS:
        row = rows.setdefault((kind.says, kind.operations), {True: "", False: ""})
        row[kind.times is None] = _promise(kind)
    faults = [[says, NAMED[names], row[False], row[True]] for (says, names), row in rows.items()]
    silence = [[each.says, f"{each.once_s:.0f} s", f"{each.ever_s:.0f} s"] for each in PATIENCE]
    operations = [[name, operation.says] for name, operation in OPERATIONS.items()]
    return "\n\n".join(
        [
            table(["fault", "operations", "if it passes", "without end"], faults),
            table(["silence", "if it passes", "without end"], silence),
            table(["operation", ""], operations),
        ]
    )


def _promise(kind: Kind) -> str:
    names: dict[str, list[str]] = {kind.outcome: []}
    for name in kind.operations:
        names.setdefault(kind.outcome_of(name), []).append(name)
    del names[kind.outcome]
    time = f", {kind.within_s:.0f} s" if kind.within_s else ""
    others = [f"{', '.join(each)}: {outcome}" for outcome, each in names.items()]
    return "; ".join([f"{kind.outcome}{time}", *others])


def renewed(document: str) -> str:
    """Return the document with the current tables."""
    return with_tables(document, BEGIN, tables())


if __name__ == "__main__":
    DOCUMENT.write_text(renewed(DOCUMENT.read_text()))
