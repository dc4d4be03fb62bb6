"""Set a staged file aside when its upload has failed and it is changed further.

A file that could not be uploaded must survive later writers. So before a change, the local file
is set aside with its journal and its description, and writing goes on in a copy with its own
journal. One of the two stays: the copy if it was uploaded, or if its upload was tried and failed;
the file set aside if the process that changed the copy is killed. A mount that dies in between
leaves both.
"""

from dataclasses import dataclass

from mountpoint.staging import journal, recovery
from mountpoint.staging.extents import Extents
from mountpoint.staging.journal import Journal, Subject
from mountpoint.staging.sparse_file import LocalFile


@dataclass(frozen=True, slots=True)
class SetAsideFile:
    """A local file that was set aside. Its owner's lock guards it."""

    local: LocalFile
    extents: Extents
    journal: Journal
    mtime_ns: int

    def write_description(self, subject: Subject) -> None:
        """Update its journal and description on the disk. Raises StagingFull, StagingFault."""
        self.journal.rewrite(subject, self.extents, fetched=True)
        journal.write_description(self.local.path, subject, self.extents)

    def keep(self, subject: Subject) -> None:
        """Leave it on the disk, and log where it is."""
        recovery.say_kept(self.local.path, subject, self.extents)
        self.journal.close()
        self.local.close(keep=True)

    def remove(self) -> None:
        """Remove it from the disk."""
        self.journal.remove()
        self.local.close(keep=False)
