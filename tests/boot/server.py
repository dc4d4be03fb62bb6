"""How a machine reaches the S3 server outside."""

from tests.conftest import Store
from tests.mount.mounting import store_options
from tools.servers import SeaweedFS

#: The defaults of packaging/ec2/user-data.sh: its service and its directory.
SERVICE = "mount-s3@data.service"
DIRECTORY = "/mnt/data"


def options(server: SeaweedFS) -> list[str]:
    """Return the options that name the server."""
    return store_options(Store(server.endpoint_url, server.bucket, server.environment))


def credentials(server: SeaweedFS) -> str:
    """Return the shared credentials file."""
    return (
        f"[default]\naws_access_key_id = {server.access_key}\n"
        f"aws_secret_access_key = {server.secret_key}\n"
    )
