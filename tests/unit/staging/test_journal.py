"""The journal of a staged file."""

from pathlib import Path

import pytest

from mountpoint.staging.extents import Extents
from mountpoint.staging.journal import WORTH_LINES, Journal, Subject, replay
from tests.unit.staging_world import KEY, World


def subject() -> Subject:
    return Subject("bucket", KEY, '"etag"', 100)


def test_a_line_that_was_not_finished_counts_for_nothing(tmp_path: Path) -> None:
    """A process may be killed during a write, even within a number."""
    journal = Journal(tmp_path / "1.data")
    journal.rewrite(subject(), Extents(100), fetched=False)
    journal.wrote(0, 10)
    journal.truncates(50)
    journal.close()
    path = tmp_path / "1.journal"
    whole = path.read_text()
    for cut in range(1, len("t 50;\n") + 1):
        path.write_text(whole[:-cut])
        told, extents = replay(path)
        assert told == subject()
        assert extents.size_bytes == 100
        assert list(extents.changed) == [(0, 10)]


FIRST = '{"bucket": "b", "key": "k", "base_etag": null, "base_size": 100}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 9000,
        "[]",
        FIRST.replace('"b"', "1"),
        FIRST.replace('"k"', "1"),
        FIRST.replace('"base_etag": null', '"base_etag": []'),
        FIRST.replace("100", '"100"'),
        FIRST.replace("100", "-1"),
        FIRST.replace("100", str(1 << 63)),
        f"{FIRST}\nw -5 10;\n",
        f"{FIRST}\nt {1 << 63};\n",
        f"{FIRST}\nt 5 5;\n",
        f"{FIRST}\nx 5;\n",
    ],
    ids=lambda text: text[-25:].strip(),
)
def test_a_journal_that_no_file_can_have(tmp_path: Path, text: str) -> None:
    """ValueError, for which recovery keeps the file and logs a line."""
    path = tmp_path / "000001.journal"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"."):
        replay(path)


@pytest.mark.slow
def test_a_long_journal_is_written_anew(tmp_path: Path) -> None:
    """The journal of a file that is written repeatedly does not fill the disk."""
    world = World(tmp_path)
    file = world.file()
    for _ in range(WORTH_LINES + 10):
        file.write(0, b"x")
    journal = file._content.path.with_suffix(".journal")
    assert journal.stat().st_size < 1000
    assert list(replay(journal)[1].changed) == [(0, 1)]
    assert "000001.new" not in world.names()
    world.area.close()
