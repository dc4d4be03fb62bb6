"""The sources of a mount's keys, with services on loopback instead of AWS's.

Use `with place(store, folder, "SSO") as it:`, and mount `it.there` at `it.url`. The store accepts
only keys from that source, until they expire.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

from tests.conftest import Store
from tests.faulty_proxy import FaultyProxy
from tests.temporary_keys import TemporaryKeys
from tests.unit.aws_fakes import Container, Giver, Instance, Sso, Sts, serving

ROLE = "arn:aws:iam::123456789012:role/reader"
WEB_IDENTITY = "good-web-identity-3Vx7RcA"
SOURCE_SECRET = "source-secret-8Yp1HbTq"
START_URL = "https://example.awsapps.com/start"
SSO_PROFILE = f"""[profile work]
sso_start_url = {START_URL}
sso_region = us-east-1
sso_account_id = 123456789012
sso_role_name = reader
"""


def log_in(home: Path) -> None:
    """Act as `aws sso login`: write a token that is valid for an hour."""
    cache = home / ".aws" / "sso" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    token = {"startUrl": START_URL, "region": "us-east-1", "accessToken": Sso.token}
    digest = sha1(START_URL.encode(), usedforsecurity=False).hexdigest()
    (cache / f"{digest}.json").write_text(json.dumps(token | {"expiresAt": ends}))


def by_instance(url: str, home: Path) -> dict[str, str]:
    return {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": url}


def by_container(url: str, home: Path) -> dict[str, str]:
    """As EKS Pod Identity: the token is in a file."""
    (home / "token").write_text(Container.token)
    return {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{url}/keys",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(home / "token"),
    }


def by_sso(url: str, home: Path) -> dict[str, str]:
    log_in(home)
    (home / "config").write_text(SSO_PROFILE)
    return {"AWS_PROFILE": "work", "AWS_ENDPOINT_URL_SSO": url}


def by_web_identity(url: str, home: Path) -> dict[str, str]:
    (home / "token").write_text(WEB_IDENTITY)
    return {
        "AWS_ROLE_ARN": ROLE,
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(home / "token"),
        "AWS_ENDPOINT_URL_STS": url,
    }


def by_role(url: str, home: Path) -> dict[str, str]:
    (home / "config").write_text(f"[profile work]\nrole_arn = {ROLE}\nsource_profile = source\n")
    (home / "credentials").write_text(
        f"[source]\naws_access_key_id = AKIDSOURCE\naws_secret_access_key = {SOURCE_SECRET}\n"
    )
    return {"AWS_PROFILE": "work", "AWS_ENDPOINT_URL_STS": url}


def by_process(url: str, home: Path) -> dict[str, str]:
    """A program that prints keys, which it gets from a container service."""
    (home / "print_keys.py").write_text(
        "import json, urllib.request\n"
        f"headers = {{'Authorization': {Container.token!r}}}\n"
        f"asked = urllib.request.Request({url!r}, headers=headers)\n"
        "keys = json.load(urllib.request.urlopen(asked))\n"
        "print(json.dumps(keys | {'Version': 1, 'SessionToken': keys['Token']}))\n"
    )
    program = f"{sys.executable} -I {home / 'print_keys.py'}"
    (home / "config").write_text(f"[profile work]\ncredential_process = {program}\n")
    return {"AWS_PROFILE": "work"}


WAYS: dict[str, tuple[type[Giver], Callable[[str, Path], dict[str, str]]]] = {
    "instance": (Instance, by_instance),
    "container": (Container, by_container),
    "SSO": (Sso, by_sso),
    "web identity": (Sts, by_web_identity),
    "role": (Sts, by_role),
    "process": (Container, by_process),
}


@dataclass
class Place:
    """A store that accepts only temporary keys, and the source of these keys."""

    there: Store
    proxy: FaultyProxy
    keys: TemporaryKeys
    service: type[Giver]

    @property
    def url(self) -> str:
        """The URL of the store."""
        return self.proxy.url

    @property
    def secrets(self) -> list[str]:
        """All secrets."""
        return [Container.token, Sso.token, WEB_IDENTITY, SOURCE_SECRET, *self.keys.secrets]


@contextmanager
def place(store: Store, folder: Path, way: str, life_s: float = 3600.0) -> Iterator[Place]:
    """Provide keys from one of the sources. The user's files are in `folder`."""
    service, configure = WAYS[way]
    keys = TemporaryKeys(store, life_s)
    give = staticmethod(lambda: keys.issue().as_json())
    with FaultyProxy(store.endpoint_url) as proxy, serving(service, keys=give) as (url, giver):
        proxy.before.append(keys.check)
        environ = {
            "HOME": str(folder),
            "AWS_CONFIG_FILE": str(folder / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
            "AWS_REGION": "us-east-1",
        }
        there = Store(store.endpoint_url, store.bucket, environ | configure(url, folder))
        yield Place(there, proxy, keys, giver)
