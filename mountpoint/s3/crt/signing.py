"""Sign requests: the CRT's signing configuration for an endpoint and its current keys."""

from awscrt.auth import (
    AwsCredentials,
    AwsCredentialsProvider,
    AwsSignatureType,
    AwsSignedBodyHeaderType,
    AwsSignedBodyValue,
    AwsSigningAlgorithm,
    AwsSigningConfig,
)

from mountpoint.s3.aws.credentials import Credentials, Keys
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.crt.threads import keep_state

ALGORITHMS = {
    "v4": AwsSigningAlgorithm.V4,
    "v4a": AwsSigningAlgorithm.V4_ASYMMETRIC,
    "v4-s3express": AwsSigningAlgorithm.V4_S3EXPRESS,
}


class Signer:
    """Signing configurations for one endpoint; without credentials, requests are unsigned."""

    def __init__(self, endpoint: Endpoint, credentials: Credentials | None) -> None:
        # dependencies
        self._endpoint = endpoint
        self._credentials = credentials
        # mutable, replaced in one assignment: the current keys, and the configuration made of them
        self._current: tuple[Keys, AwsSigningConfig] | None = None

    def session_config(self) -> AwsSigningConfig | None:
        """Return the config with which the CRT opens sessions itself; None without sessions."""
        credentials = self._credentials
        if credentials is None or not self._endpoint.has_sessions:
            return None

        def current() -> AwsCredentials:
            keep_state()
            # The CRT would log an exception raised here and drop it.
            return AwsCredentials(*credentials.latest())

        return self._config(AwsCredentialsProvider.new_delegate(current))

    def config(self) -> AwsSigningConfig | None:
        """Return the config for a request; None if unsigned, or in a session.

        The config contains the keys. A credentials provider would call the interpreter once more
        per request, on the one thread that serves all connections.
        """
        if self._credentials is None or self._endpoint.has_sessions:
            return None
        keys, current = self._credentials.latest(), self._current
        if current is None or current[0] is not keys:
            provider = AwsCredentialsProvider.new_static(*keys)
            self._current = current = keys, self._config(provider)
        return current[1]

    def _config(self, provider: AwsCredentialsProvider) -> AwsSigningConfig:
        return AwsSigningConfig(
            algorithm=ALGORITHMS[self._endpoint.signing_algorithm],
            signature_type=AwsSignatureType.HTTP_REQUEST_HEADERS,
            service=self._endpoint.signing_name,
            region=self._endpoint.region,
            credentials_provider=provider,
            signed_body_header_type=AwsSignedBodyHeaderType.X_AMZ_CONTENT_SHA_256,
            signed_body_value=AwsSignedBodyValue.UNSIGNED_PAYLOAD,
            use_double_uri_encode=False,
            should_normalize_uri_path=False,
        )
