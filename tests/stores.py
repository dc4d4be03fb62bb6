"""The stores that are tested, their answers to S3 requests, and what a mount cannot do with them.

tests/server/test_stores.py compares `ANSWERS` with the stores, and tests/mount/test_stores.py has a
test for each of `BEHAVIOURS` and compares the failures with `LACKS`. Both fail if a store becomes
worse, and if it becomes better. The tables of docs/stores.md come from here:

    python -m tests.stores

writes them; tests/unit/test_docs.py compares them.
"""

from dataclasses import dataclass
from pathlib import Path

from tests.generated_tables import table, with_tables
from tools.servers import MinIO, Ministack, Moto, SeaweedFS, Server, VersityGW

DOCUMENT = Path(__file__).parent.parent / "docs" / "stores.md"


@dataclass(frozen=True)
class Tried:
    """A store under test. The version is that of constraints.txt or tools/build-stores."""

    server: type[Server]
    title: str


STORES = {
    "minio": Tried(MinIO, "MinIO 2026-02-12"),
    "versitygw": Tried(VersityGW, "versitygw 1.8.0"),
    "seaweedfs": Tried(SeaweedFS, "SeaweedFS 4.48"),
    "ministack": Tried(Ministack, "ministack 1.5.33"),
    "moto": Tried(Moto, "moto 5.2.5"),
}

YES, NO, IGNORED = "yes", "no", "ignored"

#: The questions, and the answer of each store. tests/server/test_stores.py explains the words.
QUESTIONS = {
    "signatures": "a wrong secret key is refused",
    "pages_by_token": "ListObjectsV2 in pages",
    "starts_after": "`start-after`",
    "encodes": "`encoding-type=url`",
    "order": "keys are listed",
    "virtual_hosts": "bucket in the host's name, as it is started here",
    "get_if_match": "GetObject with `If-Match`",
    "put_if_none_match": "PutObject with `If-None-Match: *`",
    "put_if_match": "PutObject with `If-Match`",
    "complete_if_none_match": "CompleteMultipartUpload with `If-None-Match: *`",
    "complete_if_match": "CompleteMultipartUpload with `If-Match`",
    "copy_if_none_match": "CopyObject with `If-None-Match: *`",
    "copy_if_match": "CopyObject with `If-Match`",
    "copy_source_if_match": "CopyObject with `x-amz-copy-source-if-match`",
    "part_source_if_match": "UploadPartCopy with `x-amz-copy-source-if-match`",
    "delete_if_match": "DeleteObject with `If-Match`",
    "compares": "a body is compared with its CRC-32C",
    "tells": "PutObject answers with the CRC-32C",
    "sends": "GetObject sends the CRC-32C of what was put",
    "composes": "an object of parts has the CRC-32C of its parts'",
}
ANSWERS = {
    question: dict(zip(STORES, words, strict=True))
    for question, words in {
        "signatures": (YES, YES, YES, IGNORED, IGNORED),
        "pages_by_token": (YES, YES, YES, YES, YES),
        "starts_after": (YES, YES, YES, YES, YES),
        "encodes": (YES, IGNORED, YES, YES, YES),
        "order": ("by bytes", "by bytes", "by folders", "by bytes", "by bytes"),
        "virtual_hosts": (NO, NO, NO, YES, YES),
        "get_if_match": (YES, YES, YES, YES, YES),
        "put_if_none_match": (YES, YES, YES, YES, YES),
        "put_if_match": (YES, YES, YES, YES, YES),
        "complete_if_none_match": (YES, YES, YES, YES, YES),
        "complete_if_match": (YES, YES, YES, YES, IGNORED),
        "copy_if_none_match": (IGNORED, IGNORED, YES, IGNORED, IGNORED),
        "copy_if_match": (IGNORED, IGNORED, YES, IGNORED, IGNORED),
        "copy_source_if_match": (YES, YES, YES, YES, IGNORED),
        "part_source_if_match": (YES, YES, YES, YES, IGNORED),
        "delete_if_match": (IGNORED, YES, YES, YES, YES),
        "compares": (YES, YES, YES, YES, IGNORED),
        "tells": (YES, YES, YES, NO, NO),
        "sends": (YES, YES, YES, YES, NO),
        "composes": (YES, YES, YES, YES, "another"),
    }.items()
}

#: The behaviours to test on a mount: the name of a test, and the text of its row.
BEHAVIOURS = {
    "nested_directories": "list nested directories, and nothing else",
    "many_names": "list a directory of 1,100 names, in two pages",
    "odd_names": "names with spaces, unicode, `%`, `+`, `&`, `?`, quotes: write, list, read",
    "control_characters": "names with control characters",
    "file_beside_directory": "objects `a` and `a/b` together: `a` is a directory",
    "read_whole": "read a file of 20 MiB completely, and small files",
    "read_ranges": "read ranges of it, in any order",
    "replaced_while_open": "replaced while it is read: the old bytes, then ESTALE, never mixed",
    "deleted_while_open": "deleted while it is read: the old bytes, then ENOENT or ESTALE",
    "write_small": "write small files (PutObject)",
    "write_large": "write files of several parts (multipart upload)",
    "created_by_two": "two create one file: the second gets EEXIST, and the first stays",
    "overwrite": "overwrite files",
    "delete": "delete files and trees",
    "directories_vanish": "a directory removed with its contents is gone",
    "directories_kept": "keep empty directories (`--keep-directories`)",
    "rename": "rename files and directories",
    "append_small": "append to small files",
    "append_large": "append to large files; the store copies their bytes",
    "append_to_changed": "append to an object that was replaced: ESTALE, and the new one stays",
    "append_to_changed_large": "the same of a large file",
    "attributes_kept": "keep modes and times (`--attributes keep`)",
    "staged": "change a large file in the middle (`--staged-writes`)",
    "checksums_stored": "the store has the CRC-32C of written files",
    "checksums_verified": "reads are compared with it",
}

#: What a mount cannot do with a store, and what happens instead.
LACKS = {
    ("minio", "file_beside_directory"): "hides `a/b` where there is an object `a`",
    ("versitygw", "file_beside_directory"): "refuses it: keys are files and folders there",
    ("versitygw", "control_characters"): "lists them as U+FFFD: it does not encode keys",
    ("seaweedfs", "directories_vanish"): "lists folders that have become empty",
    ("moto", "control_characters"): "answers 404 to a key with a newline",
    ("moto", "checksums_stored"): "keeps none of what a PUT sends",
    ("moto", "checksums_verified"): "sends none",
}


# --- the document ---

#: The generated part of the document begins with this line.
BEGIN = "<!-- made by python -m tests.stores -->"


def tables() -> str:
    """Return the tables of the document."""
    answers = [[QUESTIONS[each], *ANSWERS[each].values()] for each in QUESTIONS]
    works = [
        [says, *(LACKS.get((store, behaviour), YES) for store in STORES)]
        for behaviour, says in BEHAVIOURS.items()
    ]
    titles = [store.title for store in STORES.values()]
    return "\n\n".join(
        [
            "### What the stores answer",
            table(["asked", *titles], answers),
            "### What works in a mount",
            table(["in a mount", *titles], works),
        ]
    )


def renewed(document: str) -> str:
    """Return the document with the current tables."""
    return with_tables(document, BEGIN, tables())


if __name__ == "__main__":
    DOCUMENT.write_text(renewed(DOCUMENT.read_text()))
