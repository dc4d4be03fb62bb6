"""Keys that expire while the mount is in use, from each source.

Services on loopback issue the keys. The store accepts only these keys, until they expire (`ways`).
"""

import errno
import os
import random
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.faulty_proxy import FaultyProxy
from tests.mount.mounting import (
    clean_up,
    content,
    errno_of,
    eventually,
    mounted,
    run,
    store_options,
)
from tests.mount.ways import WAYS, place
from tests.random_bytes import random_bytes
from tests.temporary_keys import TemporaryKeys
from tests.unit.aws_fakes import Container, Sso

pytestmark = pytest.mark.mount

#: The mount looks for newer keys every 5 s if its keys expire soon.
LIFE_S = 8.0
BODY = partial(random_bytes, 7, 32 << 20)
STEP = 64 << 10


@dataclass
class Done:
    """The result of a long read."""

    error: BaseException | None = None
    keys: TemporaryKeys | None = None
    log: str = ""


def read_long(store: Store, folder: Path, way: str, done: Done) -> None:
    """Read an open file repeatedly until its first keys have long expired; then write one."""
    try:
        with (
            place(store, folder, way, LIFE_S) as it,
            mounted(it.there, folder, "--debug", endpoint_url=it.url) as mount,
        ):
            done.keys = it.keys
            until = time.monotonic() + 1.5 * LIFE_S
            offsets = list(range(0, len(BODY()), STEP))
            random.Random(way).shuffle(offsets)
            with (mount.path / "keys" / "long").open("rb", buffering=0) as file:
                for offset in offsets:
                    if time.monotonic() > until:
                        break
                    assert os.pread(file.fileno(), STEP, offset) == BODY()[offset : offset + STEP]
                    time.sleep(0.05)
                else:
                    raise AssertionError("there was too little to read")
            (mount.path / "keys" / way).write_bytes(b"written")
            done.log = mount.log
    except BaseException as error:
        done.error = error


def test_keys_end_while_reading(
    store: Store, tmp_path_factory: pytest.TempPathFactory, subtests: pytest.Subtests
) -> None:
    """The file is read with several keys in turn, without an error, and no key is shown.

    With keys from all sources in parallel, because each read takes as long as the keys live.
    """
    store.put("keys/long", BODY())
    reads = {way: Done() for way in WAYS}
    threads = [
        threading.Thread(target=read_long, args=(store, tmp_path_factory.mktemp("way"), way, done))
        for way, done in reads.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for way, done in reads.items():
        with subtests.test(way):
            if done.error is not None:
                raise done.error
            assert done.keys is not None
            assert len(set(done.keys.used)) >= 2
            # botocore assumes that an instance's keys last for at least ten minutes: S3's refusal
            # comes first.
            expected = {"ExpiredToken"} if way == "instance" else set()
            assert set(done.keys.refused) == expected
            assert content(store, f"keys/{way}") == b"written"
            assert not any(key in done.log for key in done.keys.used)


def test_renewal_fails(store: Store, folder: Path) -> None:
    """If keys expire, reads are EACCES immediately, until the source has newer ones."""
    store.put("keys/short", b"content")
    with (
        place(store, folder, "container", LIFE_S) as it,
        mounted(it.there, folder, endpoint_url=it.url) as mount,
    ):
        file = mount.path / "keys" / "short"
        assert file.read_bytes() == b"content"
        it.service.token = "another"
        eventually(lambda: errno_of(file.read_bytes) == errno.EACCES, within_s=30)
        begun = time.monotonic()
        assert errno_of(file.read_bytes) == errno.EACCES
        assert time.monotonic() - begun < 5
        assert "credentials cannot be renewed" in mount.log
        assert "the credentials have expired and could not be renewed" in mount.log
        assert "the service that issues the keys answers" in mount.log
        it.service.token = Container.token
        eventually(lambda: errno_of(file.read_bytes) is None, within_s=30)


def test_keys_deleted(store: Store, folder: Path) -> None:
    """Long-term keys are replaced in their file and deleted: reads continue with the new ones."""
    store.put("keys/short", b"content")
    keys = TemporaryKeys(store, life_s=3600)

    def configure() -> None:
        given = keys.issue()
        (folder / "credentials").write_text(
            f"[default]\naws_access_key_id = {given.access_key}\n"
            f"aws_secret_access_key = {given.secret_key}\naws_session_token = {given.token}\n"
        )

    configure()
    there = Store(
        store.endpoint_url,
        store.bucket,
        {"AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"), "AWS_REGION": "us-east-1"},
    )
    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.before.append(keys.check)
        with mounted(there, folder, endpoint_url=proxy.url) as mount:
            file = mount.path / "keys" / "short"
            assert file.read_bytes() == b"content"
            keys.end_all()
            configure()
            assert file.read_bytes() == b"content"
            assert set(keys.refused) == {"ExpiredToken"}


def test_sso_login(store: Store, folder: Path) -> None:
    """If the SSO login has ended, the message has the command; afterwards reads work again."""
    store.put("keys/short", b"content")
    with (
        place(store, folder, "SSO", LIFE_S) as it,
        mounted(it.there, folder, endpoint_url=it.url) as mount,
    ):
        file = mount.path / "keys" / "short"
        assert file.read_bytes() == b"content"
        it.service.token = "a later login"
        eventually(lambda: errno_of(file.read_bytes) == errno.EACCES, within_s=30)
        assert 'hint="log in with: aws sso login --profile work"' in mount.log
        again = folder / "again"
        again.mkdir()
        try:
            where = store_options(store, endpoint_url=it.url)
            environ = it.there.environment | {"AWS_PROFILE": ""}
            result = run(store.bucket, again, *where, "--profile", "work", env=environ)
            assert result.returncode == 1
            assert "the SSO session of profile 'work' has expired" in result.stderr
            assert "aws sso login --profile work" in result.stderr
        finally:
            clean_up(again)
        it.service.token = Sso.token
        eventually(lambda: errno_of(file.read_bytes) is None, within_s=30)
