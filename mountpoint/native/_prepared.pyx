"""Files that are opened, read and closed without the interpreter.

Python prepares a file that it would open without a request: one version of an object, whose bytes a
source has (`_lane`), such as a small file in the data cache. An open of it then gets a handle, and
a lane that reads from the source. The handle has no object in Python. If one is needed, Python
takes the handle over (`take`), and it is like any other: to read what the source lacks, or because
a program is about to change the file.

A prepared file is valid for a limited time, and only until anything changes. Each change in the
bucket or in what is known of it begins a new generation (`forget_all`), and only files of the
present one are opened. A file is prepared for the generation that was there before Python looked
whether it may be opened. So a change in between counts. A writer is registered before it looks for
readers, and the look begins a new generation: either it finds the reader, or the reader comes to
Python, and finds the writer.

Each open and close is noted in the log of the session, by a line that Python has made.
"""

from collections import namedtuple

from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport timespec

from mountpoint.native._arrivals cimport READY, arrival_t, end, new_arrival, release_arrival
from mountpoint.native._blocks cimport Block, release_block, view_of
from mountpoint.native._journal cimport (
    Journal,
    hold_journal,
    journal_append,
    release_journal,
)
from mountpoint.native._lane cimport (
    MAX_PIECES,
    LaneSource,
    lane_allow_whole,
    lane_insert,
    lane_note,
    lane_read,
    lane_t,
    new_lane,
    piece_t,
    register_lane,
    release_lane,
    release_pieces,
    release_source,
    unregister_lane,
)
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
    MAX_UNKNOWN = 64
    MAX_FRAME_BYTES = 64  # of a line of the log, apart from its fields

# A wait takes no time that does not fit into its clock.
cdef double MAX_WAIT_S = 3600.0

# Python counts its own handles from 1.
cdef unsigned long long C_FIRST_HANDLE = 1ULL << 62

MAX_FILES = C_MAX_FILES
FIRST_HANDLE = C_FIRST_HANDLE

OpenedFile = namedtuple("OpenedFile", ["handle", "inode", "line"])


# --- what Python is to learn (mutex held) ---

cdef bint has_place(const numbers_t* queue) noexcept nogil:
    return queue.count < queue.limit


cdef void put(numbers_t* queue, unsigned long long number) noexcept nogil:
    """Queue a number, unless the queue is full."""
    if has_place(queue):
        queue.numbers[queue.count] = number
        queue.count += 1


# --- prepared files (mutex held) ---

cdef prepared_t* find(table_t* table, unsigned long long inode) noexcept nogil:
    cdef prepared_t* file = table.prepared[inode % BUCKETS]
    while file != NULL and file.inode != inode:
        file = file.next
    return file


cdef bint is_valid(const table_t* table, const prepared_t* file, double at_s) noexcept nogil:
    return file != NULL and file.generation == table.generation and at_s < file.until_s


cdef prepared_t* insert(table_t* table, prepared_t* file) noexcept nogil:
    """Add a file; return the one whose place it takes, which the caller frees, or NULL."""
    cdef prepared_t* before = find(table, file.inode)
    if before == NULL and table.count == C_MAX_FILES:
        before = table.oldest
    if before != NULL:
        remove(table, before)
    file.next = table.prepared[file.inode % BUCKETS]
    table.prepared[file.inode % BUCKETS] = file
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
    cdef prepared_t** link = &table.prepared[file.inode % BUCKETS]
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
    release_source(file.source)
    free(file.fields)
    free(file)


cdef void note_woken(table_t* table, unsigned long long inode) noexcept nogil:
    """Queue an inode, unless the queue is full, and wake the thread that prepares."""
    put(&table.woken_for, inode)
    pthread_cond_signal(&table.changed)


# --- opened files ---

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
    cdef opened_t* opened = NULL
    cdef unsigned long long handle = 0
    fetched.source = NULL
    pthread_mutex_lock(&table.mutex)
    file = find(table, inode)
    if is_valid(table, file, at_s) and not table.paused and (
        file.used or has_place(&table.first)
    ):
        if not file.fetches:
            opened = new_opened(table, file, NULL, request)
        elif has_room(table, file):
            fetched = file[0]
            atomic_add(&fetched.source.refs, 1)
            table.held_bytes += fetched.size_bytes
    if opened != NULL:
        handle = opened.handle
        table.opens += 1
        if not file.used:
            note_used(table, file)
        if file.wakes:
            note_woken(table, inode)
    pthread_mutex_unlock(&table.mutex)
    if fetched.source != NULL:
        handle = open_fetched(table, &fetched, request, thread)
        release_source(fetched.source)
    return handle


cdef bint has_room(const table_t* table, const prepared_t* file) noexcept nogil:
    """Whether there is room for what an open fetches (mutex held)."""
    return table.held_bytes + file.size_bytes <= table.max_held_bytes


cdef unsigned long long open_fetched(
    table_t* table, const prepared_t* fetched, unsigned long long request,
    unsigned long long thread
) noexcept nogil:
    """Fetch a file, and open it; 0 if that failed, or anything has changed meanwhile.

    `fetched` is a copy of the prepared file. The caller has reserved room for its bytes.
    """
    cdef source_t* source = fetched.source
    cdef Block* block = source.fetch(source, 0, fetched.size_bytes, thread, fetched.late_s)
    cdef prepared_t* file
    cdef opened_t* opened = NULL
    cdef unsigned long long handle = 0
    pthread_mutex_lock(&table.mutex)
    file = find(table, fetched.inode)
    if file != NULL and file.source != source:
        file = NULL
    if file != NULL and block != NULL and file.generation == table.generation and (
        has_place(&table.first)
    ):
        opened = new_opened(table, file, block, request)
    if opened != NULL:
        handle = opened.handle
        table.opens += 1
        note_used(table, file)
        if file.wakes:
            note_woken(table, file.inode)
    else:
        table.held_bytes -= fetched.size_bytes
        table.failed += block == NULL
    if file != NULL:
        remove(table, file)
    pthread_mutex_unlock(&table.mutex)
    if block != NULL:
        release_block(block)
    if file != NULL:
        free_prepared(file)
    return handle


cdef void note_used(table_t* table, prepared_t* file) noexcept nogil:
    """Note the first open of a file (mutex held); there is room in `first`."""
    file.used = True
    put(&table.first, file.inode)
    table.used += 1


cdef opened_t* new_opened(
    table_t* table, const prepared_t* file, Block* block, unsigned long long request
) noexcept nogil:
    """Add an open of a file (mutex held); NULL without memory, or room in the log.

    `block` has all its bytes; NULL: reads fetch them.
    """
    cdef opened_t* opened = <opened_t*>malloc(sizeof(opened_t))
    if opened == NULL:
        return NULL
    memset(opened, 0, sizeof(opened_t))
    opened.handle = table.next_handle
    opened.inode = file.inode
    opened.lane = new_lane(file.size_bytes)
    if opened.lane == NULL or not register_lane(opened.handle, opened.lane):
        free_opened(opened)
        return NULL
    if not log_opened(table, file, opened, request):
        unregister_lane(opened.handle)
        free_opened(opened)
        return NULL
    lane_allow_whole(opened.lane, file.source)
    if block != NULL:
        put_part(opened, block)
    opened.next = table.opened[opened.handle % BUCKETS]
    table.opened[opened.handle % BUCKETS] = opened
    table.opened_count += 1
    table.next_handle += 1
    return opened


cdef void put_part(opened_t* opened, Block* block) noexcept nogil:
    """Let reads find their bytes in a block, until all were read: the kernel has them then."""
    cdef arrival_t* arrival = new_arrival()
    opened.held_bytes = opened.lane.size_bytes
    if arrival == NULL:
        return  # they are fetched again
    end(arrival, READY, block)
    opened.lane.once = True
    lane_insert(opened.lane, 0, opened.lane.size_bytes, arrival)
    release_arrival(arrival)


cdef bint log_opened(
    table_t* table, const prepared_t* file, opened_t* opened, unsigned long long request
) noexcept nogil:
    """Make the line of the log for an open, and append it."""
    cdef size_t room = file.fields_size + MAX_FRAME_BYTES
    cdef int size
    if table.journal == NULL:
        return True
    opened.line = <char*>malloc(room)
    if opened.line == NULL:
        return False
    size = snprintf(opened.line, room, b'["handle",%llu,', opened.handle)
    memcpy(opened.line + size, file.fields, file.fields_size)
    size += <int>file.fields_size
    size += snprintf(opened.line + size, room - size, b"%llu}]\n", request)
    opened.line_size = size
    return journal_append(table.journal, opened.line, size)


cdef bint log_closed(table_t* table, unsigned long long handle) noexcept nogil:
    cdef char line[MAX_FRAME_BYTES]
    if table.journal == NULL:
        return True
    return journal_append(
        table.journal, line, snprintf(line, sizeof(line), b'["handle",%llu]\n', handle)
    )


cdef void free_opened(opened_t* opened) noexcept nogil:
    if opened.lane != NULL:
        release_lane(opened.lane)
    free(opened.line)
    free(opened)


cdef opened_t** link_to(table_t* table, unsigned long long handle) noexcept nogil:
    """Return what leads to an opened file (mutex held); it holds NULL if there is none."""
    cdef opened_t** link = &table.opened[handle % BUCKETS]
    while link[0] != NULL and link[0].handle != handle:
        link = &link[0].next
    return link


cdef opened_t** link_to_open(table_t* table, unsigned long long inode) noexcept nogil:
    """Return what leads to any open of a file (mutex held); NULL if it is not open."""
    cdef opened_t** link
    cdef int bucket
    for bucket in range(BUCKETS):
        link = &table.opened[bucket]
        while link[0] != NULL:
            if link[0].inode == inode:
                return link
            link = &link[0].next
    return NULL


cdef opened_t* unlink(table_t* table, opened_t** link) noexcept nogil:
    """Remove an opened file from the table, and return it (mutex held)."""
    cdef opened_t* opened = link[0]
    link[0] = opened.next
    table.opened_count -= 1
    table.read_bytes += opened.lane.read_bytes
    table.held_bytes -= opened.held_bytes
    return opened


cdef bint has_opened(table_t* table, unsigned long long handle) noexcept nogil:
    """Whether a handle is open, and Python has not taken it."""
    cdef bint found
    if handle < C_FIRST_HANDLE:
        return False
    pthread_mutex_lock(&table.mutex)
    found = link_to(table, handle)[0] != NULL
    pthread_mutex_unlock(&table.mutex)
    return found


cdef void note_unknown(table_t* table, unsigned long long handle) noexcept nogil:
    """Leave a handle to Python that the kernel does not know, so that it never closes it."""
    pthread_mutex_lock(&table.mutex)
    put(&table.unknown, handle)
    pthread_mutex_unlock(&table.mutex)


cdef bint close_prepared(table_t* table, unsigned long long handle) noexcept nogil:
    """Close a handle; False if Python must close it."""
    cdef opened_t** link
    cdef opened_t* opened = NULL
    pthread_mutex_lock(&table.mutex)
    link = link_to(table, handle)
    if link[0] != NULL and log_closed(table, handle):
        opened = unlink(table, link)
    pthread_mutex_unlock(&table.mutex)
    if opened == NULL:
        return False
    unregister_lane(handle)
    free_opened(opened)
    return True


cdef lane_t* lane_of(table_t* table, unsigned long long handle) noexcept nogil:
    """Return the lane of a handle, with a reference for the caller; NULL if it has none."""
    cdef opened_t* opened
    cdef lane_t* lane = NULL
    pthread_mutex_lock(&table.mutex)
    opened = link_to(table, handle)[0]
    if opened != NULL:
        lane = opened.lane
        atomic_add(&lane.refs, 1)
    pthread_mutex_unlock(&table.mutex)
    return lane


cdef class PreparedFiles:
    """The prepared files of a mount, and those of them that are open. Thread-safe.

    `journal` is the log of the session; None: nothing is logged. Opens may hold `max_held_bytes` of
    what they have fetched.
    """

    def __cinit__(self, Journal journal=None, long long max_held_bytes=0):
        memset(&self.table, 0, sizeof(table_t))
        pthread_mutex_init(&self.table.mutex, NULL)
        init_cond(&self.table.changed)
        self.table.next_handle = C_FIRST_HANDLE
        self.table.max_held_bytes = max_held_bytes
        self.table.woken_for.limit = MAX_WOKEN
        self.table.first.limit = MAX_FIRST
        self.table.unknown.limit = MAX_UNKNOWN
        if journal is not None:
            hold_journal(journal.journal)
            self.table.journal = journal.journal

    def __dealloc__(self):
        cdef opened_t* opened
        cdef prepared_t* oldest
        cdef int bucket
        while self.table.oldest != NULL:
            oldest = self.table.oldest
            remove(&self.table, oldest)
            free_prepared(oldest)
        for bucket in range(BUCKETS):
            while self.table.opened[bucket] != NULL:
                opened = self.table.opened[bucket]
                self.table.opened[bucket] = opened.next
                unregister_lane(opened.handle)
                free_opened(opened)
        if self.table.journal != NULL:
            release_journal(self.table.journal)
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
        bint wakes=False, bint fetches=False, double late_s=0,
    ):
        """Let a file be opened until `until_s` (monotonic clock); return whether it can be.

        `fields` are those of its line in the log, in JSON, from the opening brace up to the number of
        the request. `wakes`: each open wakes the thread in `wait`. `fetches`: it can be opened once,
        and that fetches all of it, within `late_s` seconds, and so asks whether it is the newest version.
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
        file.fields = <char*>malloc(len(fields) + 1)
        if file.fields == NULL:
            free(file)
            return False
        memcpy(file.fields, <const char*>fields, len(fields))
        file.fields_size = len(fields)
        file.inode = inode
        file.generation = generation
        file.until_s = until_s
        file.size_bytes = size_bytes
        file.wakes = wakes
        file.fetches = fetches
        file.late_s = late_s
        file.source = source.source
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
        return self.table.max_held_bytes > 0

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
        return self._take(&self.table.woken_for)

    def end(self):
        """Let `wait` return at once from now on."""
        pthread_mutex_lock(&self.table.mutex)
        self.table.ended = True
        pthread_cond_broadcast(&self.table.changed)
        pthread_mutex_unlock(&self.table.mutex)

    # --- opened files ---

    @property
    def opened(self):
        """The number of files that are open, and have no object in Python."""
        return self.table.opened_count

    def take_read_bytes(self):
        """Return the bytes read through handles that were closed or taken since the last call."""
        cdef long long read_bytes
        pthread_mutex_lock(&self.table.mutex)
        read_bytes = self.table.read_bytes
        self.table.read_bytes = 0
        pthread_mutex_unlock(&self.table.mutex)
        return read_bytes

    def number_from(self, unsigned long long handle):
        """Number handles from here on: those before are another process's."""
        self.table.next_handle = max(handle, self.table.next_handle)

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
        return self._take(&self.table.first)

    def close(self, unsigned long long handle):
        """See `close_prepared`, which the channel calls."""
        return close_prepared(&self.table, handle)

    def take_unknown(self):
        """Return the handles that the kernel does not know, and that could not be closed."""
        return self._take(&self.table.unknown)

    cdef list _take(self, numbers_t* queue):
        """Empty a queue; return its numbers."""
        cdef numbers_t taken
        cdef int index
        if queue.count == 0:
            return []
        pthread_mutex_lock(&self.table.mutex)
        memcpy(&taken, queue, sizeof(numbers_t))
        queue.count = 0
        pthread_mutex_unlock(&self.table.mutex)
        return [taken.numbers[index] for index in range(taken.count)]

    def read(self, unsigned long long handle, long long offset, long long size):
        """Return the bytes [offset, offset + size), fewer at the end of the file.

        None if the handle is not open, or its source fails: then Python reads. Releases the GIL.
        """
        cdef lane_t* lane = lane_of(&self.table, handle)
        cdef piece_t pieces[MAX_PIECES]
        cdef bint waited
        cdef int count = 0
        cdef size_t start
        if lane == NULL:
            return None
        try:
            if offset < 0:
                raise ValueError(f"not a position: {offset}")
            if size <= 0 or offset >= lane.size_bytes:
                return b""
            size = min(size, lane.size_bytes - offset)
            with nogil:
                count = lane_read(lane, offset, size, 0, pieces, &waited)
            if count != 1:  # there is one part at most
                return None
            lane_note(lane, offset + pieces[0].size, pieces[0].size, False)
            start = pieces[0].bytes - pieces[0].block.bytes
            return memoryview(view_of(pieces[0].block, start + pieces[0].size))[start:]
        finally:
            release_pieces(pieces, count)
            release_lane(lane)

    def is_open(self, unsigned long long inode):
        """Whether a file is open, and Python has not taken the handle."""
        cdef bint found
        if self.table.opened_count == 0:
            return False
        pthread_mutex_lock(&self.table.mutex)
        found = link_to_open(&self.table, inode) != NULL
        pthread_mutex_unlock(&self.table.mutex)
        return found

    def take(self, unsigned long long inode):
        """Take over all handles of a file: they are Python's from now on."""
        cdef opened_t** link
        cdef opened_t* opened
        cdef list found = []
        while self.table.opened_count > 0:
            opened = NULL
            pthread_mutex_lock(&self.table.mutex)
            link = link_to_open(&self.table, inode)
            if link != NULL:
                opened = unlink(&self.table, link)
            pthread_mutex_unlock(&self.table.mutex)
            if opened == NULL:
                break
            found.append(taken(opened))
        return found

    def take_handle(self, unsigned long long handle):
        """Take over a handle; None if it is not open, or was taken before."""
        cdef opened_t** link
        cdef opened_t* opened = NULL
        pthread_mutex_lock(&self.table.mutex)
        link = link_to(&self.table, handle)
        if link[0] != NULL:
            opened = unlink(&self.table, link)
        pthread_mutex_unlock(&self.table.mutex)
        return None if opened == NULL else taken(opened)

    def text(self):
        """Return the lines of the log for what is open, and was not taken."""
        cdef opened_t* opened
        cdef char* copied
        cdef size_t size = 0
        cdef int bucket
        # Objects are made without the mutex: making one may give the interpreter away.
        pthread_mutex_lock(&self.table.mutex)
        for bucket in range(BUCKETS):
            opened = self.table.opened[bucket]
            while opened != NULL:
                size += opened.line_size
                opened = opened.next
        copied = <char*>malloc(size + 1)
        size = 0
        for bucket in range(BUCKETS if copied != NULL else 0):
            opened = self.table.opened[bucket]
            while opened != NULL:
                if opened.line != NULL:
                    memcpy(copied + size, opened.line, opened.line_size)
                size += opened.line_size
                opened = opened.next
        pthread_mutex_unlock(&self.table.mutex)
        if copied == NULL:
            raise MemoryError()
        try:
            return copied[:size]
        finally:
            free(copied)


cdef object taken(opened_t* opened):
    """Return a handle that was removed from the table, for Python. Its lane stays registered."""
    line = opened.line[:opened.line_size] if opened.line != NULL else b""
    found = OpenedFile(opened.handle, opened.inode, line)
    free_opened(opened)
    return found


cdef void wait_until(table_t* table, double until_s) noexcept nogil:
    """Wait for `changed` (mutex held)."""
    cdef timespec moment = time_of(until_s)
    pthread_cond_timedwait(&table.changed, &table.mutex, &moment)
