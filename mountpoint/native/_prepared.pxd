# Files that can be opened and closed without the interpreter.
#
# Ownership: a `prepared_t` owns a reference to the source of its bytes. An `opened_t` owns one to
# its lane; the registry of lanes has another one. The table owns both, and a reference to the log.

from mountpoint.native._arrivals cimport shared_int
from mountpoint.native._journal cimport journal_t
from mountpoint.native._lane cimport lane_t, shared_bytes, source_t
from mountpoint.native._sync cimport pthread_cond_t, pthread_mutex_t

cdef enum:
    BUCKETS = 4096
    MAX_NUMBERS = 256

# Inodes or handles that Python is to learn of: at most `limit`.
cdef struct numbers_t:
    unsigned long long numbers[MAX_NUMBERS]
    shared_int count
    int limit

# A file that may be opened: one version of an object, whose bytes the source has.
cdef struct prepared_t:
    unsigned long long inode
    unsigned long long generation
    double until_s              # monotonic clock
    long long size_bytes
    source_t* source
    bint fetches                # each open fetches the whole object; then it is prepared no more
    double late_s               # after so many seconds Python opens it
    char* fields                # what the log says of it, up to the number of the request
    size_t fields_size
    bint used                   # it has been opened
    bint wakes                  # when it is opened, the thread that prepares is woken
    prepared_t* next            # in its bucket
    prepared_t* older           # by the time when they were added
    prepared_t* newer

# A file that was opened so.
cdef struct opened_t:
    unsigned long long handle
    unsigned long long inode
    lane_t* lane
    long long held_bytes        # what its open has fetched
    char* line                  # of the log; NULL: none
    size_t line_size
    opened_t* next              # in its bucket

cdef struct table_t:
    # Guards all that follows, but `journal`. What is shared_... is also read without it.
    pthread_mutex_t mutex
    pthread_cond_t changed      # `woken_for`, or `ended`
    journal_t* journal          # NULL: nothing is logged
    unsigned long long generation
    unsigned long long next_handle
    prepared_t* prepared[BUCKETS]
    prepared_t* oldest
    prepared_t* newest
    shared_int count            # of prepared files
    opened_t* opened[BUCKETS]
    shared_int opened_count
    shared_bytes used           # prepared files that were opened
    shared_bytes opens
    shared_bytes failed         # opens whose fetch has failed
    long long read_bytes        # by those that were closed or taken, and not told
    numbers_t woken_for         # inodes after which others are to be prepared
    bint ended
    long long held_bytes        # what the opens of files that are open have fetched
    long long max_held_bytes
    numbers_t first             # inodes that were opened, and Python does not know
    numbers_t unknown           # handles that were not answered, for Python to close
    shared_int paused           # no file is opened

cdef bint is_prepared(table_t* table, unsigned long long inode, double at_s) noexcept nogil
cdef unsigned long long open_prepared(
    table_t* table, unsigned long long inode, unsigned long long request,
    unsigned long long thread, double at_s
) noexcept nogil
cdef bint close_prepared(table_t* table, unsigned long long handle) noexcept nogil
cdef void note_unknown(table_t* table, unsigned long long handle) noexcept nogil
cdef bint has_opened(table_t* table, unsigned long long handle) noexcept nogil


cdef class PreparedFiles:
    cdef table_t table
    cdef list _take(self, numbers_t* queue)
