"""Keys that expire after seconds, in front of a real server that has one permanent pair.

Create `keys = TemporaryKeys(store, life_s=10)`, and add `keys.check` to the `before` faults of a
`FaultyProxy`. A request passes only if it is correctly signed with keys from `issue` that have not
expired. It is then signed again with the server's own keys. `used` records the key of each request.
"""

import secrets
import threading
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from tests.conftest import Store
from tests.faulty_proxy import Exchange
from tests.signatures import Authorization, signature


@dataclass(frozen=True)
class Keys:
    """Temporary keys, as STS issues them."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str = field(repr=False)
    ends: datetime

    @property
    def ends_text(self) -> str:
        """The expiry in AWS's format."""
        return self.ends.strftime("%Y-%m-%dT%H:%M:%SZ")

    def as_json(self) -> dict[str, str]:
        """The keys in the format of metadata services."""
        return {
            "Code": "Success",
            "AccessKeyId": self.access_key,
            "SecretAccessKey": self.secret_key,
            "Token": self.token,
            "Expiration": self.ends_text,
        }


class TemporaryKeys:
    """Issues keys, and recognises them."""

    def __init__(self, store: Store, life_s: float) -> None:
        self._store = store
        self.life_s = life_s
        self._lock = threading.Lock()
        self._issued: dict[str, Keys] = {}
        self.used: list[str] = []
        self.refused: list[str] = []  # error codes of the refusals

    def issue(self) -> Keys:
        """Return new keys, valid from now on."""
        keys = Keys(
            "ASIA" + secrets.token_hex(8).upper(),
            secrets.token_hex(20),
            "IQoJ" + secrets.token_urlsafe(90),
            datetime.now(UTC) + timedelta(seconds=self.life_s),
        )
        with self._lock:
            self._issued[keys.access_key] = keys
        return keys

    @property
    def secrets(self) -> list[str]:
        """The secrets of all issued keys."""
        with self._lock:
            return [
                text for keys in self._issued.values() for text in (keys.secret_key, keys.token)
            ]

    def end_all(self) -> None:
        """Invalidate all issued keys, whatever their expiry."""
        with self._lock:
            now = datetime.now(UTC)
            self._issued = {k: replace(v, ends=now) for k, v in self._issued.items()}

    def check(self, exchange: Exchange) -> None:
        """Let the exchange pass, or refuse it as S3 does."""
        given = {name.lower(): value for name, value in exchange.request_headers.items()}
        authorization = Authorization.parse(given["authorization"])
        keys = self._issued.get(authorization.key_id)
        code = self._wrong(exchange, given, authorization, keys)
        if code:
            self.refused.append(code)
            exchange.refuse(400 if code == "ExpiredToken" else 403, code)
            return
        self.used.append(authorization.key_id)
        signed = tuple(name for name in authorization.signed if name != "x-amz-security-token")
        own = replace(
            authorization,
            key_id=self._store.environment["AWS_ACCESS_KEY_ID"],
            signed=signed,
            signature=self._signature(
                exchange,
                {name: given[name] for name in signed},
                authorization.scope,
                self._store.environment["AWS_SECRET_ACCESS_KEY"],
            ),
        )
        del given["x-amz-security-token"]
        exchange.request_headers = given | {"authorization": own.header()}

    def _wrong(
        self,
        exchange: Exchange,
        given: dict[str, str],
        authorization: Authorization,
        keys: Keys | None,
    ) -> str:
        if keys is None:
            return "InvalidAccessKeyId"
        headers = {name: given[name] for name in authorization.signed}
        expected = self._signature(exchange, headers, authorization.scope, keys.secret_key)
        if expected != authorization.signature:
            return "SignatureDoesNotMatch"
        if headers.get("x-amz-security-token") != keys.token:
            return "InvalidToken"
        return "ExpiredToken" if keys.ends <= datetime.now(UTC) else ""

    def _signature(
        self, exchange: Exchange, headers: dict[str, str], scope: str, secret: str
    ) -> str:
        url = self._store.endpoint_url + exchange.target
        return signature(exchange.method, url, headers, scope, secret)
