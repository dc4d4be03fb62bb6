"""The Grafana dashboard and its Prometheus queries."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser

PATH = Path(__file__).parents[1] / "packaging" / "grafana" / "mount-s3.json"
#: Labels that Prometheus itself adds.
SCRAPED = frozenset({"instance", "job"})


class Use(NamedTuple):
    """A metric in a query, and the labels that the query requires."""

    metric: str
    labels: frozenset[str]


def load() -> dict[str, Any]:
    """Return the dashboard."""
    found: dict[str, Any] = json.loads(PATH.read_text())
    return found


def panels() -> list[dict[str, Any]]:
    """Return the panels with queries."""
    return [panel for panel in load()["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    """Return all queries, as Grafana sends them to Prometheus."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [query.replace("$__rate_interval", "5m") for query in found]


def uses(query: str) -> list[Use]:
    """Return all metrics of a query. Raises ValueError if it is not PromQL."""
    return list(_uses(promql_parser.parse(query), frozenset()))


def _uses(node: Any, grouped: frozenset[str]) -> Iterator[Use]:
    if isinstance(node, promql_parser.VectorSelector):
        matched = {matcher.name for matcher in node.matchers.matchers}
        assert node.name is not None
        yield Use(node.name, grouped | matched)
        return
    if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
        grouped = grouped | set(node.modifier.labels)
    for name in ("lhs", "rhs", "expr", "args", "vector_selector"):
        inner = getattr(node, name, None) or []
        for each in inner if isinstance(inner, list) else [inner]:
            yield from _uses(each, grouped)
