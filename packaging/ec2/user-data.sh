#!/bin/bash
# Install mount-s3 on an EC2 instance, and mount a bucket now and at each boot.
#
# Change the settings below and use it as user data, or run it as root with variables of these
# names. It may run again: what already exists stays, and changed settings take effect. Its output
# is also in /var/log/mount-s3-install.log. It supports Amazon Linux 2023, Debian 12 and 13, and
# Ubuntu 24.04, for which packaging/build-wheels makes wheels.

# The folder of wheels that packaging/build-wheels made: a path, a copy at s3://BUCKET/PREFIX
# (aws s3 sync FOLDER s3://BUCKET/PREFIX), or a .tar.gz of it at https://.
WHEELS=${WHEELS:-s3://my-bucket/mount-s3/amzn-2023}
# The bucket to mount, by the service mount-s3@NAME. Without BUCKET mount-s3 is only installed.
NAME=${NAME:-data}
BUCKET=${BUCKET-}
DIRECTORY=${DIRECTORY:-/mnt/$NAME}
OPTIONS=${OPTIONS---allow-other}
# "no": do not mount before the next boot, for example in an image.
START=${START:-yes}

set -euo pipefail
LOG=/var/log/mount-s3-install.log
ROOT=/opt/mount-s3
UNIT=/etc/systemd/system/mount-s3@.service
CONFIG=/etc/mount-s3/$NAME.conf

say() { echo "mount-s3 install: $(date -u +%FT%TZ) $*"; }
fail() { say "failed: $*"; exit 1; }

# Installs the packages of libfuse 2.9, fusermount and Python with venv that are missing.
install_packages() {
    if command -v dnf >/dev/null; then
        rpm -q --quiet python3.11 fuse fuse-libs || dnf -y -q install python3.11 fuse fuse-libs
        return
    fi
    command -v apt-get >/dev/null || fail "neither dnf nor apt-get is here"
    local missing=()
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
    # Debian 12's package fuse has it as well, but the two packages exclude each other.
    command -v fusermount >/dev/null || missing+=(fuse3)
    ldconfig -p | grep -q 'libfuse\.so\.2 ' || missing+=(libfuse2)
    [ "${#missing[@]}" -eq 0 ] && return
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -o DPkg::Lock::Timeout=300 update
    apt-get -q -y -o DPkg::Lock::Timeout=300 --no-install-recommends install "${missing[@]}"
}

# Prints the folder with the wheels. Fetches it into $1 if it is remote.
fetch() {
    case $WHEELS in
    s3://*)
        command -v aws >/dev/null || fail "$WHEELS needs the AWS CLI, which is not installed"
        aws s3 cp --only-show-errors --recursive "$WHEELS" "$1" >&2 ;;
    https://*)
        "$python" -c '
import sys, tarfile, urllib.request
try:
    with urllib.request.urlopen(sys.argv[1], timeout=60) as answer:
        with tarfile.open(fileobj=answer, mode="r|gz") as archive:
            archive.extractall(sys.argv[2])
except (OSError, tarfile.TarError) as error:
    sys.exit(str(error))' "$WHEELS" "$1" ;;
    *)
        cp -r "$WHEELS/." "$1" ;;
    esac
}

install_wheels() {
    local work sums
    work=$(mktemp -d)
    # shellcheck disable=SC2064  # its value now
    trap "rm -rf '$work'" EXIT
    fetch "$work" || fail "$WHEELS cannot be fetched: the lines above say why"
    # An archive may contain the folder, or its files.
    sums=$(cd "$work" && find . -name '*.whl' -exec sha256sum {} + | sort)
    [ -n "$sums" ] || fail "there are no wheels in $WHEELS"
    if [ "$sums" = "$(cat "$ROOT/wheels.sha256" 2>/dev/null)" ]; then
        say "$("$ROOT/bin/mount-s3" --version) is installed already"
        return
    fi
    rm -f "$ROOT/wheels.sha256"
    [ -x "$ROOT/bin/pip" ] || "$python" -m venv "$ROOT"
    # Even if the version is the same: the wheels differ.
    "$ROOT/bin/pip" --isolated --disable-pip-version-check install -q --force-reinstall \
        --no-index --find-links "$(dirname "$(find "$work" -name 'mount_s3-*.whl')")" mount-s3
    echo "$sums" >"$ROOT/wheels.sha256"
    say "$("$ROOT/bin/mount-s3" --version) is installed in $ROOT"
}

# Writes standard input to the file $1. Succeeds if that changes the file.
write() {
    local new
    mkdir -p "$(dirname "$1")"
    new=$(mktemp "$1.XXXXXX")
    cat >"$new"
    if cmp -s "$new" "$1"; then rm "$new"; return 1; fi
    chmod 644 "$new"
    mv "$new" "$1"
    say "$1 is written"
}

main() {
    say "begins"
    [ "$(id -u)" -eq 0 ] || fail "it has to be run as root"
    [[ $NAME =~ ^[A-Za-z0-9_.-]+$ ]] || fail "'$NAME' cannot be the name of a service"
    install_packages
    python=$(command -v python3.11 || command -v python3)
    install_wheels
    ln -sfn "$ROOT/bin/mount-s3" /usr/local/bin/mount-s3
    ln -sfn "$ROOT/bin/mount-s3ctl" /usr/local/bin/mount-s3ctl
    if write "$UNIT" <"$ROOT/share/mount-s3/mount-s3@.service" && [ -d /run/systemd/system ]; then
        systemctl daemon-reload
    fi
    if [ -z "$BUCKET" ]; then
        say "ends: no bucket to mount"
        return
    fi
    local action=start
    printf 'BUCKET=%s\nDIRECTORY=%s\nOPTIONS=%s\n' "$BUCKET" "$DIRECTORY" "$OPTIONS" |
        write "$CONFIG" && action=restart
    systemctl enable -q "mount-s3@$NAME.service"
    if [ "$START" = yes ]; then
        # Returns when files can be read.
        systemctl "$action" "mount-s3@$NAME.service" ||
            fail "$BUCKET is not mounted; it is tried again: journalctl -u mount-s3@$NAME"
        say "ends: $BUCKET is mounted at $DIRECTORY"
    else
        say "ends: $BUCKET is mounted from the next boot on"
    fi
}

main 2>&1 | tee -a "$LOG"
