"""Who signs the requests: botocore's credential chain, kept fresh ahead of time.

Each request is signed with the `latest` keys, from memory; sessions with directory buckets ask for
them on threads of the CRT. One daemon thread does whatever may wait for a network, a process or a
file: it looks every minute, and botocore renews what ends within 15 minutes. When that fails the
old keys go on as long as they are valid.

`explain` is for when S3 says that keys are good no longer which look valid from here: the clock
is wrong, the machine was asleep, they were deleted, or a tool has written new keys into a file with
no word of when they end. Then the whole chain is gone through again, and who asked S3 asks again
meanwhile; but for some seconds after that has brought nothing, nobody waits for it.

https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html
"""

import logging
import threading
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from mountpoint.config import CredentialsConfig
from mountpoint.errors import CredentialsEnded, CredentialsUnavailable, MountError, S3Error
from mountpoint.s3.aws.profile import open_session
from mountpoint.s3.wire.errors import masked, printable

if TYPE_CHECKING:
    from botocore.session import Session

log = structlog.get_logger(__name__)

#: botocore renews 15 minutes ahead and makes it an error 10 minutes ahead: ten tries.
INTERVAL_S = 60.0
#: In the last two minutes there is no time to wait for the next minute.
HURRY_WITHIN_S = 120
HURRY_INTERVAL_S = 5.0
#: Many requests fail at once when keys expire; they go through the chain once.
RESOLVE_AGAIN_AFTER_S = 10.0
WARN_AGAIN_AFTER_S = 60.0
_CLOSE_WAIT_S = 1.0
_MESSAGE_MAX_CHARS = 300

#: These write secrets, or tracebacks with them, to the log; we log the failure ourselves.
_TALKATIVE = ("botocore.credentials", "botocore.parsers", "botocore.tokens")


class Keys(NamedTuple):
    """What signs a request."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None

    def __repr__(self) -> str:
        return "Keys(***)"


class Origin(NamedTuple):
    """Where keys come from: nothing in it is secret.

    `method` is botocore's name of the provider, `profile` the one that was used (None: default),
    `access_key_id` has four characters at either end, and `expires_at` is None where nobody knows.
    """

    method: str
    profile: str | None
    access_key_id: str
    expires_at: datetime | None


class Credentials:
    """The keys of one mount. Make it after the fork: it starts a thread.

    `ca_bundle` names the certificates that services which give keys have to have.
    Raise MountError at once when there are no credentials, or none that are valid.
    """

    def __init__(
        self,
        config: CredentialsConfig,
        *,
        ca_bundle: str | None = None,
        interval_s: float = INTERVAL_S,
        resolve_again_after_s: float = RESOLVE_AGAIN_AFTER_S,
    ) -> None:
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.CRITICAL)

        # Constants.
        self._profile = config.profile
        self._ca_bundle = ca_bundle
        self._interval_s = interval_s
        self._hurry_interval_s = min(interval_s, HURRY_INTERVAL_S)
        self._resolve_again_after_s = resolve_again_after_s

        # Mutable, of the thread alone once it runs.
        self._effective_profile: str | None = None
        self._resolved_at = time.monotonic()
        self._warned_at = float("-inf")

        # Mutable, written by the thread in one assignment, read by anybody.
        self._state: tuple[Keys, Any] = self._resolve()
        self._in_vain_until = float("-inf")  # it is no use to wait for newer keys
        self._failure = ""  # why the last renewal failed, if it did
        self._hint = ""  # what to do about it

        # Mutable, thread-safe.
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="credentials", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"Credentials(method={getattr(self._state[1], 'method', '')!r})"

    def latest(self) -> Keys:
        """Return the keys to sign with, at once, even if they have ended: see `check`."""
        return self._state[0]

    def check(self) -> None:
        """Raise CredentialsUnavailable if the keys have ended. It is retryable: see `explain`."""
        if _ends_within(self._state[1], 0):
            reason = "the credentials have expired"
            if self._failure:
                reason += f" and could not be renewed: {self._failure}"
            error = CredentialsUnavailable(reason, hint=self._hint or "renew the credentials")
            raise self._ended(error)

    @property
    def origin(self) -> Origin:
        """Where the keys come from."""
        keys, source = self._state
        expires_at = getattr(source, "_expiry_time", None)  # botocore tells it in no other way
        return Origin(
            getattr(source, "method", None) or "",
            self._effective_profile,
            abbreviated(keys.access_key_id),
            expires_at if isinstance(expires_at, datetime) else None,
        )

    def explain(self, refusal: S3Error) -> S3Error:
        """Return what a refusal of S3 means. If it is of the keys, others are looked for, soon.

        It is retryable then, but for some seconds after that was in vain.
        """
        if isinstance(refusal, CredentialsUnavailable):
            return self._ended(refusal)
        silent = type(refusal) is S3Error and refusal.status == 400 and not refusal.code
        if silent and self.latest().session_token:  # what has none does not end
            # An answer to HEAD has no body to say it.
            ended = self._ended(CredentialsUnavailable(str(refusal), status=400))
            return ended if ended.retryable else refusal
        return refusal

    def _ended(self, error: CredentialsUnavailable) -> CredentialsUnavailable:
        if time.monotonic() < self._in_vain_until:
            return error
        self._wake.set()
        return CredentialsEnded(
            str(error),
            code=error.code,
            status=error.status,
            request_id=error.request_id,
            hint=error.hint,
        )

    def close(self) -> None:
        """Stop the thread; one that is waiting for a network ends with the process."""
        self._closed.set()
        self._wake.set()
        self._thread.join(_CLOSE_WAIT_S)

    # --- The thread ---

    def _run(self) -> None:
        while not self._closed.is_set():
            asked = self._wake.wait(self._pause_s())
            if asked:
                since_s = time.monotonic() - self._resolved_at
                self._closed.wait(max(0.0, self._resolve_again_after_s - since_s))
                self._wake.clear()
            if not self._closed.is_set():
                self._renew(asked)

    def _pause_s(self) -> float:
        source = self._state[1]
        soon = _ends_within(source, HURRY_WITHIN_S) and not _ends_within(source, 0)
        return self._hurry_interval_s if soon else self._interval_s

    def _renew(self, anew: bool) -> None:
        """Let botocore renew what ends soon or, with `anew`, go through the whole chain."""
        keys, source = self._state
        try:
            state = self._resolve() if anew else (_freeze(source), source)
        except Exception as error:  # whatever a provider raises: the thread goes on
            self._failed(_explain(error, self._effective_profile))
            self._in_vain_until = time.monotonic() + self._resolve_again_after_s
            return
        if anew and state[0] == keys:
            self._in_vain_until = time.monotonic() + self._resolve_again_after_s
        self._state = state
        if state[0] == keys and _ends_within(state[1], HURRY_WITHIN_S):
            self._failed(MountError("there are no newer ones", "renew the credentials"))
        else:
            self._failure = self._hint = ""
            if state[0] != keys:
                log.debug("new credentials", method=getattr(state[1], "method", ""))

    def _failed(self, error: MountError) -> None:
        self._failure, self._hint = error.what, error.hint
        now = time.monotonic()
        if now - self._warned_at >= WARN_AGAIN_AFTER_S:
            self._warned_at = now
            log.warning("credentials cannot be renewed", reason=error.what, hint=error.hint)

    def _resolve(self) -> tuple[Keys, Any]:
        """Go through the whole chain. Raise MountError when nothing valid is found."""
        self._resolved_at = time.monotonic()
        session = open_session(self._profile)
        self._effective_profile = session.profile
        if self._ca_bundle is not None:  # for STS and SSO
            session.set_config_variable("ca_bundle", self._ca_bundle)
        try:
            source = session.get_credentials()
            if source is None:
                raise _nothing_found(session)
            return _freeze(source), source
        except MountError:
            raise
        except Exception as error:  # providers raise what their libraries raise
            raise _explain(error, session.profile) from None


def abbreviated(access_key_id: str) -> str:
    """Return an access key id by which who knows it can tell it from others."""
    # AWS's have 16 to 128 characters; little would be left unsaid of shorter ones.
    return f"{access_key_id[:4]}…{access_key_id[-4:]}" if len(access_key_id) >= 16 else "…"


def _ends_within(source: Any, seconds: float) -> bool:
    """Whether botocore's credentials end within `seconds`; those without an end never do."""
    refresh_needed = getattr(source, "refresh_needed", None)
    return refresh_needed is not None and bool(refresh_needed(seconds))


def _freeze(source: Any) -> Keys:
    frozen = source.get_frozen_credentials()
    if not frozen.access_key or not frozen.secret_key:
        raise ValueError("an access key without a secret, or the other way round")
    return Keys(frozen.access_key, frozen.secret_key, frozen.token or None)


# --- What went wrong, and what to do ---


def _nothing_found(session: "Session") -> MountError:
    files = " and ".join(
        str(session.get_config_variable(name)) for name in ("credentials_file", "config_file")
    )
    profile = session.profile or "default"
    places = [f"profile '{profile}' in {files}", "web identity", "container", "instance metadata"]
    if "profile" not in session.instance_variables():
        places.insert(0, "AWS_ACCESS_KEY_ID")
    return MountError(
        f"no AWS credentials were found; looked at: {', '.join(places)}",
        "run aws configure or aws sso login, or name a --profile;"
        " a public bucket can be mounted with --no-sign-request",
    )


def _explain(error: Exception, profile: str | None) -> MountError:
    """Return what an error of the credential chain means to the user.

    Messages of botocore hold no secrets, but a credential_process may print anything. An
    OSError's names a file, which masking would take for a token.
    """
    from botocore import exceptions as boto

    if isinstance(error, MountError):
        return error
    text = str(error) if isinstance(error, OSError) else masked(str(error))
    message = printable(text, _MESSAGE_MAX_CHARS) or type(error).__name__
    of_profile = f" --profile {profile}" if profile else ""
    where = f"profile '{profile or 'default'}'"
    if isinstance(error, boto.SSOError | boto.TokenRetrievalError | boto.NoAuthTokenError):
        return MountError(
            f"the SSO session of {where} has expired or was never started ({message})",
            f"log in: aws sso login{of_profile}",
        )
    if isinstance(error, boto.LoginError):
        return MountError(
            f"the login session of {where} has expired or was never started ({message})",
            f"log in: aws login{of_profile}",
        )
    if isinstance(error, boto.PartialCredentialsError):
        return MountError(f"the credentials are incomplete: {message}", "set what is missing")
    if isinstance(error, boto.NoRegionError):
        return MountError(
            f"{where} needs a region to get credentials", "set AWS_REGION, or the profile's region"
        )
    if isinstance(error, boto.SSLError):
        return MountError(
            f"the service that gives the credentials of {where} is not trusted: {message}",
            "--ca-bundle or AWS_CA_BUNDLE names a file with the certificates to trust",
        )
    if isinstance(error, boto.CredentialRetrievalError) and "custom-process" in str(error):
        return MountError(
            f"the credential_process of {where} failed: {message}", "run its command by hand"
        )
    if "still expired" in message:
        return MountError(
            "the credentials have expired",
            "renew them where they come from (environment, file, credential_process)",
        )
    return MountError(
        f"the credentials of {where} could not be obtained: {message}",
        "check the profile's settings, and that the service which gives the keys answers",
    )
