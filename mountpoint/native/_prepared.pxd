# Files that may be opened without the interpreter.
#
# Ownership: a `prepared_t` owns the fields of its version, and a reference to the source. The table
# owns the prepared files. Its handles belong to the `NativeHandles`, which `PreparedFiles` holds.

from mountpoint.native._arrivals cimport shared_int
from mountpoint.native._handles cimport NativeHandles, handles_t, version_t
from mountpoint.native._lane cimport shared_bytes
from mountpoint.native._numbers cimport numbers_t
from mountpoint.native._sync cimport pthread_cond_t, pthread_mutex_t

cdef enum:
    FILE_BUCKETS = 4096

# A file that may be opened.
cdef struct prepared_t:
    version_t version
    unsigned long long generation
    double until_s              # monotonic clock
    double late_s               # its open fetches the whole object, and then it is prepared no more;
                                # after so many seconds Python opens it. 0: nothing is fetched
    bint used                   # it has been opened
    bint wakes                  # when it is opened, the thread that prepares is woken
    prepared_t* next            # in its bucket
    prepared_t* older           # by the time when they were added
    prepared_t* newer

cdef struct table_t:
    # Guards all that follows, but `handles`. What is shared_... is also read without it.
    pthread_mutex_t mutex
    pthread_cond_t changed      # `woken_for`, or `ended`
    handles_t* handles          # of what was opened; its mutex is taken after this one
    unsigned long long generation
    prepared_t* prepared[FILE_BUCKETS]
    prepared_t* oldest
    prepared_t* newest
    shared_int count
    shared_bytes used           # prepared files that were opened
    shared_bytes opens
    shared_bytes failed         # opens whose fetch has failed
    numbers_t woken_for         # inodes after which others are to be prepared
    bint ended
    numbers_t first             # inodes that were opened, and Python does not know
    shared_int paused           # no file is opened

cdef bint is_prepared(table_t* table, unsigned long long inode, double at_s) noexcept nogil
cdef unsigned long long open_prepared(
    table_t* table, unsigned long long inode, unsigned long long request,
    unsigned long long thread, double at_s
) noexcept nogil


cdef class PreparedFiles:
    cdef table_t table
    cdef readonly NativeHandles handles
