"""Grafana can show the dashboard."""

import re

import pytest

from tests.dashboard import SCRAPED, Use, load, panels, queries, uses

COLUMNS = 24


def test_names_in_a_query() -> None:
    """Metrics and labels are found everywhere in a query."""
    query = 'topk(5, sum by (a, b) (rate(x_total{c="1"}[5m]))) / on (d) (y{e!="2"} offset 1m) or z'
    assert uses(query) == [
        Use("x_total", frozenset({"a", "b", "c"})),
        Use("y", frozenset({"e"})),
        Use("z", frozenset()),
    ]
    with pytest.raises(ValueError, match="unclosed"):
        uses("sum(rate(x[5m])")


def test_every_query_is_of_the_chosen_mounts() -> None:
    """Queries are valid PromQL, and select the instances that the user has chosen."""
    assert len(queries()) > 20
    for query in queries():
        assert uses(query) or "vector" in query
        assert all("instance" in use.labels for use in uses(query)), query


def test_panels() -> None:
    """Each panel has a number, a title, a unit, a selectable data source, and its own place."""
    found = load()["panels"]
    assert len({panel["id"] for panel in found}) == len(found)
    taken: set[tuple[int, int]] = set()
    for panel in found:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert panel["title"]
        assert max(x for x, _ in cells) < COLUMNS
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


def test_legends_name_labels_that_are_there() -> None:
    """A legend uses only labels that the query keeps."""
    for panel in panels():
        for target in panel["targets"]:
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            query = target["expr"].replace("$__rate_interval", "5m")
            assert all(named <= use.labels for use in uses(query)), target["expr"]


def test_variables() -> None:
    """The variables are the data source and its mounts."""
    variables = {each["name"]: each for each in load()["templating"]["list"]}
    assert set(variables) == {"datasource", "instance"}
    (metric, label) = re.findall(r"label_values\((\w+), (\w+)\)", str(variables["instance"]))[0]
    assert metric in {use.metric for query in queries() for use in uses(query)}
    assert label in SCRAPED
