"""Mount a bucket in the root folder of another distribution, and compare every byte.

    python -m tools.try_mount ROOT

tools/clean-root makes ROOT, with `mount-s3` on its PATH. The S3 server runs outside of it, on
loopback. Programs in ROOT mount, read, write and unmount the bucket, as root and as an ordinary
user. If a step fails, or the mount does not use the wide channel to the kernel, the script says why
and exits with 1.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from pathlib import Path

from tools.servers import SeaweedFS

CLEAN_ROOT = Path(__file__).with_name("clean-root")
USER = "someone"
TIMEOUT_S = 120.0
MIB = 1 << 20

#: Empty, smaller than a read of the kernel, one byte more than a part, several parts.
SIZES = {
    "empty": 0,
    "directory/small file": 1,
    "directory/below/ä": 100_000,
    "parts/one and a byte": 8 * MIB + 1,
    "parts/several": 40 * MIB,
}
WRITTEN = "parts/several"

# Run by bash in ROOT, after lines that set the variables in capitals.
SCRIPT = """
set -eu
export AWS_SHARED_CREDENTIALS_FILE=/srv/credentials AWS_EC2_METADATA_DISABLED=true
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
mkdir ~/mnt
end() {
    code=$?
    cd /
    ! mountpoint -q ~/mnt || fusermount -u ~/mnt
    [ $code -eq 0 ] || cat ~/log/*
}
trap end EXIT
mount-s3 $BUCKET ~/mnt $OPTIONS --debug --log-directory ~/log
grep -q at_most_kib=1024 ~/log/* || { echo "the kernel asks for 128 KiB at a time"; exit 1; }
cd ~/mnt
sha256sum --check --strict /srv/expected
test "$(find . -type f | wc -l)" -eq "$(wc -l </srv/expected)"
cp "$WRITTEN" ~/copy
cp ~/copy "written by $(whoami)"
"""


def main() -> int:
    """Test the root folder that the command line names."""
    root = Path(sys.argv[1]).resolve()
    run(root, "root", f"useradd --create-home {USER}")
    with SeaweedFS() as server:
        client = server.client()
        contents = {name: random.Random(name).randbytes(size) for name, size in SIZES.items()}
        for name, body in contents.items():
            client.put_object(Bucket=server.bucket, Key=name, Body=body)
        variables = prepare(root / "srv", server, contents)
        for user in ("root", USER):
            run(root, user, variables + SCRIPT)
            name = f"written by {user}"
            found = client.get_object(Bucket=server.bucket, Key=name)["Body"].read()
            if found != contents[WRITTEN]:
                print(f"what {user} has written is not what the bucket has", file=sys.stderr)
                return 1
            client.delete_object(Bucket=server.bucket, Key=name)
            print(f"as {user}: {len(SIZES)} files read, one written, all bytes are right")
    return 0


def prepare(folder: Path, server: SeaweedFS, contents: dict[str, bytes]) -> str:
    """Write the script's files into `folder`; return the lines that set its variables."""
    sums = (f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in contents.items())
    (folder / "expected").write_text("".join(sums))
    (folder / "credentials").write_text(
        f"[default]\naws_access_key_id = {server.access_key}\n"
        f"aws_secret_access_key = {server.secret_key}\n"
    )
    where = f"--endpoint-url {server.endpoint_url} --region {server.region} --force-path-style"
    return f"BUCKET={server.bucket}\nWRITTEN='{WRITTEN}'\nOPTIONS='{where}'\n"


def run(root: Path, user: str, command: str) -> None:
    """Run a bash command in `root`. Raises an error if it fails or takes too long."""
    subprocess.run(
        [CLEAN_ROOT, "run", root, user, command],
        check=True,
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT_S,
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.SubprocessError as error:
        # The command is long, and it has already said what failed.
        sys.exit(f"a command in the root folder failed: {type(error).__name__}")
