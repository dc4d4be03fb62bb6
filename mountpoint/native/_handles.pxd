# Handles of files that were opened without the interpreter.
#
# Ownership: a `handle_t` owns a reference to its lane; the registry of lanes has another one. The
# table owns its handles, and a reference to the log. A `version_t` belongs to the caller, who owns a
# reference to its source.

from mountpoint.native._arrivals cimport shared_int
from mountpoint.native._blocks cimport Block
from mountpoint.native._journal cimport journal_t
from mountpoint.native._lane cimport lane_t, source_t
from mountpoint.native._numbers cimport numbers_t
from mountpoint.native._sync cimport pthread_mutex_t

cdef enum:
    BUCKETS = 4096

# What is opened: one version of an object, whose bytes the source has.
cdef struct version_t:
    unsigned long long inode
    long long size_bytes
    source_t* source
    char* fields                # what the log says of it, up to the number of the request
    size_t fields_size

cdef struct handle_t:
    unsigned long long number
    unsigned long long inode
    lane_t* lane
    long long held_bytes        # what its open has fetched
    char* line                  # of the log; NULL: none
    size_t line_size
    handle_t* next              # in its bucket

cdef struct handles_t:
    # Guards all that follows, but `journal`. What is shared_... is also read without it.
    pthread_mutex_t mutex
    journal_t* journal          # NULL: nothing is logged
    unsigned long long next_number
    handle_t* buckets[BUCKETS]
    shared_int count
    long long read_bytes        # by those that were closed or taken, and not told
    long long held_bytes        # what their opens have fetched, or are fetching
    long long max_held_bytes
    numbers_t unknown           # handles that were not answered, for Python to close

cdef bint reserve(handles_t* handles, long long size_bytes) noexcept nogil
cdef void unreserve(handles_t* handles, long long size_bytes) noexcept nogil
cdef unsigned long long add_handle(
    handles_t* handles, const version_t* version, Block* block, unsigned long long request
) noexcept nogil
cdef bint has_handle(handles_t* handles, unsigned long long number) noexcept nogil
cdef bint close_handle(handles_t* handles, unsigned long long number) noexcept nogil
cdef void note_unknown(handles_t* handles, unsigned long long number) noexcept nogil


cdef class NativeHandles:
    cdef handles_t table
