"""`docs/configuration.md` lists every option, and every option has a test of its effect."""

import ast
import functools
import re
from pathlib import Path

import pytest

import mountpoint
from tools import options_table, reference_options

ROOT = Path(__file__).parents[3]
HOW = f"run {options_table.REGENERATE}"

M, U = "tests/mount", "tests/unit"
NEW = f"{M}/test_option_effects.py::test_new_objects"
IDS = f"{M}/test_names.py::test_options_for_attributes"

#: The test of each option's effect; on a mount, if the effect shows there.
EFFECTS = {
    "--prefix": f"{M}/test_names.py::test_prefix",
    "--region": f"{M}/test_bad_input.py::test_wrong_region",
    "--endpoint-url": f"{M}/test_requests.py::test_every_request_is_signed",
    # Hosts of AWS, which no test contacts.
    "--force-path-style": f"{U}/s3/aws/test_endpoint.py::test_custom_endpoints",
    "--dual-stack": f"{U}/s3/aws/test_endpoint.py::test_plain_endpoints",
    "--transfer-acceleration": f"{U}/s3/aws/test_endpoint.py::test_plain_endpoints",
    "--requester-pays": f"{M}/test_requests.py::test_requester_pays",
    "--expected-bucket-owner": NEW,
    "--bucket-type": f"{M}/test_option_effects.py::test_directory",
    "--no-sign-request": f"{M}/test_requests.py::test_unsigned",
    "--profile": f"{M}/test_requests.py::test_shared_files",
    "--read-only": f"{M}/test_names.py::test_read_only",
    "--auto-unmount": f"{M}/test_life.py::test_auto_unmount",
    "--keep-alive": f"{M}/test_keep_alive.py::test_readers_notice_nothing",
    "--no-keep-alive": f"{M}/test_dead_mount.py::test_the_next_mount_removes_it",
    "--allow-root": f"{M}/test_option_effects.py::test_allow_root",
    "--allow-other": f"{M}/test_life.py::test_other_users",
    "--uid": IDS,
    "--gid": IDS,
    "--dir-mode": IDS,
    "--file-mode": IDS,
    "--inode32": f"{M}/test_32_bits.py::test_calls",
    "--fsname": f"{M}/test_life.py::test_source",
    "-o": f"{M}/test_life.py::test_fstab",
    "--foreground": f"{M}/test_life.py::test_foreground",
    "--otlp-endpoint": f"{M}/test_otlp.py::test_all_that_was_done_arrives",
    "--otlp-export-interval": f"{M}/test_otlp.py::test_all_that_was_done_arrives",
    "--prometheus": f"{M}/test_prometheus.py::test_a_scrape",
    "--log-metrics": f"{M}/test_log_metrics.py::test_log_lines_have_the_changes",
    "--check": f"{M}/test_check.py::test_all_is_well",
    "--json": f"{M}/test_check.py::test_all_is_well",
    "--allow-delete": f"{M}/test_write.py::test_directories",
    "--allow-overwrite": f"{M}/test_write.py::test_overwriting",
    "--allow-rename": f"{M}/test_rename.py::test_mv",
    "--allow-append": f"{M}/test_rename.py::test_appending",
    # None of the servers has directory buckets.
    "--incremental-upload": f"{U}/fs/writes/test_directory_bucket_files.py::test_a_new_file_grows",
    "--keep-directories": f"{M}/test_rename.py::test_markers",
    "--staged-writes": f"{M}/test_staged.py::test_any_order",
    "--cache": f"{M}/test_cache.py::test_a_restart_keeps_it",
    "--max-cache-size": f"{M}/test_cache.py::test_the_limit",
    "--cache-writes": f"{M}/test_cache.py::test_what_is_written_is_kept",
    "--cache-xz": f"{M}/test_cache_shared.py::test_two_hosts",
    "--staged-limit": f"{M}/test_staged.py::test_no_room",
    "--attributes": f"{M}/test_attributes.py::test_attributes_without_keep",
    "--maximum-throughput-gbps": f"{U}/s3/aws/test_ec2.py::test_on_the_way_to_a_mount",
    "--max-threads": f"{M}/test_option_effects.py::test_threads",
    "--part-size": f"{M}/test_option_effects.py::test_reading_in_parts",
    "--read-part-size": f"{M}/test_option_effects.py::test_reading_in_parts",
    "--write-part-size": f"{M}/test_option_effects.py::test_writing_in_parts",
    "--upload-checksums": NEW,
    "--memory-target": f"{M}/test_option_effects.py::test_memory",
    "--read-timeout": f"{M}/test_faults.py::test_silence_without_end",
    "--read-checksums": f"{M}/test_checksums.py::test_turned_off",
    "--ca-bundle": f"{M}/test_tls.py::test_trusted",
    "--bind": f"{M}/test_client_options.py::test_bound_to_the_wrong_interface",
    "--user-agent-prefix": f"{M}/test_client_options.py::test_user_agent",
    "--no-channel": f"{M}/test_channel.py::test_both_ways",
    "--no-native": f"{M}/test_data_planes.py::test_every_way_of_reading",
    "--storage-class": NEW,
    "--sse": NEW,
    "--sse-kms-key-id": NEW,
    "--infer-content-type": NEW,
    "--metadata-ttl": f"{M}/test_ttl.py::test_one_file_again_and_again",
    "--negative-metadata-ttl": f"{M}/test_ttl.py::test_absent_is_not_believed",
    "--log-directory": f"{M}/test_counters.py::test_counters",
    "--debug": f"{M}/test_option_effects.py::test_debug_options",
    "--debug-crt": f"{M}/test_option_effects.py::test_debug_options",
    "--no-log": f"{M}/test_option_effects.py::test_nothing_is_logged",
    "--version": f"{U}/cli/test_main.py::test_version",
    "--help": f"{U}/cli/test_main.py::test_help_is_grouped_and_fits",
}


def names() -> list[str]:
    """Return the options of the program, including hidden ones."""
    return [options_table.long_name(option) for option in options_table.options(hidden=True)]


@functools.cache
def functions(path: Path) -> set[str]:
    """Return the functions in a file."""
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


# --- effects ---


@pytest.mark.parametrize("name", names())
def test_every_option_has_a_test(name: str) -> None:
    """A new option needs a row with the test of its effect."""
    assert name in EFFECTS, f"{name} has no test of its effect: write one, and name it in EFFECTS"
    path, _, test = EFFECTS[name].partition("::")
    assert test in functions(ROOT / path), f"there is no test {EFFECTS[name]}"


def test_no_effect_is_of_nothing() -> None:
    """No row is for a removed option."""
    assert sorted(set(EFFECTS) - set(names())) == []


# --- the document ---


def test_the_document_is_current() -> None:
    """The tables match the program."""
    text = options_table.DOCUMENT.read_text()
    assert options_table.updated(text) == text, f"docs/configuration.md is old: {HOW}"


@pytest.mark.parametrize("known", reference_options.OPTIONS, ids=lambda known: known.name)
def test_the_references_options(known: reference_options.Known) -> None:
    """Each of AWS's options exists, with the same default, or the table gives a reason."""
    ours = {options_table.long_name(option): option for option in options_table.options()}
    assert known.name in ours
    if not known.differs:
        assert options_table.described(ours[known.name])[1] == known.default


@functools.cache
def program() -> str:
    """Return the source of the program."""
    return "\n".join(path.read_text() for path in Path(mountpoint.__file__).parent.rglob("*.py"))


#: Variables that libraries read: botocore and the AWS Common Runtime.
BY_LIBRARIES = {"AWS_PROFILE", "AWS_EC2_METADATA_DISABLED", "HTTPS_PROXY", "NO_PROXY"}


#: WSGI's name in a request to /metrics.
OF_REQUESTS = {"PATH_INFO"}

#: The terminal's type, which terminals set and not users.
OF_TERMINALS = {"TERM"}


def test_variables() -> None:
    """The program reads the variables in the tables, and the document has those that it reads."""
    options = {name for each in options_table.ENVIRONMENT.values() for name in each}
    told = options | set(options_table.ONLY_VARIABLES)
    assert sorted(name for name in told - BY_LIBRARIES if f'"{name}"' not in program()) == []
    read = re.findall(r'environ(?:\.get\(|\[)"([A-Z_]+)"', program())
    assert sorted(set(read) - told - OF_REQUESTS - OF_TERMINALS) == []
    assert set(options_table.ENVIRONMENT) <= set(names())


def test_cells() -> None:
    """A bar in a value does not end its cell, and every row is as wide as its head."""
    rows = [line for line in options_table.tables().splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert widths == {4, 6}
