"""Facts of the EC2 instance, from a metadata service on loopback, and the bandwidth table."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountpoint.config import BucketConfig, Config, FileSystemConfig, MountConfig
from mountpoint.s3.aws import ec2
from mountpoint.s3.aws.ec2 import Instance, bandwidth_gbps
from tests.unit.aws_fakes import Service, isolate, serving
from tools import bandwidth_table

NAME = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
DISABLED = "AWS_EC2_METADATA_DISABLED"


class Metadata(Service):
    """The instance metadata service, version 2."""

    document = json.dumps({"region": "eu-west-1", "instanceType": "c5n.18xlarge"})

    def answer(self, body: str) -> tuple[int, str]:
        if self.command == "PUT":
            return (200, "token") if self.path == "/latest/api/token" else (404, "")
        if self.headers["x-aws-ec2-metadata-token"] != "token":
            return 401, ""
        if self.path != "/latest/dynamic/instance-identity/document":
            return 404, ""
        return 200, self.document


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    monkeypatch.setattr(ec2, "HARDWARE", tmp_path)


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Metadata]]:
    with serving(Metadata) as (url, service):
        monkeypatch.setenv(NAME, url)
        yield service


def here() -> Instance:
    return Instance(None, os.environ)


def config(endpoint_url: str | None = None) -> Config:
    """Return a configuration without a bandwidth."""
    bucket = BucketConfig("bucket", endpoint_url=endpoint_url)
    return Config(bucket, MountConfig("/mnt"), FileSystemConfig(1, 1))


def test_asked_once(metadata: type[Metadata]) -> None:
    """One token and one document give region and type."""
    found = here()
    assert (found.region(), found.bandwidth_gbps()) == ("eu-west-1", 100.0)
    assert len(metadata.requests) == 2


@pytest.mark.usefixtures("metadata")
def test_applied() -> None:
    """The bandwidth is the client's target, and the limit of read-ahead; an option overrides it."""
    applied = here().apply_to(config())
    assert applied.client.throughput_gbps == 100.0
    assert applied.read.max_ahead_bytes == 1_600_000_000
    given = config().with_throughput(2.5)
    assert here().apply_to(given) == given


def test_not_asked(metadata: type[Metadata], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another store, a given throughput, or a disabled service: no request."""
    here().apply_to(config().with_throughput(5.0))
    assert here().apply_to(config("http://127.0.0.1:1")).client.throughput_gbps == 10.0
    monkeypatch.setenv(DISABLED, "true")
    assert here().apply_to(config()).client.throughput_gbps == 10.0
    assert metadata.requests == []


@pytest.mark.parametrize(
    ("document", "region", "gbps"),
    [
        ('{"region": "us-gov-west-1", "instanceType": "t3.micro"}', "us-gov-west-1", 5.0),
        ('{"region": "eu-west-1", "instanceType": "m4.large"}', "eu-west-1", None),
        ('{"region": "eu-west-1", "instanceType": "x99.huge"}', "eu-west-1", None),
        ('{"region": "here/there", "instanceType": ["c5.large"]}', None, None),
        ('{"region": 7}', None, None),
        ("[]", None, None),
        ("<html>", None, None),
        ("", None, None),
    ],
)
def test_any_answer_of_the_service(
    metadata: type[Metadata], document: str, region: str | None, gbps: float | None
) -> None:
    """A type without a bandwidth has none; an invalid document counts as none, and is kept."""
    metadata.document = document
    found = here()
    assert (found.region(), found.bandwidth_gbps()) == (region, gbps)
    assert len(metadata.requests) == 2


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "not a url"])
def test_without_a_metadata_service(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Without a service, or with an invalid endpoint, there is no instance and no error."""
    monkeypatch.setenv(NAME, url)
    assert here().region() is None
    assert here().apply_to(config()).client.throughput_gbps == 10.0


@pytest.mark.timeout(30)
def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent service is waited for once, by two requests."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(NAME, f"http://127.0.0.1:{silent.getsockname()[1]}")
        found = here()
        assert found.region() is None
        assert found.bandwidth_gbps() is None
        silent.settimeout(0)
        for _ in range(2):
            silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_botocores_limits_are_not_taken(
    metadata: type[Metadata], monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore's number of tries for credentials does not apply: one try each."""
    monkeypatch.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "5")
    metadata.document = ""
    assert here().region() is None
    assert len(metadata.requests) == 2


@pytest.mark.parametrize(
    ("vendor", "asked"),
    [("Amazon EC2", True), ("Xen", True), ("QEMU", False), ("LENOVO", False), (None, True)],
)
def test_hardware(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str | None, asked: bool
) -> None:
    """On another vendor's machine no request is sent, unless a variable names the service."""
    if vendor is not None:
        (tmp_path / "sys_vendor").write_text(f"{vendor}\n")
    questions = []

    def ask(_: Instance) -> str:
        questions.append(1)
        return ""

    monkeypatch.setattr(Instance, "_ask", ask)
    assert here().region() is None
    assert bool(questions) is asked
    monkeypatch.setenv(NAME, "http://127.0.0.1:1")
    questions.clear()
    here().region()
    assert questions


@pytest.mark.parametrize(
    ("vendor", "product", "gbps"),
    [
        ("Amazon EC2", "c6i.xlarge", 12.5),
        ("Xen", "HVM domU", None),
        ("LENOVO", "c6i.xlarge", None),
        ("Amazon EC2", None, None),
    ],
)
def test_instance_type_from_hardware(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, product: str | None, gbps: float
) -> None:
    """If the service is unreachable, as in many containers, the hardware gives the type."""
    monkeypatch.setenv(NAME, "http://127.0.0.1:1")
    (tmp_path / "sys_vendor").write_text(f"{vendor}\n")
    if product is not None:
        (tmp_path / "product_name").write_text(f"{product}\n")
    assert here().bandwidth_gbps() == gbps
    assert here().region() is None


@pytest.mark.usefixtures("metadata")
def test_the_service_knows_better(tmp_path: Path) -> None:
    """The service overrides the hardware."""
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    (tmp_path / "product_name").write_text("c6i.xlarge\n")
    assert here().bandwidth_gbps() == 100.0


@pytest.mark.slow
def test_on_the_way_to_a_mount(metadata: type[Metadata], tmp_path: Path) -> None:
    """The program asks before it connects, and logs the result in one line."""
    code = """
import sys
from mountpoint.cli import main as cli
from mountpoint.mount.kept import reached
from mountpoint.errors import MountError
def connect(bucket, credentials, client, *rest):
    raise MountError(f"target {client.throughput_gbps}, region {rest[-1].region()}")
reached.connect = connect
cli.main(["bucket", sys.argv[1], "--foreground", *sys.argv[2:]])
"""

    def run(*options: str) -> str:
        result = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), *options],
            env=os.environ | {"MOUNTPOINT_LOG": "mountpoint.s3=info"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 1
        return result.stderr

    said = run()
    assert "target 100.0, region eu-west-1" in said
    assert said.count("bandwidth of the instance") == 1
    assert "c5n.18xlarge" in said
    assert len(metadata.requests) == 2
    assert "target 7.0" in run("--maximum-throughput-gbps", "7")


# --- the figures ---


@pytest.mark.parametrize(
    ("name", "gbps"),
    [
        ("c5.large", 10.0),  # "Up to 10 Gigabit"
        ("c6i.xlarge", 12.5),
        ("p4d.24xlarge", 400.0),  # "4x 100 Gigabit"
        ("trn2.48xlarge", 3200.0),  # "16x 200 Gigabit"
        ("g4ad.xlarge", 10.0),  # only in an older answer
        ("c4.large", None),  # "Moderate"
        ("# Source", None),
        ("", None),
    ],
)
def test_figures(name: str, gbps: float | None) -> None:
    """The figures are EC2's peaks; a word has none."""
    assert bandwidth_gbps(name) == gbps


def test_the_table() -> None:
    """Each line is a type and a valid bandwidth, without duplicates, below the source."""
    lines = Path(ec2.__file__).with_name("bandwidth.tsv").read_text().splitlines()
    assert lines[1].startswith("# Source: EC2's DescribeInstanceTypes")
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    assert len(rows) > 1000
    assert len({name for name, _ in rows}) == len(rows)
    for _, gbps in rows:
        config().with_throughput(float(gbps))


@pytest.mark.parametrize(
    ("said", "gbps"),
    [
        ("Up to 12.5 Gigabit", 12.5),
        ("100 Gigabit", 100.0),
        ("16x 200 Gigabit", 3200.0),
        ("Low to Moderate", None),
        ("About 5 Gigabit", None),
    ],
)
def test_bandwidth_table_lines(said: str, gbps: float | None) -> None:
    """EC2's answer becomes a line, in both of its forms."""
    described = {"NetworkInfo": {"NetworkPerformance": said}}
    assert bandwidth_table.table({"z1.new": described}).get("z1.new") == gbps
    listed = {"InstanceTypes": [{"InstanceType": "z1.new", **described}]}
    assert bandwidth_table.table(listed).get("z1.new") == gbps
