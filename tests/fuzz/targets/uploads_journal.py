"""A journal of unfinished uploads."""

import os
from pathlib import Path

from mountpoint.upload.pending_journal import FoundJournal, _lines


def read(data: bytes) -> None:
    """Read it: it has the uploads of the lines that can be read."""
    file = os.memfd_create("journal")
    os.write(file, data)
    journal = FoundJournal(Path("/nowhere"), file, dead=True, lines=_lines(file))
    try:
        for upload_id, upload in journal.uploads.items():
            assert upload.upload_id == upload_id
            assert isinstance(upload.key, bytes)
        journal.strike(list(journal.uploads)[:1])
    finally:
        journal.close()
