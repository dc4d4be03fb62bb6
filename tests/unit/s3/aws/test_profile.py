"""The user's AWS configuration as a session."""

from pathlib import Path

import pytest

from mountpoint.errors import MountError
from mountpoint.s3.aws.profile import open_session
from tests.unit.aws_fakes import isolate


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration file, with two profiles."""
    path = isolate(tmp_path, monkeypatch) / "config"
    path.write_text("[default]\nregion = eu-west-1\n[profile work]\nregion = eu-central-1\n")
    return path


def test_the_profile_decides(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The given profile comes before that of the environment, and the default one is last."""
    assert open_session(None).get_config_variable("region") == "eu-west-1"
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert open_session(None).get_config_variable("region") == "eu-central-1"
    assert open_session("default").get_config_variable("region") == "eu-west-1"


def test_the_region_of_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_REGION, which botocore does not read, comes before the profile's region."""
    monkeypatch.setenv("AWS_REGION", "ap-south-1")
    assert open_session("work").get_config_variable("region") == "ap-south-1"


def test_a_profile_that_is_missing(file: Path) -> None:
    """The hint names the profiles that exist, or says how to create one."""
    with pytest.raises(MountError, match="there is no profile 'play'") as caught:
        open_session("play")
    assert caught.value.hint == "known profiles: default, work"
    file.write_text("")
    with pytest.raises(MountError) as caught:
        open_session("play")
    assert "aws configure" in caught.value.hint


def test_a_file_that_cannot_be_parsed(file: Path) -> None:
    """The message has the reason."""
    file.write_text("[default\n")
    with pytest.raises(MountError, match="the AWS configuration cannot be read"):
        open_session(None)
