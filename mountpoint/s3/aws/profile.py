"""The user's AWS configuration and profile, as a botocore session.

Importing botocore takes 0.3 seconds, so the function imports it.
"""

import os
from typing import TYPE_CHECKING

from mountpoint.errors import MountError

if TYPE_CHECKING:
    from botocore.session import Session


def open_session(profile: str | None) -> "Session":
    """Return a session for `profile`; the default is AWS_PROFILE, then the default profile.

    Raises MountError if a file cannot be read, or the profile does not exist.
    """
    from botocore.exceptions import BotoCoreError, ProfileNotFound
    from botocore.session import Session

    session = Session(profile=profile)
    try:
        session.get_scoped_config()
    except ProfileNotFound:
        known = ", ".join(session.available_profiles)
        raise MountError(
            f"there is no profile '{session.profile}' in the AWS configuration",
            f"known profiles: {known}" if known else "create it with: aws configure --profile NAME",
        ) from None
    except BotoCoreError as error:
        raise MountError(f"the AWS configuration cannot be read: {error}", "correct it") from None
    # Other SDKs read AWS_REGION, and EKS sets it; botocore reads only AWS_DEFAULT_REGION.
    if region := os.environ.get("AWS_REGION"):
        session.set_config_variable("region", region)
    return session
