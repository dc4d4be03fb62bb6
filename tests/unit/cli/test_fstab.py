"""Options in /etc/fstab: those of mount(8), and suggestions for unknown ones."""

from typing import Any

import pytest

from mountpoint.cli import fstab, settings
from mountpoint.cli import main as cli
from mountpoint.config import MountConfig
from mountpoint.errors import MountError
from mountpoint.mount import preflight
from mountpoint.mount.run import mount_options
from mountpoint.system import kernel
from tests.unit.cli.test_main import Mounted, config_of, mounted, refusal, run

__all__ = ["mounted"]

CONTEXT = "system_u:object_r:httpd_sys_content_t:s0:c127,c456"

#: The options of mount(8) for all file systems (util-linux 2.41).
TAKEN = """
    async atime noatime auto noauto defaults dev nodev diratime nodiratime exec group
    noiversion nomand _netdev nofail relatime norelatime strictatime nostrictatime lazytime
    nolazytime suid nosuid silent loud owner rw user user=me nouser users x-systemd.automount
    x-systemd.requires=network.target X-mount.mkdir=0755 nosymfollow comment=mine uhelper=udisks2
    helper=fuse default_permissions nonempty
"""
REFUSED = """
    sync dirsync iversion mand remount bind rbind move loop loop=/dev/loop0 offset=512
    sizelimit=4096 shared slave private unbindable rshared rslave rprivate runbindable umask=022
    dmask=022 fmask=022
"""


@pytest.mark.parametrize("item", TAKEN.split())
def test_taken_in_silence(mounted: Mounted, item: str) -> None:
    """Options without a meaning here have no effect."""
    assert config_of(mounted, "-o", item) == config_of(mounted, "-o", "rw")


@pytest.mark.parametrize("item", REFUSED.split())
def test_refused_by_name(mounted: Mounted, item: str) -> None:
    """Options with a meaning that is not supported are refused; the second line says what to do."""
    name = item.partition("=")[0]
    said = refusal("bucket", "/mnt", "-o", item)
    assert f"-o {item}: '{name}' does not work with -o {fstab.REFUSED[name]}" in said
    assert mounted.config is None


def test_read_only(mounted: Mounted) -> None:
    """ro is the only option of mount(8) that is one of ours."""
    assert config_of(mounted, "-o", "ro").mount.read_only


def test_all_are_refused_for_a_reason() -> None:
    """No option is both ignored and refused, and each reason is a sentence."""
    assert not fstab.REFUSED.keys() & (fstab.FOR_MOUNT | fstab.WITHOUT_EFFECT | fstab.KERNEL)
    assert all(" " in reason for reason in fstab.REFUSED.values())


# --- suggestions ---


@pytest.mark.parametrize(
    ("item", "hint"),
    [
        ("quota=7", "mount-s3 --help lists the options"),
        ("chck", "mount-s3 --help lists the options"),
        ("jsonn", "mount-s3 --help lists the options"),
        ("no-chanel", "mount-s3 --help lists the options"),
        ("allow_othr", "did you mean 'allow-other'?"),
        ("read-timout=7", "did you mean 'read-timeout'?"),
    ],
)
def test_suggested_options_are_accepted(mounted: Mounted, item: str, hint: str) -> None:
    """Every suggested option is accepted."""
    assert hint in refusal("bucket", "/mnt", "-o", item)


def test_suggestions_are_taken() -> None:
    """-o accepts each suggestion."""
    names = cli.main._suggested()
    assert len(names) > 40
    assert not {"check", "json", "no-channel", "help", "version"} & set(names)


# --- for the kernel ---


@pytest.fixture
def selinux(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with SELinux."""
    monkeypatch.setattr(kernel, "knows", lambda kind: kind == "selinuxfs")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["rw,noexec,nosuid,nodev,user"], ("noexec",)),
        (["noexec,exec"], ()),
        (["exec", "noexec"], ("noexec",)),
        (['context="a:b,c",rw'], ('context="a:b,c"',)),
        (["context=a:b,fscontext=c"], ('context="a:b"', 'fscontext="c"')),
        (['rootcontext="a"', 'defcontext="b",rootcontext="c"'],
         ('rootcontext="c"', 'defcontext="b"')),
        (['context="a:b'], ('context="a:b"',)),
    ],
)  # fmt: skip
def test_for_the_kernel(texts: list[str], expected: tuple[str, ...]) -> None:
    """The kernel gets noexec and SELinux contexts, which mount(8) quotes."""
    assert fstab.kernel_options(texts) == expected
    assert [each for each in fstab.long_options(texts, [], []) if each != "--read-only"] == []


def test_contexts_with_selinux(mounted: Mounted, selinux: None) -> None:
    """libfuse gets a context as one option, even with commas."""
    config = config_of(mounted, "-o", f'noexec,context="{CONTEXT}"').mount
    assert config.kernel_options == ("noexec", f'context="{CONTEXT}"')
    escaped = CONTEXT.replace(",", "\\,")
    assert {"noexec", f'context="{escaped}"'} <= mount_options(config)


def test_contexts_without_selinux(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel would refuse contexts without SELinux, so they are omitted, as in mount(8)."""
    monkeypatch.setattr(kernel, "knows", lambda kind: False)
    assert config_of(mounted, "-o", f'context="{CONTEXT}",noexec').mount.kernel_options == (
        "noexec",
    )


def test_contexts_and_fusermount(monkeypatch: pytest.MonkeyPatch) -> None:
    """fusermount does not accept contexts, which is reported before the mount."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    preflight.check_contexts(MountConfig("/mnt", kernel_options=("noexec", 'context="a"')))
    for euid, auto in ((1000, False), (0, True)):
        monkeypatch.setattr("os.geteuid", lambda euid=euid: euid)
        preflight.check_contexts(MountConfig("/mnt", kernel_options=("noexec",)))
        with pytest.raises(MountError, match="fusermount does not accept SELinux contexts"):
            preflight.check_contexts(
                MountConfig("/mnt", auto_unmount=auto, kernel_options=('fscontext="a"',))
            )


def test_types_of_file_systems() -> None:
    """The kernel's list is parsed as it is."""
    assert kernel.knows("proc")
    assert not kernel.knows("nodev")


# --- the source ---


@pytest.mark.parametrize(
    ("bucket", "options", "expected"),
    [
        ("bucket", [], "s3://bucket"),
        ("s3://bucket/", [], "s3://bucket"),
        ("bucket", ["--prefix", "a b,c/"], "s3://bucket/a b,c/"),
        ("s3://bucket/a/", [], "s3://bucket/a/"),
        # mount -a compares it with the text of the line.
        ("bucket", ["-o", "rw,prefix=a/"], "bucket"),
        ("s3://bucket/", ["-o", "rw"], "s3://bucket/"),
        ("bucket", ["-o", "fsname=mountpoint-s3"], "mountpoint-s3"),
        ("bucket", ["--fsname", "x"], "x"),
    ],
)
def test_source(mounted: Mounted, bucket: str, options: list[str], expected: str) -> None:
    """The kernel's tables show the bucket, unless another name is given."""
    assert run(bucket, "/mnt", *options).exit_code == 0
    assert mounted.config is not None
    assert mounted.config.mount.fsname == expected


def test_source_of_libfuse() -> None:
    """Commas and backslashes are part of the name."""
    assert r"fsname=s3://b/a\,b\\c/" in mount_options(MountConfig("/mnt", fsname="s3://b/a,b\\c/"))


def test_of_a_descriptor(mounted: Mounted) -> None:
    """A mounted descriptor already has its source and flags."""
    assert "has no effect" in refusal("bucket", "/dev/fd/3", "--fsname", "x")
    assert "-o noexec has no effect" in refusal("bucket", "/dev/fd/3", "-o", "noexec")
    assert "--fsname is empty" in refusal("bucket", "/mnt", "--fsname", "")
    config = settings.make_config("bucket", "/dev/fd/3", **config_options())
    assert config.mount.fsname is None


def config_options() -> dict[str, Any]:
    """Return the options as click passes them if none is given."""
    context = cli.main.make_context("mount-s3", ["bucket", "/mnt"])
    others = ("bucket", "directory", "check", "as_json")
    return {name: value for name, value in context.params.items() if name not in others}
