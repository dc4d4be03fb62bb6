"""The container image, built from its Containerfile, and the pod, without Kubernetes.

The base image is the root that debootstrap made, so no registry is needed.
"""

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.boot.machine import ENVIRONMENT, REPOSITORY
from tests.boot.server import options
from tests.conftest import Store
from tests.mount.mounting import content
from tools.servers import SeaweedFS

pytestmark = pytest.mark.timeout(1200)

RECIPE = REPOSITORY / "packaging" / "container" / "Containerfile"
POD = REPOSITORY / "packaging" / "kubernetes" / "pod.yml"

#: Each container has its own mounts, as in a container runtime. `mounter` has /dev/fuse and may
#: mount, and its mount in the volume propagates to the others. `mount-s3` cannot change the files
#: of the volume.
CONTAINERS = """
set -e
mount --bind {volume} {volume}
mount --make-shared {volume}

container() {{ # propagation of the volume, more mounts, then the command
    unshare --mount --propagation "$1" sh -ec '
        mount --bind {image} {image}
        mount -t proc proc {image}/proc
        mount --bind {handover} {image}/handover
        mount --rbind {volume} {image}/volume
        eval "$1"
        shift
        exec chroot {image} "$@"' sh "$2" env -i PATH={path} {keys} "${{@:3}}"
}}

container unchanged 'mount --bind /dev {image}/dev' {mounter} &
container slave 'mount -o remount,bind,ro {image}' {become} {mount_s3} &
container slave : sh -c {app}
"""
APP = """
for try in $(seq 60); do {probe} >/dev/null 2>&1 && break; sleep 0.5; done
cat /volume/data/file
echo written >/volume/data/new
"""


def buildah(storage: Path, *arguments: str | Path) -> str:
    """Run buildah with its own storage, and return its output."""
    where = [f"--root={storage / 'root'}", f"--runroot={storage / 'run'}"]
    done = subprocess.run(
        ["buildah", *where, "--storage-driver=overlay", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=900,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """The image's files and its configuration."""
    if shutil.which("buildah") is None:
        pytest.skip("buildah is missing: apt install buildah")
    storage = tmp_path_factory.mktemp("storage")
    base = buildah(storage, "from", "scratch")
    buildah(storage, "add", "--quiet", base, root, "/")
    buildah(storage, "commit", "--quiet", base, "localhost/base")
    buildah(storage, "rm", base)
    how = ["--isolation=chroot", "--network=host", "--build-arg=BASE=localhost/base"]
    buildah(storage, "bud", *how, f"--file={RECIPE}", "--tag=localhost/mount-s3", REPOSITORY)
    inspected = buildah(storage, "inspect", "--type=image", "localhost/mount-s3")
    container = buildah(storage, "from", "localhost/mount-s3")
    files = Path(buildah(storage, "mount", container))
    for name in ("handover", "volume"):
        (files / name).mkdir()
    yield files, yaml.safe_load(inspected)["OCIv1"]["config"]
    buildah(storage, "umount", container)
    shutil.rmtree(storage)  # 1 GB


def test_the_image(image: tuple[Path, Any]) -> None:
    """An ordinary user runs mount-s3. The image has neither a compiler nor pip."""
    files, config = image
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["mount-s3", "--foreground"]
    for name in ("usr/bin/gcc", "opt/mount-s3/bin/pip", "src"):
        assert not (files / name).exists(), name
    command = ["chroot", "--userspec=10001:10001", files, "env", *config["Env"], "mount-s3"]
    done = subprocess.run(
        [*command, "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("mount-s3 ")


def test_the_pod(image: tuple[Path, Any], server: SeaweedFS, tmp_path: Path) -> None:
    """An unprivileged container serves the mount of a privileged one, for a third one."""
    server.client().put_object(Bucket=server.bucket, Key="file", Body=b"content")
    files, config = image
    containers = {
        each["name"]: each for each in yaml.safe_load(POD.read_text())["spec"]["initContainers"]
    }
    mount_s3 = containers["mount-s3"]
    user = mount_s3["securityContext"]["runAsUser"]
    command = [server.bucket if word == "my-bucket" else word for word in mount_s3["command"]]
    for name in ("volume", "handover"):
        (tmp_path / name).mkdir()
    (path,) = [each for each in config["Env"] if each.startswith("PATH=")]
    probe = shlex.join(mount_s3["startupProbe"]["exec"]["command"])
    script = CONTAINERS.format(
        image=files,
        volume=tmp_path / "volume",
        handover=tmp_path / "handover",
        path=path.removeprefix("PATH="),
        keys=shlex.join(f"{name}={value}" for name, value in server.environment.items()),
        mounter=shlex.join(containers["mounter"]["command"]),
        become=f"setpriv --reuid={user} --regid={user} --clear-groups --bounding-set=-all "
        "--inh-caps=-all --no-new-privs",
        mount_s3=shlex.join([*command, *options(server)]),
        app=shlex.quote(APP.format(probe=probe)),
    )
    inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(
        [*inside, "bash", "-c", script],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("content")
    assert "is mounted at /volume/data" in done.stdout
    store = Store(server.endpoint_url, server.bucket, server.environment)
    assert content(store, "new") == b"written\n"
