"""Handles of files that were opened without the interpreter.

Such a handle has a lane, which reads from the source of the version that was opened (`_prepared`),
and no object in Python. If one is needed, Python takes the handle over (`take`), and it is like any
other: to read what the source lacks, or because a program is about to change the file.

Each open and close is noted in the log of the session, by a line that Python has made.
"""

from collections import namedtuple

from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from mountpoint.native._arrivals cimport READY, arrival_t, end, new_arrival, release_arrival
from mountpoint.native._blocks cimport Block, view_of
from mountpoint.native._journal cimport (
    Journal,
    hold_journal,
    journal_append,
    release_journal,
)
from mountpoint.native._lane cimport (
    MAX_PIECES,
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
    unregister_lane,
)
from mountpoint.native._numbers cimport put, take_numbers
from mountpoint.native._sync cimport (
    atomic_add,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)

cdef enum:
    MAX_UNKNOWN = 64
    MAX_FRAME_BYTES = 64  # of a line of the log, apart from its fields

# Python counts its own handles from 1.
cdef unsigned long long C_FIRST_HANDLE = 1ULL << 62

FIRST_HANDLE = C_FIRST_HANDLE

OpenedFile = namedtuple("OpenedFile", ["handle", "inode", "line"])


# --- opens ---

cdef bint reserve(handles_t* handles, long long size_bytes) noexcept nogil:
    """Reserve room for what an open fetches; False if there is none."""
    cdef bint fits
    pthread_mutex_lock(&handles.mutex)
    fits = handles.held_bytes + size_bytes <= handles.max_held_bytes
    if fits:
        handles.held_bytes += size_bytes
    pthread_mutex_unlock(&handles.mutex)
    return fits


cdef void unreserve(handles_t* handles, long long size_bytes) noexcept nogil:
    """Give back the room of an open that has failed."""
    pthread_mutex_lock(&handles.mutex)
    handles.held_bytes -= size_bytes
    pthread_mutex_unlock(&handles.mutex)


cdef unsigned long long add_handle(
    handles_t* handles, const version_t* version, Block* block, unsigned long long request
) noexcept nogil:
    """Open a version; return the handle, or 0 without memory, or room in the log.

    `block` has all its bytes, and the room that was reserved for them is the handle's from now on;
    NULL: reads fetch them. `request` is the number of the kernel's request.
    """
    cdef handle_t* handle
    cdef unsigned long long number = 0
    pthread_mutex_lock(&handles.mutex)
    handle = new_handle(handles, version, block, request)
    if handle != NULL:
        number = handle.number
    pthread_mutex_unlock(&handles.mutex)
    return number


cdef handle_t* new_handle(
    handles_t* handles, const version_t* version, Block* block, unsigned long long request
) noexcept nogil:
    """See `add_handle` (mutex held)."""
    cdef handle_t* handle = <handle_t*>malloc(sizeof(handle_t))
    if handle == NULL:
        return NULL
    memset(handle, 0, sizeof(handle_t))
    handle.number = handles.next_number
    handle.inode = version.inode
    handle.lane = new_lane(version.size_bytes)
    if handle.lane == NULL or not register_lane(handle.number, handle.lane):
        free_handle(handle)
        return NULL
    if not log_opened(handles, version, handle, request):
        unregister_lane(handle.number)
        free_handle(handle)
        return NULL
    lane_allow_whole(handle.lane, version.source)
    if block != NULL:
        put_part(handle, block)
    handle.next = handles.buckets[handle.number % BUCKETS]
    handles.buckets[handle.number % BUCKETS] = handle
    handles.count += 1
    handles.next_number += 1
    return handle


cdef void put_part(handle_t* handle, Block* block) noexcept nogil:
    """Let reads find their bytes in a block, until all were read: the kernel has them then."""
    cdef arrival_t* arrival = new_arrival()
    handle.held_bytes = handle.lane.size_bytes
    if arrival == NULL:
        return  # they are fetched again
    end(arrival, READY, block)
    handle.lane.once = True
    lane_insert(handle.lane, 0, handle.lane.size_bytes, arrival)
    release_arrival(arrival)


cdef void free_handle(handle_t* handle) noexcept nogil:
    if handle.lane != NULL:
        release_lane(handle.lane)
    free(handle.line)
    free(handle)


# --- the log (mutex held) ---

cdef bint log_opened(
    handles_t* handles, const version_t* version, handle_t* handle, unsigned long long request
) noexcept nogil:
    """Make the line of the log for an open, and append it."""
    cdef size_t room = version.fields_size + MAX_FRAME_BYTES
    cdef int size
    if handles.journal == NULL:
        return True
    handle.line = <char*>malloc(room)
    if handle.line == NULL:
        return False
    size = snprintf(handle.line, room, b'["handle",%llu,', handle.number)
    memcpy(handle.line + size, version.fields, version.fields_size)
    size += <int>version.fields_size
    size += snprintf(handle.line + size, room - size, b"%llu}]\n", request)
    handle.line_size = size
    return journal_append(handles.journal, handle.line, size)


cdef bint log_closed(handles_t* handles, unsigned long long number) noexcept nogil:
    cdef char line[MAX_FRAME_BYTES]
    if handles.journal == NULL:
        return True
    return journal_append(
        handles.journal, line, snprintf(line, sizeof(line), b'["handle",%llu]\n', number)
    )


# --- what is open (mutex held) ---

cdef handle_t** link_to(handles_t* handles, unsigned long long number) noexcept nogil:
    """Return what leads to a handle; it holds NULL if there is none."""
    cdef handle_t** link = &handles.buckets[number % BUCKETS]
    while link[0] != NULL and link[0].number != number:
        link = &link[0].next
    return link


cdef handle_t** link_to_open(handles_t* handles, unsigned long long inode) noexcept nogil:
    """Return what leads to any handle of a file; NULL if it is not open."""
    cdef handle_t** link
    cdef int bucket
    for bucket in range(BUCKETS):
        link = &handles.buckets[bucket]
        while link[0] != NULL:
            if link[0].inode == inode:
                return link
            link = &link[0].next
    return NULL


cdef handle_t* unlink(handles_t* handles, handle_t** link) noexcept nogil:
    """Remove a handle from the table, and return it."""
    cdef handle_t* handle = link[0]
    link[0] = handle.next
    handles.count -= 1
    handles.read_bytes += handle.lane.read_bytes
    handles.held_bytes -= handle.held_bytes
    return handle


# --- reads and closes ---

cdef bint has_handle(handles_t* handles, unsigned long long number) noexcept nogil:
    """Whether a handle is open, and Python has not taken it."""
    cdef bint found
    if number < C_FIRST_HANDLE:
        return False
    pthread_mutex_lock(&handles.mutex)
    found = link_to(handles, number)[0] != NULL
    pthread_mutex_unlock(&handles.mutex)
    return found


cdef lane_t* lane_of(handles_t* handles, unsigned long long number) noexcept nogil:
    """Return the lane of a handle, with a reference for the caller; NULL if it has none."""
    cdef handle_t* handle
    cdef lane_t* lane = NULL
    pthread_mutex_lock(&handles.mutex)
    handle = link_to(handles, number)[0]
    if handle != NULL:
        lane = handle.lane
        atomic_add(&lane.refs, 1)
    pthread_mutex_unlock(&handles.mutex)
    return lane


cdef bint close_handle(handles_t* handles, unsigned long long number) noexcept nogil:
    """Close a handle; False if Python must close it."""
    cdef handle_t** link
    cdef handle_t* handle = NULL
    pthread_mutex_lock(&handles.mutex)
    link = link_to(handles, number)
    if link[0] != NULL and log_closed(handles, number):
        handle = unlink(handles, link)
    pthread_mutex_unlock(&handles.mutex)
    if handle == NULL:
        return False
    unregister_lane(number)
    free_handle(handle)
    return True


cdef void note_unknown(handles_t* handles, unsigned long long number) noexcept nogil:
    """Leave a handle to Python that the kernel does not know, so that it never closes it."""
    pthread_mutex_lock(&handles.mutex)
    put(&handles.unknown, number)
    pthread_mutex_unlock(&handles.mutex)


cdef class NativeHandles:
    """The files of a mount that are open, and have no object in Python. Thread-safe.

    `journal` is the log of the session; None: nothing is logged. Opens may hold `max_held_bytes` of
    what they have fetched.
    """

    def __cinit__(self, Journal journal=None, long long max_held_bytes=0):
        memset(&self.table, 0, sizeof(handles_t))
        pthread_mutex_init(&self.table.mutex, NULL)
        self.table.next_number = C_FIRST_HANDLE
        self.table.max_held_bytes = max_held_bytes
        self.table.unknown.limit = MAX_UNKNOWN
        if journal is not None:
            hold_journal(journal.journal)
            self.table.journal = journal.journal

    def __dealloc__(self):
        cdef handle_t* handle
        cdef int bucket
        for bucket in range(BUCKETS):
            while self.table.buckets[bucket] != NULL:
                handle = self.table.buckets[bucket]
                self.table.buckets[bucket] = handle.next
                unregister_lane(handle.number)
                free_handle(handle)
        if self.table.journal != NULL:
            release_journal(self.table.journal)
        pthread_mutex_destroy(&self.table.mutex)

    def __len__(self):
        return self.table.count

    def number_from(self, unsigned long long handle):
        """Number handles from here on: those before are another process's."""
        self.table.next_number = max(handle, self.table.next_number)

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

    def take_read_bytes(self):
        """Return the bytes read through handles that were closed or taken since the last call."""
        cdef long long read_bytes
        pthread_mutex_lock(&self.table.mutex)
        read_bytes = self.table.read_bytes
        self.table.read_bytes = 0
        pthread_mutex_unlock(&self.table.mutex)
        return read_bytes

    def close(self, unsigned long long handle):
        """See `close_handle`, which the channel calls."""
        return close_handle(&self.table, handle)

    def take_unknown(self):
        """Return the handles that the kernel does not know, and that could not be closed."""
        return take_numbers(&self.table.unknown, &self.table.mutex)

    def is_open(self, unsigned long long inode):
        """Whether a file is open, and Python has not taken the handle."""
        cdef bint found
        if self.table.count == 0:
            return False
        pthread_mutex_lock(&self.table.mutex)
        found = link_to_open(&self.table, inode) != NULL
        pthread_mutex_unlock(&self.table.mutex)
        return found

    def take(self, unsigned long long inode):
        """Take over all handles of a file: they are Python's from now on."""
        cdef handle_t** link
        cdef handle_t* handle
        cdef list found = []
        while self.table.count > 0:
            handle = NULL
            pthread_mutex_lock(&self.table.mutex)
            link = link_to_open(&self.table, inode)
            if link != NULL:
                handle = unlink(&self.table, link)
            pthread_mutex_unlock(&self.table.mutex)
            if handle == NULL:
                break
            found.append(taken(handle))
        return found

    def take_handle(self, unsigned long long handle):
        """Take over a handle; None if it is not open, or was taken before."""
        cdef handle_t** link
        cdef handle_t* found = NULL
        pthread_mutex_lock(&self.table.mutex)
        link = link_to(&self.table, handle)
        if link[0] != NULL:
            found = unlink(&self.table, link)
        pthread_mutex_unlock(&self.table.mutex)
        return None if found == NULL else taken(found)

    def text(self):
        """Return the lines of the log for what is open, and was not taken."""
        cdef handle_t* handle
        cdef char* copied
        cdef size_t size = 0
        cdef int bucket
        # Objects are made without the mutex: making one may give the interpreter away.
        pthread_mutex_lock(&self.table.mutex)
        for bucket in range(BUCKETS):
            handle = self.table.buckets[bucket]
            while handle != NULL:
                size += handle.line_size
                handle = handle.next
        copied = <char*>malloc(size + 1)
        size = 0
        for bucket in range(BUCKETS if copied != NULL else 0):
            handle = self.table.buckets[bucket]
            while handle != NULL:
                if handle.line != NULL:
                    memcpy(copied + size, handle.line, handle.line_size)
                size += handle.line_size
                handle = handle.next
        pthread_mutex_unlock(&self.table.mutex)
        if copied == NULL:
            raise MemoryError()
        try:
            return copied[:size]
        finally:
            free(copied)


cdef object taken(handle_t* handle):
    """Return a handle that was removed from the table, for Python. Its lane stays registered."""
    line = handle.line[:handle.line_size] if handle.line != NULL else b""
    found = OpenedFile(handle.number, handle.inode, line)
    free_handle(handle)
    return found
