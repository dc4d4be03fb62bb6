"""Small fakes of AWS services besides S3, on loopback, and an empty environment."""

import json
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

import pytest


def isolate(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Remove the machine's own AWS settings; files are looked for in `home`."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "credentials"))
    return home


class Service(BaseHTTPRequestHandler):
    """Answers with the result of `answer`; `requests` has every request line."""

    requests: list[str]

    def answer(self, body: str) -> tuple[int, str]:
        raise NotImplementedError

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        self.requests.append(f"{self.command} {self.path}")
        status, text = self.answer(self.rfile.read(length).decode())
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


S = TypeVar("S", bound=Service)


class Giver(Service):
    """A service that gives keys, in the metadata services' form, to clients with `token`."""

    token: str

    def keys(self) -> dict[str, str]:
        raise NotImplementedError


class Container(Giver):
    """A container's service: ECS, or EKS Pod Identity. Its clients must send `token`."""

    token = "container-token-5e8Q2wL0"

    def answer(self, body: str) -> tuple[int, str]:
        if self.headers["Authorization"] != self.token:
            return 400, json.dumps({"message": "no"})
        return 200, json.dumps(self.keys())


class Instance(Giver):
    """The instance metadata service, version 2, with one role."""

    def answer(self, body: str) -> tuple[int, str]:
        if self.command == "PUT":
            return 200, "token"
        if self.headers["x-aws-ec2-metadata-token"] != "token":
            return 401, ""
        if self.path.endswith("/security-credentials/"):
            return 200, "a-role"
        return 200, json.dumps(self.keys())


class Sts(Giver):
    """The Security Token Service. It knows one web identity token and one access key."""

    def answer(self, body: str) -> tuple[int, str]:
        known = "WebIdentityToken=good" in body or "AKIDSOURCE" in self.headers.get(
            "Authorization", ""
        )
        if not known:
            return 403, (
                "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code>"
                "<Message>Not authorized to perform sts:AssumeRole</Message></Error>"
                "<RequestId>r</RequestId></ErrorResponse>"
            )
        action = "AssumeRoleWithWebIdentity" if "WebIdentity" in body else "AssumeRole"
        keys = self.keys()
        fields = {**keys, "SessionToken": keys["Token"]}
        names = ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")
        inner = "".join(f"<{name}>{fields[name]}</{name}>" for name in names)
        return 200, (
            f"<{action}Response><{action}Result><Credentials>{inner}</Credentials>"
            f"</{action}Result></{action}Response>"
        )


class Sso(Giver):
    """The portal of IAM Identity Center. It knows the login `token`."""

    token = "sso-login-9Zt4KdM3"

    def answer(self, body: str) -> tuple[int, str]:
        if self.headers["x-amz-sso_bearer_token"] != self.token:
            kind = "com.amazonaws.switchboard.portal#UnauthorizedException"
            return 401, json.dumps(
                {"__type": kind, "message": "Session token not found or invalid"}
            )
        keys = self.keys()
        ends = datetime.fromisoformat(keys["Expiration"])
        role = {
            "accessKeyId": keys["AccessKeyId"],
            "secretAccessKey": keys["SecretAccessKey"],
            "sessionToken": keys["Token"],
            "expiration": int(ends.timestamp() * 1000),
        }
        return 200, json.dumps({"roleCredentials": role})


@contextmanager
def serving(
    service: type[S], tls: ssl.SSLContext | None = None, **attributes: object
) -> Iterator[tuple[str, type[S]]]:
    """Serve a fresh copy of `service`, with `attributes`, on a free port; yield URL and copy."""
    fresh: type[S] = type(service.__name__, (service,), {"requests": [], **attributes})
    with ThreadingHTTPServer(("127.0.0.1", 0), fresh) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            scheme = "http" if tls is None else "https"
            yield f"{scheme}://127.0.0.1:{server.server_port}", fresh
        finally:
            server.shutdown()
            thread.join()
