"""Every provider of the chain, renewal ahead of time, and the messages of failures."""

import json
import logging
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha1
from pathlib import Path

import pytest
import structlog
import trustme
from structlog.testing import LogCapture

from mountpoint.config import CredentialsConfig
from mountpoint.errors import (
    AccessDenied,
    CredentialsUnavailable,
    MountError,
    S3Error,
    WrongRegion,
)
from mountpoint.s3.aws.credentials import Credentials
from tests.unit.aws_fakes import Instance, Service, Sts, isolate, serving

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
TOKEN = "FwoGZXIvYXdzEBYaDOSFODNN7EXAMPLETOKEN0123456789"
KEYS = {"Code": "Success", "SecretAccessKey": SECRET, "Token": TOKEN}


def in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    isolate(tmp_path, monkeypatch)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """The log lines of this module."""
    capture = LogCapture()
    monkeypatch.setattr(
        "mountpoint.s3.aws.credentials.log", structlog.wrap_logger(None, processors=[capture])
    )
    return capture.entries  # type: ignore[return-value]


Start = Callable[..., Credentials]


@pytest.fixture
def start() -> Iterator[Start]:
    """Create Credentials that check every 50 ms, and close them."""
    made: list[Credentials] = []

    def make(
        profile: str | None = None,
        *,
        interval_s: float = 0.05,
        resolve_again_after_s: float = 0,
        ca_bundle: str | None = None,
        needed: bool = True,
    ) -> Credentials:
        times = {"interval_s": interval_s, "resolve_again_after_s": resolve_again_after_s}
        config = CredentialsConfig(profile)
        made.append(Credentials(config, ca_bundle=ca_bundle, needed=needed, **times))
        return made[-1]

    yield make
    for credentials in made:
        credentials.close()


def trouble(credentials: Credentials) -> CredentialsUnavailable | None:
    """Return why no request can be signed."""
    try:
        credentials.check()
    except CredentialsUnavailable as error:
        return error
    return None


def refused(start: Start, profile: str | None = None) -> MountError:
    """Return the error of missing credentials, which shows no secret."""
    with pytest.raises(MountError) as caught:
        start(profile)
    assert "\n" not in caught.value.what
    assert caught.value.hint
    assert SECRET not in str(caught.value)
    return caught.value


# --- Environment and files ---


def test_environment(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in the environment; the session token may be missing."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert start().latest() == ("AKIDENV", SECRET, None)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    assert start().latest() == ("AKIDENV", SECRET, TOKEN)


def test_nothing_secret_is_shown(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the object nor the keys show a secret when printed."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    credentials = start()
    shown = f"{credentials!r} {credentials} {credentials.latest()!r} {credentials.latest()}"
    assert "env" in shown
    assert not any(secret in shown for secret in ("AKIDENV", SECRET, TOKEN))


def test_environment_incomplete(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """An access key without its secret is an error that names the missing part."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
    assert "AWS_SECRET_ACCESS_KEY" in refused(start).what


def test_environment_expired(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys with an AWS_CREDENTIAL_EXPIRATION in the past are refused at the start."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", in_seconds(-60))
    assert refused(start).what == "the credentials have expired"


def test_shared_files(start: Start, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default profile, --profile and AWS_PROFILE; --profile overrides keys in the environment."""
    (home / "credentials").write_text(
        "[default]\naws_access_key_id = AKIDDEF\naws_secret_access_key = d\n"
    )
    (home / "config").write_text(
        "[profile work]\naws_access_key_id = AKIDWORK\naws_secret_access_key = w\n"
        "aws_session_token = t\n"
    )
    assert start().latest() == ("AKIDDEF", "d", None)
    assert start("work").latest() == ("AKIDWORK", "w", "t")
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert start().latest() == ("AKIDWORK", "w", "t")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "e")
    assert start().latest() == ("AKIDENV", "e", None)
    assert start("work").latest() == ("AKIDWORK", "w", "t")


def test_profile_unknown(start: Start, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown profile from option or environment: the message lists the known ones."""
    (home / "credentials").write_text("[default]\n[home]\n")
    (home / "config").write_text("[profile work]\n")
    error = refused(start, "wrk")
    assert "'wrk'" in error.what
    assert all(name in error.hint for name in ("default", "home", "work"))
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert "'other'" in refused(start).what


def test_file_malformed(start: Start, home: Path) -> None:
    """The message names a file that cannot be parsed."""
    (home / "credentials").write_text(f"aws_secret_access_key = {SECRET}\n")
    assert str(home / "credentials") in refused(start).what


def test_nothing_found(start: Start, home: Path) -> None:
    """Without credentials the message says where it looked, and what to do."""
    error = refused(start)
    for source in ("AWS_ACCESS_KEY_ID", "'default'", str(home / "credentials"), "metadata"):
        assert source in error.what
    assert "--no-sign-request" in error.hint
    (home / "config").write_text("[profile bare]\n")
    error = refused(start, "bare")
    assert "'bare'" in error.what
    assert "AWS_ACCESS_KEY_ID" not in error.what


def test_file_rewritten_by_a_tool(start: Start, home: Path) -> None:
    """Keys without an expiry are read again when S3 says that they have expired, not before."""
    file = home / "credentials"
    keys = "[default]\naws_access_key_id = {}\naws_secret_access_key = s\n"
    file.write_text(keys.format("AKIDOLD"))
    credentials = start()
    file.write_text(keys.format("AKIDNEW"))
    time.sleep(0.2)
    assert credentials.latest().access_key_id == "AKIDOLD"
    credentials.explain(CredentialsUnavailable())
    until(lambda: credentials.latest().access_key_id == "AKIDNEW")


@pytest.mark.slow
def test_waiting_for_newer_keys(start: Start, home: Path, lines: list[dict[str, object]]) -> None:
    """A request with expired keys is retried until a search finds no newer ones."""
    file = home / "credentials"
    file.write_text("[default]\naws_access_key_id = AKIDOLD\naws_secret_access_key = s\n")
    credentials = start(resolve_again_after_s=1)
    said = CredentialsUnavailable("expired", code="ExpiredToken", status=400, request_id="r")
    soon = credentials.explain(said)
    assert soon.retryable
    assert isinstance(soon, CredentialsUnavailable)
    assert (str(soon), soon.code, soon.status, soon.request_id) == ("expired", said.code, 400, "r")
    until(lambda: credentials.explain(said) is said)  # the file has the same keys
    until(lambda: credentials.explain(said).retryable)  # some time has passed


@pytest.mark.parametrize("token", [True, False])
def test_answers_without_a_code(start: Start, home: Path, token: bool) -> None:
    """400 without a reason, as for HEAD, concerns the keys if they can expire."""
    more = f"aws_session_token = {TOKEN}\n" if token else ""
    keys = f"[default]\naws_access_key_id = AKIDOLD\naws_secret_access_key = s\n{more}"
    (home / "credentials").write_text(keys)
    credentials = start(resolve_again_after_s=60)
    refusal = S3Error("HTTP status 400", status=400)
    soon = credentials.explain(refusal)
    assert isinstance(soon, CredentialsUnavailable) is token
    assert soon.retryable is token
    for other in (
        S3Error("InvalidRequest", status=400, code="InvalidRequest"),
        WrongRegion("HTTP status 400", status=400, region="eu-west-1"),
        AccessDenied("HTTP status 403", status=403),
    ):
        assert credentials.explain(other) is other


def test_file_lost(start: Start, home: Path, lines: list[dict[str, object]]) -> None:
    """If the chain finds nothing any more, the present keys stay in use."""
    file = home / "credentials"
    file.write_text("[default]\naws_access_key_id = AKIDOLD\naws_secret_access_key = s\n")
    credentials = start()
    file.unlink()
    credentials.explain(CredentialsUnavailable())
    until(lambda: bool(lines))
    assert "no AWS credentials" in str(lines[0]["reason"])
    assert credentials.latest().access_key_id == "AKIDOLD"


# --- Where they come from ---


def test_origin_of_the_environment(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider, and enough of the access key id to recognise it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert start().origin == ("env", None, "AKIA…MPLE", None)
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", in_seconds(3600))
    expires_at = start().origin.expires_at
    assert expires_at is not None
    assert 3500 < (expires_at - datetime.now(UTC)).total_seconds() < 3700


def test_origin_of_a_short_id(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id is not shown if four characters at either end would be nearly all of it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "fifteen-letters")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert start().origin.access_key_id == "…"


# --- credential_process ---


@pytest.fixture
def process(home: Path) -> Path:
    """A profile whose credential_process prints the file `keys`; it fails without that."""
    script = home / "print keys"
    script.write_text(f'#!/bin/sh\ncat "{home}/keys" || {{ echo "bad {SECRET}" >&2; exit 3; }}\n')
    script.chmod(0o755)
    (home / "config").write_text(f"[default]\ncredential_process = '{script}'\n")
    return home / "keys"


def printed(access_key: str, ends_s: float | None = None) -> str:
    keys = {"Version": 1, "AccessKeyId": access_key, "SecretAccessKey": SECRET}
    return json.dumps(keys | ({} if ends_s is None else {"Expiration": in_seconds(ends_s)}))


def test_process(start: Start, process: Path) -> None:
    """The keys come from the command's output."""
    process.write_text(printed("AKIDPROC"))
    credentials = start()
    assert credentials.latest() == ("AKIDPROC", SECRET, None)
    assert credentials.origin[:2] == ("custom-process", None)


def test_process_fails(start: Start, process: Path) -> None:
    """The command's own message is shown, without secrets."""
    error = refused(start)
    assert "credential_process of profile 'default' failed" in error.what
    assert "bad ***" in error.what


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"Version": 9}', '{"Version": 1}'])
def test_process_prints_nonsense(start: Start, process: Path, text: str) -> None:
    """Invalid output is an error, not a crash."""
    process.write_text(text)
    assert "default" in refused(start).what


def test_process_missing(start: Start, home: Path) -> None:
    """The message names a missing command."""
    (home / "config").write_text("[default]\ncredential_process = /no/such/command\n")
    assert "/no/such/command" in refused(start).what


def test_expiry_and_recovery(start: Start, process: Path, lines: list[dict[str, object]]) -> None:
    """Keys stay in use while they are valid; then an error says why, until there are new ones.

    All failures in between are one warning, without secrets.
    """
    process.write_text(printed("AKIDONE", ends_s=1.5))
    credentials = start()
    process.unlink()
    until(lambda: bool(lines))
    assert credentials.latest().access_key_id == "AKIDONE"

    def expired() -> bool:
        return isinstance(trouble(credentials), CredentialsUnavailable)

    until(expired)
    until(lambda: "expired and could not be renewed" in str(trouble(credentials)))
    error = trouble(credentials)
    assert error is not None
    assert "credential_process" in str(error)
    assert error.hint == "run its command by hand"

    process.write_text(printed("AKIDTWO", ends_s=3600))
    until(lambda: not expired())
    assert credentials.latest().access_key_id == "AKIDTWO"
    assert [line["log_level"] for line in lines] == ["warning", "debug"]
    assert SECRET not in repr(lines) + str(error)


def test_keys_that_are_not_needed_yet(
    start: Start, process: Path, lines: list[dict[str, object]]
) -> None:
    """Without them requests fail, and say why, until there are some."""
    credentials = start(needed=False)
    error = trouble(credentials)
    assert "there are no credentials yet" in str(error)
    until(lambda: "credential_process" in str(trouble(credentials)))
    process.write_text(printed("AKIDPROC"))
    until(lambda: trouble(credentials) is None)
    assert credentials.latest().access_key_id == "AKIDPROC"
    assert [line["log_level"] for line in lines] == ["warning", "debug"]
    assert SECRET not in repr(lines) + str(error)


def test_keys_that_are_there_although_not_needed(start: Start, process: Path) -> None:
    """The first request can be signed with them."""
    process.write_text(printed("AKIDPROC"))
    credentials = start(needed=False, interval_s=60)
    assert trouble(credentials) is None
    assert credentials.latest() == ("AKIDPROC", SECRET, None)


def test_end_without_newer_keys(
    start: Start, monkeypatch: pytest.MonkeyPatch, lines: list[dict[str, object]]
) -> None:
    """Expiring keys that the provider returns repeatedly are a warning."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", in_seconds(100))
    credentials = start()
    until(lambda: bool(lines))
    assert lines[0]["log_level"] == "warning"
    assert credentials.latest().access_key_id == "AKIDENV"


def test_botocore_does_not_log_the_failure(
    start: Start, process: Path, caplog: pytest.LogCaptureFixture, lines: list[dict[str, object]]
) -> None:
    """botocore's own warning has a traceback with the command's output, so it is suppressed."""
    caplog.set_level(logging.DEBUG)
    process.write_text(printed("AKIDONE", ends_s=300))
    start()
    process.unlink()
    until(lambda: bool(lines))
    assert SECRET not in caplog.text
    assert "Traceback" not in caplog.text


# --- Container and instance ---


class Keys(Service):
    """A container's credential service: new keys at each request, for five minutes.

    `up` decides whether it answers, and `gate` when.
    """

    up = True
    gate: threading.Event | None = None
    entered = threading.Event()

    def answer(self, body: str) -> tuple[int, str]:
        if self.gate is not None:
            self.entered.set()
            assert self.gate.wait(20)
        if not self.up or self.headers["Authorization"] != "token":
            return 400, json.dumps({"message": f"no {SECRET}"})
        return 200, json.dumps(
            {
                "AccessKeyId": f"AKID{len(self.requests)}",
                "SecretAccessKey": SECRET,
                "Token": TOKEN,
                "Expiration": in_seconds(300),
            }
        )


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Keys]]:
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    with serving(Keys) as (url, service):
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/keys")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "token")
        yield service


def test_container(start: Start, container: type[Keys]) -> None:
    """A container's keys are used, and renewed when they are about to expire."""
    credentials = start()
    first = credentials.latest()
    assert (first.secret_access_key, first.session_token) == (SECRET, TOKEN)
    until(lambda: credentials.latest() != first)
    assert set(container.requests) == {"GET /keys"}
    assert credentials.origin.method == "container-role"
    assert credentials.origin.expires_at is not None


def test_container_fails(
    start: Start, container: type[Keys], lines: list[dict[str, object]]
) -> None:
    """A service that stops answering costs one warning, and nothing else while keys are valid."""
    credentials = start()
    container.up = False
    until(lambda: any(line["log_level"] == "warning" for line in lines))
    kept = credentials.latest()
    asked = len(container.requests)
    until(lambda: len(container.requests) > asked + 3)
    assert credentials.latest() == kept
    assert sum(line["log_level"] == "warning" for line in lines) == 1
    assert not any(secret in repr(lines) for secret in (SECRET, TOKEN, kept.access_key_id))


def test_container_refuses(start: Start, container: type[Keys]) -> None:
    """A service that refuses is an error at the start."""
    container.up = False
    assert "could not be obtained" in refused(start).what


def test_current_never_waits(start: Start, container: type[Keys]) -> None:
    """While a renewal hangs, the present keys are returned."""
    credentials = start(interval_s=3600)
    before = credentials.latest()
    container.gate, container.entered = threading.Event(), threading.Event()
    credentials.explain(CredentialsUnavailable())
    assert container.entered.wait(20)
    assert credentials.latest() == before
    container.gate.set()
    until(lambda: credentials.latest() != before)


def test_requests_that_fail_together(start: Start, container: type[Keys]) -> None:
    """Requests that find expired keys during a renewal cause about one more, not many."""
    credentials = start(interval_s=3600)
    container.gate, container.entered = threading.Event(), threading.Event()
    before = len(container.requests)
    credentials.explain(CredentialsUnavailable())
    assert container.entered.wait(20)
    for _ in range(50):
        credentials.explain(CredentialsUnavailable())
    old = credentials.latest()
    container.gate.set()
    until(lambda: credentials.latest() != old)
    credentials.close()
    assert len(container.requests) <= before + 4  # two of each pass through the chain


class OneRole(Instance):
    def keys(self) -> dict[str, str]:
        return KEYS | {"AccessKeyId": "AKIDROLE", "Expiration": in_seconds(3600)}


def test_instance_role(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The role of an EC2 instance is the last source, unless the service is disabled."""
    with serving(OneRole) as (url, service):
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        refused(start)
        assert service.requests == []
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        credentials = start()
        assert credentials.latest() == ("AKIDROLE", SECRET, TOKEN)
        assert credentials.origin.method == "iam-role"
        assert service.requests[0] == "PUT /latest/api/token"


# --- STS and SSO ---


class OneSts(Sts):
    def keys(self) -> dict[str, str]:
        return KEYS | {"AccessKeyId": "AKIDSTS", "Expiration": in_seconds(3600)}


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Sts]]:
    with serving(OneSts) as (url, service):
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        monkeypatch.setenv("AWS_REGION", "eu-west-1")
        yield service


@pytest.mark.slow
def test_web_identity(
    start: Start, sts: type[Sts], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token file and a role, as in Kubernetes, with AWS_REGION as the only region."""
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/r")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(home / "token"))
    assert str(home / "token") in refused(start).what
    (home / "token").write_text("wrong")
    assert "sts:AssumeRole" in refused(start).what
    (home / "token").write_text("good")
    credentials = start()
    assert credentials.latest() == ("AKIDSTS", SECRET, TOKEN)
    assert credentials.origin.method == "assume-role-with-web-identity"


@pytest.mark.slow
def test_certificates_of_sts(start: Start, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CA bundle of the mount also applies to STS."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(home / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    (home / "token").write_text("good")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/r")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(home / "token"))
    with serving(OneSts, context) as (url, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        error = refused(start)
        assert "CERTIFICATE_VERIFY_FAILED" in error.what
        assert "--ca-bundle" in error.hint
        ca_bundle = str(home / "ca.pem")
        assert start(ca_bundle=ca_bundle).latest() == ("AKIDSTS", SECRET, TOKEN)


@pytest.mark.slow
def test_assumed_role(start: Start, sts: type[Sts], home: Path) -> None:
    """A profile with a role and a source profile; the message says if the role is not permitted."""
    profile = "[profile {0}]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = {1}\n"
    (home / "config").write_text(profile.format("good", "a") + profile.format("bad", "b"))
    (home / "credentials").write_text(
        "[a]\naws_access_key_id = AKIDSOURCE\naws_secret_access_key = s\n"
        "[b]\naws_access_key_id = AKIDOTHER\naws_secret_access_key = s\n"
    )
    credentials = start("good")
    assert credentials.latest() == ("AKIDSTS", SECRET, TOKEN)
    assert credentials.origin[:2] == ("assume-role", "good")
    assert credentials.origin.expires_at is not None
    error = refused(start, "bad")
    assert "profile 'bad'" in error.what
    assert "sts:AssumeRole" in error.what


SSO_PROFILES = """
[profile old]
sso_start_url = https://example.awsapps.com/start
sso_region = us-east-1
sso_account_id = 123456789012
sso_role_name = reader
[profile new]
sso_session = corp
sso_account_id = 123456789012
sso_role_name = reader
[sso-session corp]
sso_start_url = https://example.awsapps.com/start
sso_region = us-east-1
sso_registration_scopes = sso:account:access
"""


#: Says what comes of both profiles: without the files of the login, then with them.
SSO_SCRIPT = """
import json, sys
from pathlib import Path
from mountpoint.config import CredentialsConfig
from mountpoint.errors import MountError
from mountpoint.s3.aws.credentials import Credentials
def say():
    for profile in ("old", "new"):
        try: Credentials(CredentialsConfig(profile))
        except MountError as error: print(str(error).replace(chr(10), " "))
say()
for path, text in json.loads(sys.argv[1]).items():
    Path(path).write_text(text)
say()
"""


@pytest.mark.slow
def test_sso_expired(home: Path) -> None:
    """A session that is expired or missing tells how to log in, without asking the network.

    In its own process, because botocore finds the cache at import.
    """
    (home / "config").write_text(SSO_PROFILES)
    cache = home / ".aws" / "sso" / "cache"
    cache.mkdir(parents=True)
    token = {
        "startUrl": "https://example.awsapps.com/start",
        "region": "us-east-1",
        "accessToken": SECRET,
        "expiresAt": in_seconds(-60),
    }
    files = {}
    for name in ("https://example.awsapps.com/start", "corp"):
        digest = sha1(name.encode(), usedforsecurity=False).hexdigest()
        files[str(cache / f"{digest}.json")] = json.dumps(token)
    command = [sys.executable, "-c", SSO_SCRIPT, json.dumps(files)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    lines = run.stdout.splitlines()
    assert len(lines) == 4
    for line, profile in zip(lines, ["old", "new"] * 2, strict=True):
        assert "has expired or was never started" in line
        assert f"aws sso login --profile {profile}" in line
    assert SECRET not in run.stdout + run.stderr
    assert "Traceback" not in run.stderr


# --- Life and death ---


def test_close_stops_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread is left, and calls after the end do no harm."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    before = threading.active_count()
    credentials = Credentials(CredentialsConfig())
    assert threading.active_count() == before + 1
    credentials.close()
    assert threading.active_count() == before
    credentials.explain(CredentialsUnavailable())
    credentials.close()
    assert credentials.latest().access_key_id == "AKIDENV"


def test_no_thread_after_a_refusal(start: Start) -> None:
    """Missing credentials leave no thread."""
    before = threading.active_count()
    refused(start)
    assert threading.active_count() == before
