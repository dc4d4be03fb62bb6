"""Credentials that sign requests: botocore's credential chain, renewed ahead of time.

Each request is signed with the `latest` keys, from memory; sessions with directory buckets read
them on CRT threads. One daemon thread does everything that may wait for a network, a process or a
file. It checks every minute, and botocore renews keys that expire within 15 minutes. If a renewal
fails, the old keys stay in use as long as they are valid.

`explain` is for refused keys that still look valid here: the clock is wrong, the machine was
asleep, the keys were deleted, or a tool wrote new ones to a file without their expiry. The thread
then runs the whole chain again, and the callers retry meanwhile. If that brings no new keys, no
caller waits for them during the next seconds.

A mount that goes on after the death of its process goes on without keys, too, if their source does
not answer: its requests fail as if the keys had expired, until there are keys.

https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html
"""

import logging
import threading
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from mountpoint.config import CredentialsConfig
from mountpoint.errors import (
    CredentialsEnded,
    CredentialsUnavailable,
    MountError,
    S3Error,
    restated,
)
from mountpoint.s3.aws.profile import open_session
from mountpoint.s3.wire.errors import masked, printable

if TYPE_CHECKING:
    from botocore.session import Session

log = structlog.get_logger(__name__)

#: botocore renews 15 minutes before expiry and raises from 10 minutes before on: ten tries at most.
INTERVAL_S = 60.0
#: In the last two minutes before expiry, the thread checks more often.
HURRY_WITHIN_S = 120
HURRY_INTERVAL_S = 5.0
#: Many requests fail at once when keys expire; the chain runs only once for all of them.
RESOLVE_AGAIN_AFTER_S = 10.0
WARN_AGAIN_AFTER_S = 60.0
_CLOSE_WAIT_S = 1.0
_MESSAGE_MAX_CHARS = 300
#: How long a mount that can begin without keys waits for them. Those of files and variables take
#: some milliseconds, those of services a second.
PATIENCE_S = 2.0

#: These loggers write secrets, or tracebacks that contain them; we log the failures ourselves.
_TALKATIVE = ("botocore.credentials", "botocore.parsers", "botocore.tokens")


class Keys(NamedTuple):
    """The keys that sign a request."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None

    def __repr__(self) -> str:
        return "Keys(***)"


class _NoSource:
    """Stands for botocore's credentials as long as there are none."""

    method = ""

    def refresh_needed(self, seconds: float) -> bool:
        """Return True, as for credentials that have expired."""
        return True


class Origin(NamedTuple):
    """The source of the keys, without secrets.

    `method` is botocore's name of the provider. `profile` is the one used (None: default).
    `access_key_id` shows four characters at either end. `expires_at` is None if unknown.
    """

    method: str
    profile: str | None
    access_key_id: str
    expires_at: datetime | None


class Credentials:
    """The keys of one mount. Create it after the fork: it starts a thread.

    `ca_bundle` names the CA certificates for the services that issue keys. Raises MountError if
    there are no credentials, or no valid ones; if they are not `needed` yet, the thread looks for
    them.
    """

    def __init__(
        self,
        config: CredentialsConfig,
        *,
        ca_bundle: str | None = None,
        needed: bool = True,
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

        # Mutable, used by the thread alone once it runs.
        self._effective_profile: str | None = None
        self._resolved_at = float("-inf")
        self._warned_at = float("-inf")

        # Mutable, written by the thread in one assignment, read by all threads.
        self._state: tuple[Keys, Any] = (Keys("", "", None), _NoSource())
        if needed:
            self._state = self._resolve()
        self._in_vain_until = float("-inf")  # no use to wait for newer keys until then
        self._failure = ""  # why the last renewal failed, if it did
        self._hint = ""  # what to do about it

        # Mutable, thread-safe.
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._looked = threading.Event()  # the thread has run the chain, or asked for newer keys
        self._thread = threading.Thread(target=self._run, name="credentials", daemon=True)
        if not needed:
            self._wake.set()
        self._thread.start()
        if not needed:
            self._looked.wait(PATIENCE_S)

    def __repr__(self) -> str:
        return f"Credentials(method={getattr(self._state[1], 'method', '')!r})"

    def latest(self) -> Keys:
        """Return the keys to sign with, without waiting, even if expired: see `check`."""
        return self._state[0]

    def check(self) -> None:
        """Raise CredentialsUnavailable if the keys have expired. Retryable: see `explain`."""
        if _ends_within(self._state[1], 0):
            if isinstance(self._state[1], _NoSource):
                reason = "there are no credentials yet"
                reason += f": {self._failure}" if self._failure else ""
            else:
                reason = "the credentials have expired"
                reason += f" and could not be renewed: {self._failure}" if self._failure else ""
            error = CredentialsUnavailable(reason, hint=self._hint or "renew the credentials")
            raise self._ended(error)

    @property
    def origin(self) -> Origin:
        """The source of the keys."""
        keys, source = self._state
        expires_at = getattr(source, "_expiry_time", None)  # botocore has no public attribute
        return Origin(
            getattr(source, "method", None) or "",
            self._effective_profile,
            abbreviated(keys.access_key_id),
            expires_at if isinstance(expires_at, datetime) else None,
        )

    def explain(self, refusal: S3Error) -> S3Error:
        """Return the error for a refusal by S3. If it concerns the keys, the thread seeks new ones.

        The error is then retryable, except for some seconds after a search without success.
        """
        if isinstance(refusal, CredentialsUnavailable):
            return self._ended(refusal)
        silent = type(refusal) is S3Error and refusal.status == 400 and not refusal.code
        if silent and self.latest().session_token:  # keys without a session token do not expire
            # An answer to HEAD has no body with the error code.
            ended = self._ended(CredentialsUnavailable(str(refusal), status=400))
            return ended if ended.retryable else refusal
        return refusal

    def _ended(self, error: CredentialsUnavailable) -> CredentialsUnavailable:
        if time.monotonic() < self._in_vain_until:
            return error
        self._wake.set()
        return restated(error, CredentialsEnded, str(error), error.hint)

    def close(self) -> None:
        """Stop the thread; if it waits for a network, it ends with the process."""
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
                self._renew(asked or isinstance(self._state[1], _NoSource))
            self._looked.set()

    def _pause_s(self) -> float:
        source = self._state[1]
        soon = _ends_within(source, HURRY_WITHIN_S) and not _ends_within(source, 0)
        return self._hurry_interval_s if soon else self._interval_s

    def _renew(self, anew: bool) -> None:
        """Let botocore renew expiring keys or, with `anew`, run the whole chain again."""
        keys, source = self._state
        try:
            state = self._resolve() if anew else (_freeze(source), source)
        except Exception as error:  # providers may raise anything; the thread must survive
            self._failed(_explain(error, self._effective_profile))
            self._in_vain_until = time.monotonic() + self._resolve_again_after_s
            return
        if anew and state[0] == keys:
            self._in_vain_until = time.monotonic() + self._resolve_again_after_s
        self._state = state
        if state[0] == keys and _ends_within(state[1], HURRY_WITHIN_S):
            self._failed(MountError("the source has no newer ones", "renew the credentials"))
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
        """Run the whole chain. Raises MountError if it finds no valid keys."""
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
        except Exception as error:  # providers let their libraries' exceptions through
            raise _explain(error, session.profile) from None


def abbreviated(access_key_id: str) -> str:
    """Return an access key id shortened so that its owner can still recognise it."""
    # AWS's have 16 to 128 characters. Shorter ones would be shown almost completely.
    return f"{access_key_id[:4]}…{access_key_id[-4:]}" if len(access_key_id) >= 16 else "…"


def _ends_within(source: Any, seconds: float) -> bool:
    """Whether botocore's credentials expire within `seconds`; those without expiry never do."""
    refresh_needed = getattr(source, "refresh_needed", None)
    return refresh_needed is not None and bool(refresh_needed(seconds))


def _freeze(source: Any) -> Keys:
    frozen = source.get_frozen_credentials()
    if not frozen.access_key or not frozen.secret_key:
        raise ValueError("an access key without a secret, or a secret without an access key")
    return Keys(frozen.access_key, frozen.secret_key, frozen.token or None)


# --- What went wrong, and what to do ---


def _nothing_found(session: "Session") -> MountError:
    files = " and ".join(
        str(session.get_config_variable(name)) for name in ("credentials_file", "config_file")
    )
    profile = session.profile or "default"
    sources = [f"profile '{profile}' in {files}", "web identity", "container", "instance metadata"]
    if "profile" not in session.instance_variables():
        sources.insert(0, "AWS_ACCESS_KEY_ID")
    return MountError(
        f"no AWS credentials were found; looked at: {', '.join(sources)}",
        "run aws configure or aws sso login, or name a --profile;"
        " a public bucket can be mounted with --no-sign-request",
    )


def _explain(error: Exception, profile: str | None) -> MountError:
    """Return the MountError that explains an error of the credential chain to the user.

    botocore's messages hold no secrets, but a credential_process may print anything. An OSError
    names a file, and masking would mistake its path for a token.
    """
    from botocore import exceptions

    if isinstance(error, MountError):
        return error
    text = str(error) if isinstance(error, OSError) else masked(str(error))
    message = printable(text, _MESSAGE_MAX_CHARS) or type(error).__name__
    of_profile = f" --profile {profile}" if profile else ""
    where = f"profile '{profile or 'default'}'"
    if isinstance(
        error, exceptions.SSOError | exceptions.TokenRetrievalError | exceptions.NoAuthTokenError
    ):
        return MountError(
            f"the SSO session of {where} has expired or was never started ({message})",
            f"log in with: aws sso login{of_profile}",
        )
    if isinstance(error, exceptions.LoginError):
        return MountError(
            f"the login session of {where} has expired or was never started ({message})",
            f"log in with: aws login{of_profile}",
        )
    if isinstance(error, exceptions.PartialCredentialsError):
        return MountError(f"the credentials are incomplete: {message}", "set what is missing")
    if isinstance(error, exceptions.NoRegionError):
        return MountError(
            f"{where} needs a region to get credentials", "set AWS_REGION, or the profile's region"
        )
    if isinstance(error, exceptions.SSLError):
        return MountError(
            f"the service that issues the credentials of {where} is not trusted: {message}",
            "name a file with the certificates to trust: --ca-bundle or AWS_CA_BUNDLE",
        )
    if isinstance(error, exceptions.CredentialRetrievalError) and "custom-process" in str(error):
        return MountError(
            f"the credential_process of {where} failed: {message}", "run its command by hand"
        )
    if "still expired" in message:
        return MountError(
            "the credentials have expired",
            "renew them at their source (environment, file, credential_process)",
        )
    return MountError(
        f"the credentials of {where} could not be obtained: {message}",
        "check the profile's settings, and whether the service that issues the keys answers",
    )
