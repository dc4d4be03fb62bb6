"""The parts of the bench: objects, orders of reads, figures, lines, the chart."""

import itertools
import json
import xml.etree.ElementTree
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import ceiling, chart, measure, names, patterns, run
from bench.measure import COLUMNS, Measurement, Result
from bench.objects import KIB, MIB, WrongBytes, check, content
from bench.patterns import Piece
from bench.programs import programs
from bench.reading import Work, opened
from bench.workloads import workloads
from mountpoint.s3.wire.reading import parse_list
from tests.unit.fake_client import FakeClient
from tools.mounting import COUNTERS_LINE, logged_counters

# -- what is in the bucket -----------------------------------------------------------------------


@given(st.integers(0, 3 * MIB), st.integers(0, 3000), st.integers(0, 3000))
def test_content_is_the_same_however_it_is_cut(start: int, first: int, second: int) -> None:
    """Two adjacent pieces equal the piece of both, also where the tape starts again."""
    middle, stop = start + first, start + first + second
    whole = content("large", start, stop)
    assert len(whole) == stop - start
    assert whole == content("large", start, middle) + content("large", middle, stop)


@given(st.integers(0, 1 << 30), st.integers(1, (1 << 30) // patterns.PAGE_BYTES))
def test_pages_apart_are_different(offset: int, pages: int) -> None:
    """No eight bytes equal those some pages further on, so a shifted read is noticed."""
    other = offset + pages * patterns.PAGE_BYTES
    assert content("large", offset, offset + 8) != content("large", other, other + 8)


@pytest.mark.parametrize(
    ("key", "offset", "size", "piece"),
    [
        ("large", 0, 100, content("large", 0, 99)),
        ("large", 0, 100, content("large", 0, 101)),
        ("large", 0, 100, content("large", 4096, 4196)),
        ("large", 0, 100, content("quarter/2", 0, 100)),
        ("large", 0, 100, content("large", 0, 99) + b"?"),
        ("large", 0, 100, b"?" + content("large", 1, 100)),
        ("large", 0, 1, b""),
    ],
)
def test_wrong_bytes_are_seen(key: str, offset: int, size: int, piece: bytes) -> None:
    """A piece that is short, long, shifted, of another object, or damaged at an end is noticed."""
    with pytest.raises(WrongBytes):
        check(key, offset, size, piece)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 4096])
def test_right_bytes_are_right(size: int) -> None:
    """Correct pieces of any size pass, as bytes or as a view."""
    piece = content("many/03", 12345, 12345 + size)
    check("many/03", 12345, size, piece)
    check("many/03", 12345, size, memoryview(piece))


# -- orders of reads -----------------------------------------------------------------------------


def check_inside(order: Iterable[Piece], stop: int) -> list[Piece]:
    """Check that all pieces are within the file, and that no byte is read twice."""
    found = list(order)
    assert all(size > 0 for _, size in found)
    in_order = sorted(found)
    for (offset, size), (following, _) in itertools.pairwise([*in_order, (stop, 0)]):
        assert offset + size <= following
    return found


def test_pieces() -> None:
    """Pieces are in order, the last shorter; backwards is the reverse; strides leave gaps."""
    assert list(patterns.pieces(10, 35, 10)) == [(10, 10), (20, 10), (30, 5)]
    assert list(patterns.backwards(10, 35, 10)) == [(30, 5), (20, 10), (10, 10)]
    assert list(patterns.strides(35, 4, 10)) == [(0, 4), (10, 4), (20, 4), (30, 4)]


def test_at_random() -> None:
    """Whole blocks, all different, and the same in each run."""
    order = check_inside(patterns.at_random(100 * KIB, 4 * KIB, 25, seed=1), 100 * KIB)
    assert len(order) == 25
    assert order != sorted(order)
    assert order == list(patterns.at_random(100 * KIB, 4 * KIB, 25, seed=1))


def test_in_turn() -> None:
    """One item of each stream, until all streams have ended."""
    assert "".join(patterns.in_turn(["abc", "1", "xy"])) == "a1xbyc"


def test_in_random_turn() -> None:
    """Each stream keeps its order; the streams are mixed."""
    streams = [[(stream, number) for number in range(50)] for stream in range(4)]
    mixed = list(patterns.in_random_turn(streams, seed=1))
    for stream, expected in enumerate(streams):
        assert [item for item in mixed if item[0] == stream] == expected
    assert mixed != sorted(mixed)


def test_parquet() -> None:
    """The end of the file comes first, then pieces of chunks in ascending order."""
    footer, *chunks = check_inside(patterns.parquet(256 * MIB, seed=1), 256 * MIB)
    assert footer == (256 * MIB - 64 * KIB, 64 * KIB)
    assert chunks == sorted(chunks)
    read = sum(size for _, size in chunks)
    assert 256 * MIB // 10 < read < 256 * MIB // 2


def test_zip() -> None:
    """End record, directory, then members in random order that fill the rest of the file."""
    (end, directory), members = patterns.zip_archive(16 * MIB, seed=1)
    assert end == (16 * MIB - 22, 22)
    assert directory[0] + directory[1] == end[0]
    everything = [end, directory, *itertools.chain(*members)]
    check_inside(everything, 16 * MIB)
    assert 16 * MIB - sum(size for _, size in everything) < 256 * KIB
    assert members != sorted(members)
    assert all(member == sorted(member) for member in members)


def test_tensors() -> None:
    """Each page of the file is in one tensor, and the order is random."""
    order = check_inside(patterns.tensors(64 * MIB, seed=1), 64 * MIB)
    assert sum(size for _, size in order) == 64 * MIB
    assert all(offset % patterns.PAGE_BYTES == 0 for offset, _ in order)
    assert order != sorted(order)


# -- reading -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file as in the mount."""
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "000").write_bytes(content("small/000", 0, 100 * KIB))
    return tmp_path


def test_reads_are_counted(folder: Path) -> None:
    """The requested bytes are counted, and an operation has a duration."""
    work = Work()
    with opened(folder, "small/000", work) as source:
        source.read_all(patterns.pieces(0, 100 * KIB, 30 * KIB))
        assert (work.read_bytes, work.operations, work.latencies_s) == (100 * KIB, 0, [])
        source.time_each([(5, 10), (7000, 1)])
        memory = source.mapped()
    memory.touch((4096, 8192))
    assert (work.read_bytes, work.operations) == (108 * KIB + 11, 2)
    assert len(work.latencies_s) == 2


def test_reads_are_checked(folder: Path) -> None:
    """A file with other bytes than its key's, or too few, ends the workload."""
    (folder / "small" / "001").write_bytes(content("small/000", 0, 100 * KIB))
    with opened(folder, "small/001", Work()) as source:
        with pytest.raises(WrongBytes, match="wrong bytes at 0"):
            source.read((0, 4096))
        with pytest.raises(WrongBytes, match="wrong bytes at 4096"):
            source.mapped().touch((4096, 4096))
    with opened(folder, "small/000", Work()) as source, pytest.raises(WrongBytes, match="50 bytes"):
        source.read((100 * KIB - 50, 100))


# -- figures -------------------------------------------------------------------------------------


def test_proc() -> None:
    """CPU is user plus system time, for any process name; sizes are in KiB."""
    rest = " ".join(str(number) for number in range(100, 140))
    stat = f"77 (mount) s3 (1) S {rest}"
    assert measure.cpu_seconds(stat) == (110 + 111) / measure.TICKS_PER_S
    status = "Name:\tmount-s3\nVmPeak:\t   9000 kB\nVmHWM:\t   5000 kB\nVmRSS:\t   4000 kB\n"
    assert measure.memory_bytes(status, "VmRSS") == 4000 * KIB
    assert measure.memory_bytes(status, "VmHWM") == 5000 * KIB


def test_percentile() -> None:
    """Without values there is no percentile; it never exceeds the largest value."""
    assert measure.percentile([], 0.5) is None
    assert measure.percentile([3.0], 0.99) == 3.0
    assert measure.percentile([float(number) for number in range(100)], 0.99) == 99.0
    assert measure.percentile([float(number) for number in range(101)], 0.5) == 50.0


def one_run(seconds: float, *, gets: int = 10, peak_mib: int = 200) -> Measurement:
    """Return a run of a workload that read 1 GB in 100 operations of 1 to 100 ms."""
    work = Work(1_000_000_000, 100, [number / 1e3 for number in range(1, 101)])
    counters = {"gets": gets, "heads": 1, "lists": 2, "other": 0}
    counters |= {"bytes_read": 1_200_000_000, "bytes_asked": 1_500_000_000}
    return Measurement(work, seconds, 0.5, counters, 100 * MIB, peak_mib * MIB, held_share=0.1)


def some_result(unit: str = "bytes", **changes: object) -> Result:
    """Return a result of three runs."""
    runs = [one_run(2.0), one_run(4.0, gets=30), one_run(1.0, gets=20, peak_mib=300)]
    found = measure.result("two streams", unit, runs, alone=[1e9, 5e8, 6.25e8])
    return Result(**asdict(found) | changes)


def test_result() -> None:
    """Medians, the highest peak, and the ratio of medians to one stream alone."""
    found = some_result()
    assert (found.runs, found.seconds, found.rate_per_s) == (3, 2.0, 5e8)
    assert (found.gets, found.heads, found.lists) == (20, 1, 2)
    assert (found.rss_bytes, found.peak_rss_bytes) == (100 * MIB, 300 * MIB)
    assert (found.cpu_each(), found.of_alone) == (0.5, 0.8)
    assert found.held_seconds == pytest.approx(0.2)
    assert (found.kernel(), found.fetched()) == (1.2, 1.5)
    assert (found.p50_ms, found.p99_ms) == pytest.approx((51.0, 100.0))
    assert some_result("operations").rate_per_s == 50.0


def test_lines() -> None:
    """The table is Markdown with aligned columns; a missing figure is a dash."""
    lines = [
        *measure.header(),
        some_result().line(),
        some_result("operations", of_alone=None, p50_ms=None, read_bytes=0).line(),
        some_result(bytes_asked=10**14, held_seconds=None).line(),
    ]
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == list(COLUMNS)
    assert cells[2] == [
        "two streams",
        "500 MB/s",
        "51.00, 100.00 ms",
        "0.50 s/GB",
        "0.20 s/GB",
        "20, 1, 2",
        "×1.20",
        "×1.50",
        "×0.80",
        "100, 300 MiB",
    ]
    assert cells[3][1:5] == ["50 /s", "-", "5.00 ms each", "2.00 ms each"]
    assert cells[3][6:9] == ["-", "-", "-"]
    assert (cells[4][4], cells[4][7]) == ("-", "×100000")


def test_counters_of_a_log(tmp_path: Path) -> None:
    """Each complete line of counters is read; other lines and an incomplete one are not."""
    (tmp_path / "a.log").write_text(
        "timestamp=1 level=info logger=mountpoint.metrics event=counters gets=1 bytes_fetched=20\n"
        'timestamp=2 level=warning logger=mountpoint.x event="no event=counters here" gets=9\n'
        "timestamp=3 level=info logger=mountpoint.metrics event=counters gets=2 bytes_fetched=30\n"
        "timestamp=4 level=info logger=mountpoint.metrics event=counters gets=3 bytes_fe"
    )
    expected = [{"gets": 1, "bytes_fetched": 20}, {"gets": 2, "bytes_fetched": 30}]
    assert logged_counters(tmp_path) == expected


# -- names ---------------------------------------------------------------------------------------


def test_pages_of_names() -> None:
    """Pages follow each other through a folder; each name is in one of them."""
    prefix = "dataset-2026-01/partition-002/"
    found: list[bytes] = []
    after = ""
    while True:
        page = parse_list(names.page(prefix, after, 4, files=10), prefix.encode())
        assert page.skipped == 0
        found += [info.key for info in page.objects]
        if page.next_token is None:
            break
        after = page.next_token
    assert found == [(prefix + name).encode() for name in names.names_in(prefix, 10)]
    assert {len(key) for key in found} == {60}


def test_folders_of_names() -> None:
    """Folders are common prefixes, and nothing is below a file."""
    top = parse_list(names.page("", "", 1000, files=1), b"")
    assert len(top.prefixes) == names.FOLDERS
    first = top.prefixes[0].decode()
    below = parse_list(names.page(first, "", 1000, files=1), first.encode())
    assert len(below.prefixes) == names.SUBFOLDERS
    nothing = parse_list(names.page(below.prefixes[0].decode() + "x/", "", 1000, files=1), b"")
    assert (nothing.objects, nothing.prefixes) == ([], [])


# -- the command ---------------------------------------------------------------------------------


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    """Each workload is one line with its name, which fits the table, and its description."""
    with pytest.raises(SystemExit) as ended:
        run.arguments_of(["--list"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(run.WORKLOADS) == len(workloads()) + len(programs())
    for line, workload in zip(lines, run.WORKLOADS.values(), strict=True):
        assert line.split("  ", 1)[0] == workload.name
        assert len(workload.name) <= COLUMNS["workload"]
        assert workload.about in line


def test_unknown_workload(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown workload is reported before anything starts."""
    with pytest.raises(SystemExit) as ended:
        run.arguments_of(["direct", "sideways"])
    assert ended.value.code == 2
    assert "there is no workload 'sideways'" in capsys.readouterr().err


# -- the chart -----------------------------------------------------------------------------------


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., Path]:
    """Write the JSON of a run."""

    def write(name: str, *results: Result) -> Path:
        path = tmp_path / f"{name}.json"
        body = {"commit": "abc1234", "results": [asdict(result) for result in results]}
        path.write_text(json.dumps(body))
        return path

    return write


def test_compared(report: Callable[..., Path]) -> None:
    """Ratios to the first run, without figures that a run lacks."""
    paths = [
        report("before", some_result(), some_result(name="zip", cpu_seconds=0.0)),
        report("after", some_result(rate_per_s=1e9, cpu_seconds=0.25)),
    ]
    reports = [chart.read_report(path) for path in paths]
    assert [each.label for each in reports] == ["before (abc1234)", "after (abc1234)"]
    both, one = chart.compared(reports)
    assert (both.name, both.rate) == ("two streams", "500 MB/s")
    assert (both.speeds, both.costs) == ([1.0, 2.0], [1.0, 0.5])
    assert (one.speeds, one.costs) == ([1.0, None], [None, None])


def test_chart(report: Callable[..., Path], tmp_path: Path) -> None:
    """Two runs give an SVG with their names and their workloads."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: make bench-chart")
    paths = [
        report("before", some_result(), some_result(name="zip")),
        report("after", some_result(rate_per_s=1e9)),
    ]
    target = tmp_path / "chart.svg"
    chart.draw([chart.read_report(path) for path in paths], target)
    root = xml.etree.ElementTree.parse(target).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = "".join(root.itertext())
    for words in ("before (abc1234)", "after (abc1234)", "two streams  500 MB/s", "zip", "×2.00"):
        assert words in text


def test_the_clients_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ceiling's GETs have the sizes in their labels, within the object."""
    monkeypatch.setattr(ceiling, "GETS", 5)
    with FakeClient({b"large": bytes(20 * MIB)}) as client:
        lines = list(ceiling.client_half(client, b"large"))
        sizes = [stop - start for start, stop in client.ranges()]
    assert sizes == [8 * MIB] * 2 + [4096] * 5 + [102_400] * 10
    assert [line.count("|") for line in lines] == [4] * 4


def test_counters_of_several_logs(tmp_path: Path) -> None:
    """The newest counters are the last, whatever the logs of the mounts are called."""
    for name, second in (("b", 1), ("a", 2)):
        line = f"timestamp=2026-11-29T00:00:0{second}.5Z {' '.join(COUNTERS_LINE)}"
        (tmp_path / f"{name}.log").write_text(f"{line} gets={second}\n{line} gets=9")
    assert logged_counters(tmp_path) == [{"gets": 1}, {"gets": 2}]
