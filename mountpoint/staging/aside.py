"""A staged file as it was when its upload failed, while it is changed further.

What could not be uploaded must outlive whoever opens the file next. So before it is changed the
local file is set aside as it is, with its journal and its description, and writing goes on in a
copy with a journal of its own. Which of the two stays is decided later: the copy when it has been
uploaded, or when that was tried in vain; the file that was set aside when the process that changed
the copy is killed. A mount that dies in between leaves both.
"""

from dataclasses import dataclass

from mountpoint.staging import journal
from mountpoint.staging import recovery as leftovers
from mountpoint.staging.extents import Extents
from mountpoint.staging.journal import Journal, Subject
from mountpoint.staging.sparse_file import LocalFile


@dataclass(frozen=True, slots=True)
class Aside:
    """What was set aside. Its owner's lock guards it."""

    local: LocalFile
    extents: Extents
    journal: Journal
    mtime_ns: int

    def describe(self, subject: Subject) -> None:
        """Note on the disk what it is to become now. Raises StagingFull, StagingFault."""
        self.journal.rewrite(subject, self.extents, fetched=True)
        journal.write_description(self.local.path, subject, self.extents)

    def keep(self, subject: Subject) -> None:
        """Leave it on the disk, and say so."""
        leftovers.say_kept(self.local.path, subject, self.extents)
        self.journal.close()
        self.local.close(keep=True)

    def remove(self) -> None:
        """Remove it from the disk."""
        self.journal.remove()
        self.local.close(keep=False)
