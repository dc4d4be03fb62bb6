"""A log in mapped memory, which threads append to without the interpreter.

A line is there if the process is killed right after it was appended: the memory is a file's, which
another process has open, too.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.stat cimport fstat, struct_stat

from mountpoint.native._sync cimport (
    atomic_add,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)


cdef bint journal_append(journal_t* journal, const char* line, size_t size) noexcept nogil:
    """Append a line; False if there is no room for it."""
    cdef bint fits
    pthread_mutex_lock(&journal.mutex)
    fits = journal.memory != NULL and size <= journal.size - journal.end
    if fits:
        memcpy(journal.memory + journal.end, line, size)
        journal.end += size
    pthread_mutex_unlock(&journal.mutex)
    return fits


cdef void hold_journal(journal_t* journal) noexcept nogil:
    atomic_add(&journal.refs, 1)


cdef void release_journal(journal_t* journal) noexcept nogil:
    """Give one reference back; the last one unmaps the memory."""
    if atomic_add(&journal.refs, -1) > 0:
        return
    unmap(journal)
    pthread_mutex_destroy(&journal.mutex)
    free(journal)


cdef void unmap(journal_t* journal) noexcept nogil:
    if journal.memory != NULL:
        munmap(journal.memory, journal.size)
        journal.memory = NULL


cdef class Journal:
    """The log, for Python. It needs memory (`map`) before anything can be appended."""

    def __cinit__(self):
        self.journal = <journal_t*>malloc(sizeof(journal_t))
        if self.journal == NULL:
            raise MemoryError()
        memset(self.journal, 0, sizeof(journal_t))
        self.journal.refs = 1
        pthread_mutex_init(&self.journal.mutex, NULL)

    def __dealloc__(self):
        if self.journal != NULL:
            release_journal(self.journal)

    def map(self, int file, size_t end):
        """Append to this file from `end` on, up to its size. Raises OSError if it cannot be mapped."""
        cdef struct_stat found
        cdef void* memory = MAP_FAILED
        if fstat(file, &found) == 0 and <size_t>found.st_size >= end:
            memory = mmap(NULL, found.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
        if memory == MAP_FAILED:
            raise OSError("the log cannot be mapped")
        pthread_mutex_lock(&self.journal.mutex)
        unmap(self.journal)
        self.journal.memory = <char*>memory
        self.journal.size = found.st_size
        self.journal.end = end
        pthread_mutex_unlock(&self.journal.mutex)

    def append(self, bytes line not None):
        """Append a line; return False if there is no room for it."""
        return journal_append(self.journal, line, len(line))

    def seal(self):
        """Let nothing be appended until there is other memory."""
        pthread_mutex_lock(&self.journal.mutex)
        unmap(self.journal)
        pthread_mutex_unlock(&self.journal.mutex)
