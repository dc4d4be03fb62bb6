# A log in mapped memory, which threads append to without the interpreter.
#
# Ownership: a `journal_t` owns its mapping. It is shared by its `Journal`, and by what appends to it
# without the interpreter. Each owns one reference.

from mountpoint.native._sync cimport pthread_mutex_t

cdef struct journal_t:
    int refs                    # atomic
    pthread_mutex_t mutex       # guards all that follows
    char* memory                # NULL: nothing can be appended
    size_t size
    size_t end

cdef bint journal_append(journal_t* journal, const char* line, size_t size) noexcept nogil
cdef void hold_journal(journal_t* journal) noexcept nogil
cdef void release_journal(journal_t* journal) noexcept nogil


cdef class Journal:
    cdef journal_t* journal
