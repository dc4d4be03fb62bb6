"""The install script for EC2, and Image Builder's component around it, on clean machines."""

import functools
import http.server
import shlex
import ssl
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
import yaml

from tests.boot.machine import EC2, FOLDER, SCRIPT, WHEELS, Machine, wait_for
from tests.boot.server import SERVICE, credentials, options
from tools.servers import SeaweedFS

pytestmark = pytest.mark.timeout(1200)

LOG = "/var/log/mount-s3-install.log"


@pytest.fixture
def clean(root: Path, tmp_path: Path) -> Iterator[Machine]:
    """A machine without anything installed, not booted yet."""
    with Machine(tmp_path, [root]) as machine:
        machine.write(SCRIPT, (EC2 / "user-data.sh").read_text())
        yield machine


def settings(server: SeaweedFS, *more: str) -> list[str]:
    """Return the settings that mount the machine's bucket."""
    return [
        f"WHEELS={FOLDER}",
        f"BUCKET=s3://{server.bucket}/boot/",
        f"OPTIONS={' '.join([*options(server), *more])}",
    ]


def script(words: list[str]) -> str:
    """Return the shell command that runs the script."""
    return shlex.join(["env", *words, "bash", SCRIPT])


def test_run_twice(clean: Machine, server: SeaweedFS) -> None:
    """The script mounts now and at boot.

    A second run changes nothing, except for a changed setting.
    """
    clean.write("/root/.aws/credentials", credentials(server))
    clean.boot()
    said = clean.run("env", *settings(server), "bash", SCRIPT)
    assert "is mounted at /mnt/data" in said
    assert clean.run("cat", "/mnt/data/file") == "content"
    assert clean.run("systemctl", "is-enabled", SERVICE) == "enabled\n"
    process = clean.show(SERVICE, "MainPID")

    said = clean.run("env", *settings(server), "bash", SCRIPT)
    assert "is installed already" in said
    assert "is written" not in said
    assert "is mounted at /mnt/data" in said
    assert clean.show(SERVICE, "MainPID") == process

    said = clean.run("env", *settings(server, "--read-only"), "bash", SCRIPT)
    assert "/etc/mount-s3/data.conf is written" in said
    assert clean.show(SERVICE, "MainPID") != process
    assert "Read-only" in clean.run("touch", "/mnt/data/new", check=False)

    log = clean.run("cat", LOG)
    assert log.count(" begins\n") == log.count("is mounted at /mnt/data\n") == 3
    clean.halt()
    clean.boot()
    wait_for(clean, SERVICE, "active")
    assert clean.run("cat", "/mnt/data/file") == "content"


def test_the_component(clean: Machine, server: SeaweedFS) -> None:
    """Image Builder's steps make an image whose instances mount at boot."""
    clean.write("/root/.aws/credentials", credentials(server))
    component = yaml.safe_load((EC2 / "component.yml").read_text())
    values = {
        name: each["default"] for item in component["parameters"] for name, each in item.items()
    }
    values |= {"Bucket": f"s3://{server.bucket}/boot/", "Options": " ".join(options(server))}
    steps = {
        f"{phase['name']}/{step['name']}": step
        for phase in component["phases"]
        for step in phase["steps"]
    }

    def commands(step: str) -> str:
        (text,) = steps[step]["inputs"]["commands"]
        for name, value in values.items():
            text = text.replace(f"{{{{ {name} }}}}", value)
        assert "{{" not in text
        return str(text)

    # S3Download copies the folder's content.
    (source,) = steps["build/Download"]["inputs"]
    clean.chroot(f"cp -r {FOLDER} {source['destination']}; cp {SCRIPT} {source['destination']}/")
    clean.chroot(commands("build/Install"))
    clean.chroot(commands("validate/Version"))
    assert not (clean.root / "var/tmp/mount-s3").exists()

    clean.boot()
    wait_for(clean, SERVICE, "active")
    clean.run("sh", "-c", commands("test/Service"))
    assert clean.run("cat", "/mnt/data/file") == "content"


def test_wheels_from_elsewhere(clean: Machine, server: SeaweedFS, tmp_path: Path) -> None:
    """The wheels come from an archive at an https:// address, or from a folder in S3."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(clean.root / "srv" / "ca.pem")
    served = tmp_path / "served"
    served.mkdir()
    with tarfile.open(served / "wheels.tar.gz", "w:gz") as archive:
        archive.add(WHEELS, "wheels")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        web.socket = context.wrap_socket(web.socket, server_side=True)
        threading.Thread(target=web.serve_forever, daemon=True).start()
        address = f"https://127.0.0.1:{web.server_port}/wheels.tar.gz"
        clean.chroot(script([f"WHEELS={address}", "BUCKET=", "SSL_CERT_FILE=/srv/ca.pem"]))
        web.shutdown()
    assert "no bucket to mount" in (clean.root / LOG[1:]).read_text()
    clean.chroot("mount-s3 --version; rm -rf /opt/mount-s3")

    clean.write("/root/.aws/credentials", credentials(server))
    for wheel in WHEELS.glob("*.whl"):
        server.client().upload_file(str(wheel), server.bucket, f"wheels/{wheel.name}")
    clean.chroot(
        "python3 -m venv /opt/aws; /opt/aws/bin/pip install -q awscli; "
        "ln -s /opt/aws/bin/aws /usr/local/bin/aws"
    )
    environment = [f"AWS_ENDPOINT_URL_S3={server.endpoint_url}", f"AWS_REGION={server.region}"]
    clean.chroot(script([f"WHEELS=s3://{server.bucket}/wheels", "BUCKET=", *environment]))
    clean.chroot("mount-s3 --version")


def test_no_wheels(clean: Machine) -> None:
    """The script fails, says why, also in the log, and mounts nothing."""
    clean.boot()
    reasons = {
        "/etc/opt": "there are no wheels in /etc/opt",
        "/no/such": "/no/such cannot be fetched: the lines above say why",
        "https://127.0.0.1:9/w": "https://127.0.0.1:9/w cannot be fetched: the lines above say why",
        "s3://b/w": "s3://b/w needs the AWS CLI, which is not installed",
    }
    said = ""
    for place, reason in reasons.items():
        said += clean.run("env", f"WHEELS={place}", "BUCKET=b", "bash", SCRIPT, check=False)
        assert said.endswith(f" failed: {reason}\n")
    assert said == clean.run("cat", LOG)
    assert clean.state(SERVICE) == "inactive"
