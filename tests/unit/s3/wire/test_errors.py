"""Error answers: the class and hint of each, and no secrets."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountpoint import errors
from mountpoint.s3.wire import errors as wire_errors
from mountpoint.s3.wire import reading

DATA = Path(__file__).parents[2] / "data"


def error_body(code: str, message: str = "", more: str = "") -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{message}</Message>{more}"
        "<RequestId>4442587FB7D0A2F9</RequestId><HostId>x</HostId></Error>"
    ).encode()


def error(
    status: int,
    code: str = "",
    message: str = "",
    more: str = "",
    headers: reading.Headers | None = None,
) -> errors.S3Error:
    body = error_body(code, message, more) if code else b""
    return reading.error_from_response(status, headers, body, what="GetObject")


@pytest.mark.parametrize(
    ("status", "code", "kind", "hint"),
    [
        (404, "", errors.NotFound, ""),
        (404, "NoSuchKey", errors.NotFound, ""),
        (404, "NoSuchVersion", errors.NotFound, ""),
        (404, "NoSuchBucket", errors.BucketNotFound, "name"),
        (403, "", errors.AccessDenied, "policy"),
        (403, "AccessDenied", errors.AccessDenied, "--requester-pays"),
        (403, "AllAccessDisabled", errors.AccessDenied, "policy"),
        (403, "InvalidAccessKeyId", errors.CredentialsUnavailable, "does not know this access key"),
        (403, "SignatureDoesNotMatch", errors.AccessDenied, "secret access key"),
        (403, "RequestTimeTooSkewed", errors.AccessDenied, "clock"),
        (403, "InvalidObjectState", errors.AccessDenied, "restore"),
        (400, "ExpiredToken", errors.CredentialsUnavailable, "renew"),
        (403, "ExpiredToken", errors.CredentialsUnavailable, "renew"),
        (400, "TokenRefreshRequired", errors.CredentialsUnavailable, "renew"),
        (400, "InvalidToken", errors.CredentialsUnavailable, "renew"),
        (412, "", errors.PreconditionFailed, ""),
        (412, "PreconditionFailed", errors.PreconditionFailed, ""),
        (429, "", errors.Throttled, ""),
        (503, "", errors.Throttled, ""),
        (503, "SlowDown", errors.Throttled, ""),
        (500, "SlowDown", errors.Throttled, ""),
        (400, "BadDigest", errors.BadDigest, ""),
        (400, "XAmzContentChecksumMismatch", errors.BadDigest, ""),
        (400, "IncompleteBody", errors.TransportFault, ""),
        (400, "EntityTooLarge", errors.TooLarge, ""),
        (400, "InvalidStorageClass", errors.S3Error, "--storage-class"),
        (400, "KMS.NotFoundException", errors.S3Error, "--sse-kms-key-id"),
        (400, "KMS.DisabledException", errors.S3Error, "--sse-kms-key-id"),
        (404, "NoSuchUpload", errors.NoSuchUpload, ""),
        (409, "ConditionalRequestConflict", errors.Contended, ""),
        (409, "OperationAborted", errors.Contended, ""),
        (400, "InvalidWriteOffset", errors.WrongOffset, ""),
        (400, "TooManyParts", errors.TooLarge, "copy"),
        (400, "EncryptionTypeMismatch", errors.S3Error, "--sse"),
        (400, "IdempotencyParameterMismatch", errors.S3Error, ""),
        (501, "NotImplemented", errors.NotOffered, ""),
        (501, "", errors.NotOffered, ""),
        (507, "XMinioStorageFull", errors.OutOfSpace, ""),
        (400, "RequestTimeout", errors.ServerFault, ""),
        (500, "InternalError", errors.ServerFault, ""),
        (502, "", errors.ServerFault, ""),
        (504, "", errors.ServerFault, ""),
        (416, "InvalidRange", errors.BadAnswer, ""),
        (416, "", errors.BadAnswer, ""),
        (301, "", errors.WrongRegion, "--region"),
        (307, "TemporaryRedirect", errors.WrongRegion, "--region"),
        (400, "AuthorizationHeaderMalformed", errors.WrongRegion, "--region"),
        (400, "IllegalLocationConstraintException", errors.WrongRegion, "--region"),
        (400, "", errors.S3Error, ""),
        (400, "InvalidArgument", errors.S3Error, ""),
        (409, "BucketNotEmpty", errors.S3Error, ""),
    ],
)
def test_class_and_hint(status: int, code: str, kind: type[errors.S3Error], hint: str) -> None:
    """Each status and code has its class, its text and its hint."""
    answered = error(status, code, "What S3 says.")
    assert type(answered) is kind
    assert (answered.status, answered.code) == (status, code)
    assert (hint in answered.hint) if hint else answered.hint == ""
    assert str(answered) == (
        f"GetObject: {code}: What S3 says." if code else f"GetObject: HTTP status {status}"
    )


@pytest.mark.parametrize(
    ("status", "code", "more", "headers", "region"),
    [
        (301, "PermanentRedirect", "", [("x-amz-bucket-region", "eu-west-1")], "eu-west-1"),
        (301, "", "", [("X-Amz-Bucket-Region", "us-gov-west-1")], "us-gov-west-1"),
        (400, "", "", [("x-amz-bucket-region", "eu-west-1")], "eu-west-1"),
        (400, "AuthorizationHeaderMalformed", "<Region>ap-southeast-7</Region>", [],
         "ap-southeast-7"),
        (301, "PermanentRedirect", "<Endpoint>b.s3-eu-west-1.amazonaws.com</Endpoint>", [],
         "eu-west-1"),
        (301, "PermanentRedirect", "<Endpoint>s3.cn-north-1.amazonaws.com.cn</Endpoint>", [],
         "cn-north-1"),
        (301, "PermanentRedirect", "<Endpoint>b.s3.amazonaws.com</Endpoint>", [], ""),
        (301, "PermanentRedirect", "<Endpoint>evil.example.com</Endpoint>", [], ""),
        (301, "", "", [("x-amz-bucket-region", "evil.example.com/")], ""),
        (301, "", "", [("x-amz-bucket-region", "eu-west-1\n")], "eu-west-1"),
        (400, "AuthorizationHeaderMalformed", "<Region>x@evil</Region>", [], ""),
    ],
)  # fmt: skip
def test_wrong_region(
    status: int, code: str, more: str, headers: reading.Headers, region: str
) -> None:
    """A region is used only if it is well-formed, whatever names it."""
    answered = error(status, code, "m", more, headers)
    assert isinstance(answered, errors.WrongRegion)
    assert answered.region == region
    assert (f"--region {region}" in answered.hint) == bool(region)
    assert "evil" not in str(answered) + answered.hint


@pytest.mark.parametrize(
    ("status", "code", "message", "more"),
    [
        (400, "InvalidArgument", "Unsupported header 'x-amz-checksum-crc32' received", ""),
        (501, "NotImplemented", "Header 'x-amz-checksum-algorithm' with value 'CRC32C'", ""),
        (501, "NotImplemented", "A header you provided", "<Header>X-Amz-Checksum-Crc32c</Header>"),
        (400, "InvalidRequest", "Value for x-amz-checksum-type header is invalid.", ""),
        (400, "InvalidArgument", 'Invalid: (checksum missing, want "CRC32C", got "")', ""),
    ],
)
def test_refused_checksums(status: int, code: str, message: str, more: str) -> None:
    """Every form in which stores refuse these headers."""
    assert type(error(status, code, message, more)) is errors.ChecksumsNotOffered
    other = more.replace("Checksum-Crc32c", "Storage-Class")
    assert type(error(status, code, "Header 'If-Match'", other)) is not errors.ChecksumsNotOffered
    assert type(error(400, "BadDigest", message)) is errors.BadDigest


@pytest.mark.parametrize(
    ("code", "condition", "kind"),
    [
        ("PreconditionFailed", "If-None-Match", errors.AlreadyExists),
        ("PreconditionFailed", "If-Match", errors.PreconditionFailed),
        ("PreconditionFailed", "", errors.PreconditionFailed),
        ("AccessDenied", "If-None-Match", errors.AccessDenied),
    ],
)
def test_name_of_the_failed_condition(
    code: str, condition: str, kind: type[errors.S3Error]
) -> None:
    """The error says which condition failed, if S3 does."""
    answered = error(412, code, "m", f"<Condition>{condition}</Condition>")
    assert type(answered) is kind


def test_region_of_an_ordinary_error_is_no_redirect() -> None:
    """S3 names the bucket's region in many answers; a code with another meaning counts more."""
    headers = [("x-amz-bucket-region", "eu-west-1")]
    assert type(error(403, "AccessDenied", headers=headers)) is errors.AccessDenied
    assert type(error(404, headers=headers)) is errors.NotFound
    assert type(error(400, "ExpiredToken", headers=headers)) is errors.CredentialsUnavailable


@pytest.mark.parametrize(
    ("name", "status", "kind"),
    [
        ("seaweedfs-nobucket", 404, errors.BucketNotFound),
        ("seaweedfs-badsecret", 403, errors.AccessDenied),
        ("ministack-nokey", 404, errors.NotFound),
    ],
)
def test_real_bodies(name: str, status: int, kind: type[errors.S3Error]) -> None:
    """Answers of real stores are parsed, with the request id."""
    body = (DATA / f"{name}.xml").read_bytes()
    answered = reading.error_from_response(status, None, body, what="ListObjectsV2")
    assert type(answered) is kind
    assert answered.code
    assert answered.request_id


def test_request_id() -> None:
    """The request id is the body's, else the header's, else empty."""
    assert error(403, "AccessDenied").request_id == "4442587FB7D0A2F9"
    assert error(403, headers=[("x-amz-request-id", "ABC123")]).request_id == "ABC123"
    assert error(403, headers=[("x-amz-request-id", "a b\nc")]).request_id == ""
    assert error(403).request_id == ""


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"<!DOCTYPE html><html></html>", b"\xff\xfe", b"<Error>" * 50,
     b"<Error><Code>NoSuchKey</Code>", b"<Other><Code>NoSuchKey</Code></Other>",
     b'<!DOCTYPE x [<!ENTITY x "NoSuchKey">]><Error><Code>&x;</Code></Error>',
     error_body("NoSuchKey", "x" * wire_errors.ERROR_BODY_MAX_BYTES)],
)  # fmt: skip
def test_senseless_body(body: bytes) -> None:
    """With an invalid body the status alone decides."""
    answered = reading.error_from_response(500, None, body, what="GetObject")
    assert type(answered) is errors.ServerFault
    assert str(answered) == "GetObject: HTTP status 500"
    assert answered.code == ""


@given(st.integers(300, 599), st.binary() | st.text().map(error_body), st.text())
def test_any_answer_is_one_line(status: int, body: bytes, text: str) -> None:
    """Any answer gives an S3Error with one short printable line."""
    headers = [("x-amz-bucket-region", text), ("x-amz-request-id", text)]
    answered = reading.error_from_response(status, headers, body, what="GetObject")
    assert isinstance(answered, errors.S3Error)
    assert str(answered).isprintable()
    assert answered.hint == "" or answered.hint.isprintable()
    assert len(str(answered)) < 300


def test_message_is_cut_and_cleaned() -> None:
    """Line ends, terminal escapes and right-to-left text are removed."""
    answered = error(400, "InvalidArgument", "one\ntwo\t\u202ethree\u009b31m " + "word " * 100)
    message = str(answered).removeprefix("GetObject: InvalidArgument: ")
    assert message.startswith("one two three 31m word")
    assert len(message) == 200


SECRETS = {
    "access key id": "AKIAIOSFODNN7EXAMPLE",
    "temporary access key id": "ASIAIOSFODNN7EXAMPLE",
    "secret": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "token": "FwoGZXIvYXdzEBYaDOSFODNN7EXAMPLE+//8BEAUaDCK2n0kGdNNAYxs" * 4,
    "signature": "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
    "URL-safe token": "eyJzdWIiOiIxMjM0NTY3ODkwIn0abcdef0123-dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS.keys())
def test_secrets_never_come_through(secret: str) -> None:
    """Neither S3's fields of the signature nor a secret in the message is shown."""
    answered = error(
        403,
        "SignatureDoesNotMatch",
        f"you sent '{secret}' and key={secret}.",
        f"<AWSAccessKeyId>{secret}</AWSAccessKeyId><StringToSign>{secret}</StringToSign>"
        f"<CanonicalRequest>{secret}</CanonicalRequest><Token-0>{secret}</Token-0>",
    )
    shown = repr(answered) + answered.hint + answered.code + answered.request_id
    assert secret not in shown
    assert all(part not in shown for part in secret.split("/") if len(part) > 12)
    assert "***" in shown


def test_access_denied_shows_arn_and_action() -> None:
    """ARNs and actions in AccessDenied are shown; keys in them are masked."""
    message = (
        "User: arn:aws:sts::123456789012:assumed-role/AWSReservedSSO_Admin_0123456789abcdef/me@x.y"
        " is not authorized to perform: s3:ListBucket"
    )
    assert str(error(403, "AccessDenied", message)).endswith(message)
    assert wire_errors.masked("arn:aws:iam::1:x/AKIAIOSFODNN7EXAMPLE") == "arn:aws:iam::1:x/***"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_that_is_not_s3s(status: int) -> None:
    """A redirect to https or elsewhere: its target without path and query, which may be secret."""
    to = [("Location", "https://S3.example.com:8443/bucket/?X-Amz-Signature=secret")]
    error = reading.error_from_response(status, to, b"<html>moved</html>", what="")
    assert isinstance(error, errors.Redirected)
    assert error.location == "https://s3.example.com:8443"
    assert "secret" not in str(error)
    # S3's own redirects name a region, or have a code.
    region = [*to, ("x-amz-bucket-region", "eu-west-1")]
    assert isinstance(reading.error_from_response(status, region, b"", what=""), errors.WrongRegion)
    for odd in ("/login", "https://user@evil.example.com/", "javascript:x", "https://a b/"):
        error = reading.error_from_response(status, [("Location", odd)], b"", what="")
        assert isinstance(error, errors.WrongRegion)
