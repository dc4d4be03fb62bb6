"""Signatures of requests, computed by botocore: an implementation other than the CRT's."""

from dataclasses import dataclass
from typing import Self

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True)
class Authorization:
    """The parsed Authorization header. `signed` are names of headers, in lower case."""

    key_id: str
    scope: str
    signed: tuple[str, ...]
    signature: str

    @classmethod
    def parse(cls, header: str) -> Self:
        parts = header.removeprefix(f"{ALGORITHM} ").split(",")
        fields = dict(part.strip().split("=", 1) for part in parts)
        key_id, _, scope = fields["Credential"].partition("/")
        signed = tuple(fields["SignedHeaders"].split(";"))
        return cls(key_id, scope, signed, fields["Signature"])

    def header(self) -> str:
        """Return the header's value."""
        credential = f"{self.key_id}/{self.scope}"
        names = ";".join(self.signed)
        return (
            f"{ALGORITHM} Credential={credential}, SignedHeaders={names}, "
            f"Signature={self.signature}"
        )


def signature(method: str, url: str, headers: dict[str, str], scope: str, secret: str) -> str:
    """Return the signature of a request over its signed headers, whose names are in lower case."""
    _, region, service, _ = scope.split("/")
    request = AWSRequest(method=method, url=url, headers=headers)
    request.context["timestamp"] = headers["x-amz-date"]
    auth = S3SigV4Auth(Credentials("", secret), service, region)
    canonical = auth.canonical_request(request)
    # The key id is not part of the signed text.
    return str(auth.signature(auth.string_to_sign(request, canonical), request))
