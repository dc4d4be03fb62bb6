"""Libraries that are imported only when they are needed."""

import subprocess
import sys

import pytest

from mountpoint.errors import MountError
from mountpoint.metrics.export import exports


def test_an_extra_that_is_missing() -> None:
    """The message has the reason and the command."""
    with pytest.raises(MountError) as caught, exports._extra("--prometheus", "prometheus"):
        raise ImportError("No module named 'prometheus_client'")
    assert "No module named 'prometheus_client'" in caught.value.what
    assert caught.value.hint == "pip install 'mount-s3[prometheus]'"


@pytest.mark.slow
def test_without_metrics_nothing_heavy_is_loaded() -> None:
    """The libraries are imported only with the options that need them."""
    program = "import sys, mountpoint.mount.run; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert "mountpoint.metrics.export.exports" in loaded
    assert not {"opentelemetry", "prometheus_client", "requests"} & loaded
