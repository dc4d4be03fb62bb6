"""Files that may be opened without the interpreter.

Python prepares a file that it would open without a request: one version of an object, whose bytes a
source has (`_lane`), such as a small file in the data cache. An open of it then gets a handle that
reads from the source (`_handles`).

A prepared file is valid for a limited time, and only until anything changes. Each change in the
bucket or in what is known of it begins a new generation (`forget_all`), and only files of the
present one are opened. A file is prepared for the generation that was there before Python looked
whether it may be opened. So a change in between counts. A writer is registered before it looks for
readers, and the look begins a new generation: either it finds the reader, or the reader comes to
Python, and finds the writer.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport timespec

from mountpoint.native._blocks cimport Block, release_block
from mountpoint.native._handles cimport (
    NativeHandles,
    add_handle,
    reserve,
    unreserve,
    version_t,
)
from mountpoint.native._lane cimport LaneSource, release_source, source_t
from mountpoint.native._numbers cimport has_place, put, take_numbers
from mountpoint.native._sync cimport (
    atomic_add,
    init_cond,
    now_s,
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_signal,
    pthread_cond_timedwait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    time_of,
)

cdef enum:
    # About 1 KB each.
    C_MAX_FILES = 8192
    MAX_WOKEN = 64
    MAX_FIRST = 256

# A wait takes no time that does not fit into its clock.
cdef double MAX_WAIT_S = 3600.0

MAX_FILES = C_MAX_FILES


# --- prepared files (mutex held) ---

cdef prepared_t* find(table_t* table, unsigned long long inode) noexcept nogil:
    cdef prepared_t* file = table.prepared[inode % FILE_BUCKETS]
    while file != NULL and file.version.inode != inode:
        file = file.next
    return file


cdef bint is_valid(const table_t* table, const prepared_t* file, double at_s) noexcept nogil:
    return file != NULL and file.generation == table.generation and at_s < file.until_s


cdef prepared_t* insert(table_t* table, prepared_t* file) noexcept nogil:
    """Add a file; return the one whose place it takes, which the caller frees, or NULL."""
    cdef prepared_t* before = find(table, file.version.inode)
    if before == NULL and table.count == C_MAX_FILES:
        before = table.oldest
    if before != NULL:
        remove(table, before)
    file.next = table.prepared[file.version.inode % FILE_BUCKETS]
    table.prepared[file.version.inode % FILE_BUCKETS] = file
    file.newer = NULL
    file.older = table.newest
    if table.newest != NULL:
        table.newest.newer = file
    else:
        table.oldest = file
    table.newest = file
    table.count += 1
    return before


cdef void remove(table_t* table, prepared_t* file) noexcept nogil:
    """Remove a file; the caller frees it."""
    cdef prepared_t** link = &table.prepared[file.version.inode % FILE_BUCKETS]
    while link[0] != file:
        link = &link[0].next
    link[0] = file.next
    if file.older != NULL:
        file.older.newer = file.newer
    else:
        table.oldest = file.newer
    if file.newer != NULL:
        file.newer.older = file.older
    else:
        table.newest = file.older
    table.count -= 1


cdef void free_prepared(prepared_t* file) noexcept nogil:
    """Free a file that was removed, without the mutex: its source may need the interpreter."""
    release_source(file.version.source)
    free(file.version.fields)
    free(file)


cdef void note_woken(table_t* table, unsigned long long inode) noexcept nogil:
    """Queue an inode, unless the queue is full, and wake the thread that prepares."""
    put(&table.woken_for, inode)
    pthread_cond_signal(&table.changed)


# --- opens ---

cdef bint is_prepared(table_t* table, unsigned long long inode, double at_s) noexcept nogil:
    """Whether a file may be opened at this time of the monotonic clock."""
    cdef bint found
    if table.count == 0:  # the usual case; a look without the mutex is enough
        return False
    pthread_mutex_lock(&table.mutex)
    found = is_valid(table, find(table, inode), at_s)
    pthread_mutex_unlock(&table.mutex)
    return found


cdef unsigned long long open_prepared(
    table_t* table, unsigned long long inode, unsigned long long request,
    unsigned long long thread, double at_s
) noexcept nogil:
    """Open a file for a thread; return its handle, or 0 if Python must open it.

    `request` is the number of the kernel's request, and `at_s` the time of the monotonic clock.
    """
    cdef prepared_t* file
    cdef prepared_t fetched
    cdef unsigned long long handle = 0
    fetched.version.source = NULL
    pthread_mutex_lock(&table.mutex)
    file = find(table, inode)
    if is_valid(table, file, at_s) and not table.paused and (
        file.used or has_place(&table.first)
    ):
        if file.late_s == 0:
            handle = add_handle(table.handles, &file.version, NULL, request)
        elif reserve(table.handles, file.version.size_bytes):
            fetched = file[0]
            atomic_add(&fetched.version.source.refs, 1)
    if handle != 0:
        note_open(table, file)
    pthread_mutex_unlock(&table.mutex)
    if fetched.version.source != NULL:
        handle = open_fetched(table, &fetched, request, thread)
        release_source(fetched.version.source)
    return handle


cdef unsigned long long open_fetched(
    table_t* table, const prepared_t* fetched, unsigned long long request,
    unsigned long long thread
) noexcept nogil:
    """Fetch a file, and open it; 0 if that failed, or anything has changed meanwhile.

    `fetched` is a copy of the prepared file. The caller has reserved room for its bytes.
    """
    cdef const version_t* version = &fetched.version
    cdef source_t* source = version.source
    cdef Block* block = source.fetch(source, 0, version.size_bytes, thread, fetched.late_s)
    cdef prepared_t* file
    cdef unsigned long long handle = 0
    pthread_mutex_lock(&table.mutex)
    file = find(table, version.inode)
    if file != NULL and file.version.source != source:
        file = NULL
    if file != NULL and block != NULL and file.generation == table.generation and (
        has_place(&table.first)
    ):
        handle = add_handle(table.handles, &file.version, block, request)
    if handle != 0:
        note_open(table, file)
    else:
        unreserve(table.handles, version.size_bytes)
        table.failed += block == NULL
    if file != NULL:
        remove(table, file)
    pthread_mutex_unlock(&table.mutex)
    if block != NULL:
        release_block(block)
    if file != NULL:
        free_prepared(file)
    return handle


cdef void note_open(table_t* table, prepared_t* file) noexcept nogil:
    """Note an open of a file (mutex held); if it is the first one, there is room in `first`."""
    table.opens += 1
    if not file.used:
        file.used = True
        put(&table.first, file.version.inode)
        table.used += 1
    if file.wakes:
        note_woken(table, file.version.inode)


cdef class PreparedFiles:
    """The prepared files of a mount. Thread-safe. Those that are opened are in `handles`."""

    def __cinit__(self, NativeHandles handles not None):
        memset(&self.table, 0, sizeof(table_t))
        pthread_mutex_init(&self.table.mutex, NULL)
        init_cond(&self.table.changed)
        self.handles = handles
        self.table.handles = &handles.table
        self.table.woken_for.limit = MAX_WOKEN
        self.table.first.limit = MAX_FIRST

    def __dealloc__(self):
        cdef prepared_t* oldest
        while self.table.oldest != NULL:
            oldest = self.table.oldest
            remove(&self.table, oldest)
            free_prepared(oldest)
        pthread_cond_destroy(&self.table.changed)
        pthread_mutex_destroy(&self.table.mutex)

    # --- prepared files ---

    @property
    def generation(self):
        """The present generation: look at it before anything else, and pass it to `add`."""
        return self.table.generation

    @property
    def used(self):
        """How many prepared files have been opened so far."""
        return self.table.used

    @property
    def opens(self):
        """How many opens there have been so far."""
        return self.table.opens

    @property
    def failed(self):
        """How many opens could not fetch their file so far."""
        return self.table.failed

    def __len__(self):
        return self.table.count

    def add(
        self, unsigned long long inode, unsigned long long generation, double until_s,
        long long size_bytes, LaneSource source not None, bytes fields not None, *,
        bint wakes=False, double late_s=0,
    ):
        """Let a file be opened until `until_s` (monotonic clock); return whether it can be.

        `fields` are those of its line in the log, in JSON, from the opening brace up to the number of
        the request. `wakes`: each open wakes the thread in `wait`. With `late_s` it can be opened
        once: that fetches all of it, within so many seconds, and so asks whether it is the newest
        version.
        """
        cdef prepared_t* file
        cdef prepared_t* before = NULL
        cdef bint added
        if source.source == NULL or size_bytes <= 0:
            raise ValueError("not a source of bytes")
        file = <prepared_t*>malloc(sizeof(prepared_t))
        if file == NULL:
            return False
        memset(file, 0, sizeof(prepared_t))
        file.version.fields = <char*>malloc(len(fields) + 1)
        if file.version.fields == NULL:
            free(file)
            return False
        memcpy(file.version.fields, <const char*>fields, len(fields))
        file.version.fields_size = len(fields)
        file.version.inode = inode
        file.version.size_bytes = size_bytes
        file.version.source = source.source
        file.generation = generation
        file.until_s = until_s
        file.wakes = wakes
        file.late_s = late_s
        atomic_add(&source.source.refs, 1)
        pthread_mutex_lock(&self.table.mutex)
        added = generation == self.table.generation
        if added:
            before = insert(&self.table, file)
        else:
            before = file
        pthread_mutex_unlock(&self.table.mutex)
        if before != NULL:
            free_prepared(before)
        return added

    def has(self, unsigned long long inode, double at_s):
        """See `is_prepared`."""
        return is_prepared(&self.table, inode, at_s)

    def forget(self, unsigned long long inode):
        """Let a file no longer be opened: its inode is gone, and its number may become another's."""
        cdef prepared_t* file
        if self.table.count == 0:  # the usual case; a look without the mutex is enough
            return
        pthread_mutex_lock(&self.table.mutex)
        file = find(&self.table, inode)
        if file != NULL:
            remove(&self.table, file)
        pthread_mutex_unlock(&self.table.mutex)
        if file != NULL:
            free_prepared(file)

    def forget_all(self):
        """Begin a new generation: no file that was prepared so far is opened any more."""
        pthread_mutex_lock(&self.table.mutex)
        self.table.generation += 1
        pthread_mutex_unlock(&self.table.mutex)

    @property
    def fetches(self):
        """Whether opens may fetch files."""
        return self.table.handles.max_held_bytes > 0

    def pause(self, bint yes):
        """Let no file be opened, or let files be opened again."""
        self.table.paused = yes

    # --- the thread that prepares ---

    def wake(self, unsigned long long inode):
        """Wake the thread in `wait`: files that follow this one are to be prepared."""
        pthread_mutex_lock(&self.table.mutex)
        note_woken(&self.table, inode)
        pthread_mutex_unlock(&self.table.mutex)

    def wait(self, double timeout_s):
        """Wait for inodes after which files are to be prepared, and return them; fewer at the end.

        Releases the GIL.
        """
        cdef double until_s = now_s() + min(timeout_s, MAX_WAIT_S)
        with nogil:
            pthread_mutex_lock(&self.table.mutex)
            while self.table.woken_for.count == 0 and not self.table.ended and now_s() < until_s:
                wait_until(&self.table, until_s)
            pthread_mutex_unlock(&self.table.mutex)
        return take_numbers(&self.table.woken_for, &self.table.mutex)

    def end(self):
        """Let `wait` return at once from now on."""
        pthread_mutex_lock(&self.table.mutex)
        self.table.ended = True
        pthread_cond_broadcast(&self.table.changed)
        pthread_mutex_unlock(&self.table.mutex)

    # --- opens ---

    def open(
        self, unsigned long long inode, unsigned long long request, double at_s,
        unsigned long long thread=0,
    ):
        """See `open_prepared`, which the channel calls. Releases the GIL."""
        cdef unsigned long long handle
        with nogil:
            handle = open_prepared(&self.table, inode, request, thread, at_s)
        return handle

    @property
    def has_opened(self):
        """Whether `take_opened` would return any."""
        return self.table.first.count > 0

    def take_opened(self):
        """Return the prepared files that were opened for the first time since the last call.

        Once there are many, Python has to open files, so that it learns of them.
        """
        return take_numbers(&self.table.first, &self.table.mutex)


cdef void wait_until(table_t* table, double until_s) noexcept nogil:
    """Wait for `changed` (mutex held)."""
    cdef timespec moment = time_of(until_s)
    pthread_cond_timedwait(&table.changed, &table.mutex, &moment)
