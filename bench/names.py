"""Measure the memory per known name: `python -m bench.names`, as root.

Mounts a bucket of a million keys that exist only in a test server's answers, looks up each of
them, as `find` with -size does, and makes the kernel forget them. Prints the memory of the mounting
process before, with all names known, and afterwards.
"""

import argparse
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from bench.measure import Process, drop_caches
from bench.objects import MIB
from tools import mounting

FOLDERS, SUBFOLDERS = 100, 100
MTIME_S = 1_700_000_000
#: The kernel sends its FORGETs within two seconds; then the memory is freed.
FORGET_S = 10.0


def names_in(prefix: str, files: int) -> Iterator[str]:
    """Yield the names in a folder of the tree, in order; folders end in "/". Pure."""
    depth = prefix.count("/")
    if depth == 0:
        yield from (f"dataset-2026-{number:02}/" for number in range(FOLDERS))
    elif depth == 1:
        yield from (f"partition-{number:03}/" for number in range(SUBFOLDERS))
    elif depth == 2:
        yield from (f"part-{number:08}-c000.snappy.avro" for number in range(files))


def page(prefix: str, after: str, most: int, files: int) -> bytes:
    """Return the answer to ListObjectsV2 with the delimiter "/". Pure."""
    names = [name for name in names_in(prefix, files) if prefix + name > after]
    texts = []
    for name in names[:most]:
        key = prefix + name
        if name.endswith("/"):
            texts.append(f"<CommonPrefixes><Prefix>{key}</Prefix></CommonPrefixes>")
            continue
        etag = hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()
        mtime = time.gmtime(MTIME_S + int(etag[:6], 16))
        texts.append(
            f"<Contents><Key>{key}</Key><LastModified>{time.strftime('%FT%T.000Z', mtime)}"
            f"</LastModified><ETag>&quot;{etag}&quot;</ETag><Size>{int(etag[:7], 16)}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )
    token = ""
    if len(names) > most:
        token = f"<NextContinuationToken>{prefix}{names[most - 1]}</NextContinuationToken>"
    return (
        f"<ListBucketResult><Prefix>{prefix}</Prefix><EncodingType>url</EncodingType>"
        f"<IsTruncated>{'true' if token else 'false'}</IsTruncated>{token}"
        f"{''.join(texts)}</ListBucketResult>"
    ).encode()


def serve(files: int, port: Connection) -> None:
    """Serve the tree, with `files` in each folder; send the port to the parent."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = MIB  # one packet for head and body: a second one would wait for an ACK

        def do_GET(self) -> None:
            query = dict(parse_qsl(urlsplit(self.path).query))
            after = query.get("continuation-token", query.get("start-after", ""))
            most = int(query.get("max-keys", "1000"))
            self._answer(200, page(query.get("prefix", ""), after, most, files))

        def do_HEAD(self) -> None:
            self._answer(404, b"")

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.send(server.server_port)
    server.serve_forever()


def look_up_all(folder: Path) -> int:
    """Look up all names in a folder; return their number."""
    count = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            count += 1
            if entry.is_dir(follow_symlinks=False):
                count += look_up_all(Path(entry.path))
            entry.stat(follow_symlinks=False)
    return count


def measure(folder: Path) -> list[str]:
    """Look up all names and make the kernel forget them; return the lines of the report."""
    pid = mounting.serving_process(folder)
    process = Process(pid)
    before = process.rss_bytes()
    start_s, cpu_s = time.perf_counter(), process.cpu_seconds()
    count = look_up_all(folder)
    seconds, cpu_s = time.perf_counter() - start_s, process.cpu_seconds() - cpu_s
    known = process.rss_bytes()
    forget_s = process.cpu_seconds()
    drop_caches()
    time.sleep(FORGET_S)
    forget_s = process.cpu_seconds() - forget_s
    return [
        f"names        {count:,}",
        f"looked up    {count / seconds:,.0f} /s, CPU {cpu_s / count * 1e6:.0f} us each",
        f"memory       {before / MIB:.0f} MiB before, {known / MIB:.0f} MiB with all of them known",
        f"each         {(known - before) / count:.0f} bytes",
        f"forgotten    CPU {forget_s / count * 1e6:.1f} us each",
        f"memory       {process.rss_bytes() / MIB:.0f} MiB then",
        f"peak         {process.peak_rss_bytes() / MIB:.0f} MiB",
    ]


def main() -> int:
    """Run the measurement."""
    parser = argparse.ArgumentParser(prog="bench.names", description=__doc__.partition("\n")[0])
    parser.add_argument("--names", type=int, default=1_000_000)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("only root can make the kernel forget names (/proc/sys/vm/drop_caches)")
    files = max(arguments.names // FOLDERS // SUBFOLDERS, 1)
    ours, theirs = get_context("fork").Pipe()
    server = get_context("fork").Process(target=serve, args=(files, theirs), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}"
    with tempfile.TemporaryDirectory(prefix="mount-s3-names-") as name:
        folder, logs = Path(name) / "mnt", Path(name) / "log"
        folder.mkdir()
        options = ["--endpoint-url", url, "--region", "us-east-1", "--force-path-style"]
        mounting.mount("bucket", folder, [*options, "--no-sign-request"], {}, logs)
        try:
            print("\n".join(measure(folder)))
        finally:
            mounting.unmount(folder)
            server.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
