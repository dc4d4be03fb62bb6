"""The lane of an open file answers the reads whose bytes are here. No read needs the interpreter.

A stream (`read.stream`) puts each part into its lane when a reader first reaches it; until then the
reads of that part come to the stream, which plans. So Python is asked once per part. A read of a
part that is on its way waits for it, up to MAX_WAIT_S. Everything unusual is Python's: a part that
has failed, is late or in doubt, or is not here; a read at the end of the file.

Reads at random places, of which nothing is here, the lane may fetch itself: each exactly, in one
request (`allow_random`). It does so for a number of reads and for a time, and only for reads that
are near none of the last ones, and not at the distance of the last two. So Python still sees where
a pattern begins, and then learns of the reads before (`take_random`). If the bytes are late, or do
not arrive as they should, the read is Python's, and so are all that follow.

A source that has the whole object, like the data cache on disk, answers all reads that come before
the first part (`allow_whole`). If it fails once, it is dropped, and the read is Python's.

The registry finds the lane of a file handle.
"""

from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

from mountpoint.native._arrivals cimport (
    PENDING,
    shared_int,
    hold_arrival,
    ready_block,
    release_arrival,
    wait_for,
)
from mountpoint.native._blocks cimport release_block, view_of
from mountpoint.native._sync cimport (
    atomic_add,
    now_s,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_t,
    pthread_mutex_unlock,
)

cdef extern from "<pthread.h>" nogil:
    """
    static pthread_mutex_t registry_mutex = PTHREAD_MUTEX_INITIALIZER;
    """
    pthread_mutex_t registry_mutex

# The place of a read that there was not: far from all others.
cdef long long NOWHERE = -(<long long>1 << 60)

# The reader that came first waits in Python, which sends a second request, or fails the part. So
# this wait is longer than any that ends well, and short for a person.
cdef double MAX_WAIT_S = 2.0

cdef enum:
    BUCKETS = 1024
    PAGE_BYTES = 4096
    MAX_EXPECTED = 64
    # A read this close to another may belong to a run (`read.patterns`).
    NEAR_BYTES = 4 * PAGE_BYTES

cdef struct Entry:
    unsigned long long handle
    lane_t* lane
    Entry* next

# Guarded by registry_mutex.
cdef Entry* buckets[BUCKETS]
cdef shared_int entries = 0


# --- one lane ---

cdef lane_t* new_lane(long long size_bytes) noexcept nogil:
    """Return an empty lane with one reference; NULL without memory."""
    cdef lane_t* lane = <lane_t*>malloc(sizeof(lane_t))
    if lane == NULL:
        return NULL
    memset(lane, 0, sizeof(lane_t))
    lane.refs = 1
    lane.size_bytes = size_bytes
    pthread_mutex_init(&lane.mutex, NULL)
    return lane


cdef void release_lane(lane_t* lane) noexcept nogil:
    """Give one reference back; the last one frees the lane."""
    if atomic_add(&lane.refs, -1) > 0:
        return
    lane_clear(lane)
    lane_forget_whole(lane)
    drop_source(lane, &lane.random.source)
    free(lane.parts)
    pthread_mutex_destroy(&lane.mutex)
    free(lane)


cdef int index_of(const lane_t* lane, long long position) noexcept nogil:
    """Return the index of the first part that ends after `position` (mutex held)."""
    cdef int low = 0
    cdef int high = lane.count
    cdef int middle
    while low < high:
        middle = (low + high) // 2
        if lane.parts[middle].stop <= position:
            low = middle + 1
        else:
            high = middle
    return low


cdef bint lane_insert(lane_t* lane, long long start, long long stop, arrival_t* it) noexcept nogil:
    """Add a part, which overlaps no other one; False without memory, and then Python has it."""
    cdef lane_part_t* grown
    cdef int index, capacity
    cdef bint inserted = False
    pthread_mutex_lock(&lane.mutex)
    if lane.count == lane.capacity:
        capacity = 2 * lane.capacity if lane.capacity else 4
        grown = <lane_part_t*>realloc(lane.parts, capacity * sizeof(lane_part_t))
        if grown != NULL:
            lane.parts = grown
            lane.capacity = capacity
    index = index_of(lane, start)
    if lane.count < lane.capacity and (
        index == lane.count or stop <= lane.parts[index].start
    ):
        memmove(
            &lane.parts[index + 1], &lane.parts[index],
            (lane.count - index) * sizeof(lane_part_t),
        )
        hold_arrival(it)
        lane.parts[index].start = start
        lane.parts[index].stop = stop
        lane.parts[index].arrival = it
        lane.count += 1
        inserted = True
    pthread_mutex_unlock(&lane.mutex)
    return inserted


cdef void lane_remove(lane_t* lane, long long start) noexcept nogil:
    """Remove the part that begins at `start`, if there is one."""
    cdef arrival_t* removed = NULL
    cdef int index
    pthread_mutex_lock(&lane.mutex)
    index = index_of(lane, start)
    if index < lane.count and lane.parts[index].start == start:
        removed = lane.parts[index].arrival
        lane.count -= 1
        memmove(
            &lane.parts[index], &lane.parts[index + 1],
            (lane.count - index) * sizeof(lane_part_t),
        )
    pthread_mutex_unlock(&lane.mutex)
    if removed != NULL:
        release_arrival(removed)


cdef void lane_clear(lane_t* lane) noexcept nogil:
    """Remove all parts."""
    cdef arrival_t* removed
    while True:
        removed = NULL
        pthread_mutex_lock(&lane.mutex)
        if lane.count > 0:
            lane.count -= 1
            removed = lane.parts[lane.count].arrival
        pthread_mutex_unlock(&lane.mutex)
        if removed == NULL:
            return
        release_arrival(removed)


cdef void lane_note(lane_t* lane, long long stop, long long size, bint waited) noexcept nogil:
    """Count a read; `stop` is its end, or negative for one whose bytes Python has fetched."""
    cdef bint done
    pthread_mutex_lock(&lane.mutex)
    if stop >= 0:
        lane.hit_stop = stop
    lane.read_bytes += size
    lane.waits += waited
    done = lane.once and stop == lane.size_bytes <= lane.read_bytes
    pthread_mutex_unlock(&lane.mutex)
    if done:
        lane_clear(lane)


cdef long long lane_take_waits(lane_t* lane) noexcept nogil:
    """Return the number of reads that have waited since the last call."""
    cdef long long waits
    pthread_mutex_lock(&lane.mutex)
    waits = lane.waits
    lane.waits = 0
    pthread_mutex_unlock(&lane.mutex)
    return waits


cdef int lane_read(
    lane_t* lane, long long offset, long long size, unsigned long long thread,
    piece_t* pieces, bint* waited
) noexcept nogil:
    """Find the bytes [offset, offset + size), fewer at the end of the object, for a thread.

    Returns the number of pieces, which the caller must release; 0 if Python must answer. `waited`
    is set if bytes were on their way. The caller counts the read (`lane_note`) once it is answered.
    """
    cdef long long stop = min(offset + size, lane.size_bytes)
    cdef int count = 0
    cdef double late_s = 0
    cdef source_t* source
    waited[0] = False
    if offset < stop:
        source = random_source(lane, offset, stop, &late_s)
        if source != NULL:
            waited[0] = True
            count = fetch_random(lane, source, offset, stop, thread, late_s, pieces)
            release_source(source)
            return count
        pieces[0].block = fetch_whole(lane, offset, stop, thread)
        if pieces[0].block != NULL:
            pieces[0].bytes = pieces[0].block.bytes
            pieces[0].size = stop - offset
            return 1
    while offset < stop:
        if count == MAX_PIECES or not find_piece(lane, offset, stop, &pieces[count], waited):
            release_pieces(pieces, count)
            return 0
        offset += pieces[count].size
        count += 1
    return count


cdef bint find_piece(
    lane_t* lane, long long offset, long long stop, piece_t* piece, bint* waited
) noexcept nogil:
    """Find the bytes of one part from `offset` on, up to `stop`; False if Python must answer."""
    cdef lane_part_t part
    cdef int index
    part.arrival = NULL
    pthread_mutex_lock(&lane.mutex)
    index = index_of(lane, offset)
    if index < lane.count and lane.parts[index].start <= offset:
        part = lane.parts[index]
        hold_arrival(part.arrival)
    pthread_mutex_unlock(&lane.mutex)
    if part.arrival == NULL:
        return False
    piece.block = ready_block(part.arrival)
    if piece.block == NULL and part.arrival.state == PENDING and not part.arrival.in_doubt:
        waited[0] = True
        wait_for(part.arrival, False, MAX_WAIT_S)
        piece.block = ready_block(part.arrival)
    release_arrival(part.arrival)
    if piece.block == NULL:
        return False
    piece.bytes = piece.block.bytes + (offset - part.start)
    piece.size = min(stop, part.stop) - offset
    return True


cdef source_t* random_source(
    lane_t* lane, long long offset, long long stop, double* late_s
) noexcept nogil:
    """Return the source for a read at a random place, with a reference; NULL for any other read.

    `late_s` becomes the seconds that the read may take.
    """
    cdef random_t* random = &lane.random
    cdef source_t* source = NULL
    cdef long long last, distance
    cdef int index
    if random.source == NULL:  # the usual case; a look without the mutex is enough
        return NULL
    pthread_mutex_lock(&lane.mutex)
    index = index_of(lane, offset)
    if (
        random.source != NULL and random.left > 0 and now_s() < random.until_s
        and (index == lane.count or stop <= lane.parts[index].start)
    ):
        last = (random.next + RECENT - 1) % RECENT
        distance = random.starts[last] - random.starts[(last + RECENT - 1) % RECENT]
        if offset - random.starts[last] != distance:
            source = random.source
        for index in range(RECENT):
            if offset - NEAR_BYTES < random.stops[index] and (
                random.starts[index] < stop + NEAR_BYTES
            ):
                source = NULL
    if source != NULL:
        random.left -= 1
        late_s[0] = random.late_s
        atomic_add(&source.refs, 1)
        random.starts[random.next] = offset
        random.stops[random.next] = stop
        random.durations_s[random.next] = 0
        random.next = (random.next + 1) % RECENT
        random.untold = min(random.untold + 1, RECENT)
    pthread_mutex_unlock(&lane.mutex)
    return source


cdef int fetch_random(
    lane_t* lane, source_t* source, long long offset, long long stop, unsigned long long thread,
    double late_s, piece_t* pieces
) noexcept nogil:
    """Fetch [offset, stop), in whole pages; return the number of pieces, 1 or 0."""
    cdef long long start = offset - offset % PAGE_BYTES
    cdef long long end = min(stop + (PAGE_BYTES - stop % PAGE_BYTES) % PAGE_BYTES, lane.size_bytes)
    cdef double begun_s = now_s()
    cdef Block* block = source.fetch(source, start, end, thread, late_s)
    cdef double duration_s = now_s() - begun_s
    cdef int index
    pthread_mutex_lock(&lane.mutex)
    if block == NULL:
        lane.random.left = 0
    for index in range(RECENT):
        if lane.random.starts[index] == offset and lane.random.durations_s[index] == 0:
            lane.random.durations_s[index] = duration_s
            break
    pthread_mutex_unlock(&lane.mutex)
    if block == NULL:
        return 0
    pieces[0].block = block
    pieces[0].bytes = block.bytes + (offset - start)
    pieces[0].size = stop - offset
    return 1


cdef void release_source(source_t* source) noexcept nogil:
    """Give one reference back; the last one destroys the source."""
    if atomic_add(&source.refs, -1) == 0:
        source.destroy(source)


cdef void drop_source(lane_t* lane, shared_source* where) noexcept nogil:
    """Give up the source at `where`, which is a field of the lane."""
    cdef source_t* source
    pthread_mutex_lock(&lane.mutex)
    source = where[0]
    where[0] = NULL
    pthread_mutex_unlock(&lane.mutex)
    if source != NULL:
        release_source(source)


cdef void lane_forget_whole(lane_t* lane) noexcept nogil:
    """Let reads that find no part go to Python again."""
    drop_source(lane, &lane.whole)


cdef void lane_allow_whole(lane_t* lane, source_t* source) noexcept nogil:
    """Let the lane fetch all reads from this source, as long as there is no part."""
    lane_forget_whole(lane)
    atomic_add(&source.refs, 1)
    pthread_mutex_lock(&lane.mutex)
    lane.whole = source
    pthread_mutex_unlock(&lane.mutex)


cdef Block* fetch_whole(
    lane_t* lane, long long offset, long long stop, unsigned long long thread
) noexcept nogil:
    """Return a block with [offset, stop) from the source that has the whole object; NULL if there
    is none, or it fails.
    """
    cdef source_t* source = NULL
    cdef Block* block
    if lane.whole == NULL:  # the usual case; a look without the mutex is enough
        return NULL
    pthread_mutex_lock(&lane.mutex)
    if lane.count == 0 and lane.whole != NULL:
        source = lane.whole
        atomic_add(&source.refs, 1)
    pthread_mutex_unlock(&lane.mutex)
    if source == NULL:
        return NULL
    block = source.fetch(source, offset, stop, thread, MAX_WAIT_S)
    if block == NULL:
        lane_forget_whole(lane)
    release_source(source)
    return block


cdef void release_pieces(piece_t* pieces, int count) noexcept nogil:
    cdef int index
    for index in range(count):
        release_block(pieces[index].block)


cdef class LaneSource:
    """A source of bytes of one object. It owns one reference."""

    def __dealloc__(self):
        if self.source != NULL:
            release_source(self.source)


def expect_all(list sources not None):
    """Let sources begin to fetch the starts of their objects, and do not wait. Releases the GIL."""
    cdef source_t* expected[MAX_EXPECTED]
    cdef LaneSource each
    cdef int count = 0, index
    for each in sources:
        if each is None:
            raise TypeError("not a source")
        if each.source != NULL and each.source.expect != NULL and count < MAX_EXPECTED:
            expected[count] = each.source  # `sources` holds it
            count += 1
    with nogil:
        for index in range(count):
            expected[index].expect(expected[index])


cdef class Lane:
    """The lane of one open file, for Python. `PartMap` is one."""

    def __dealloc__(self):
        if self.lane != NULL:
            release_lane(self.lane)

    def register(self, unsigned long long handle):
        """Let the reads of this file handle use the lane, until `unregister`."""
        register_lane(handle, self.lane)  # without memory Python answers

    def allow_whole(self, LaneSource source not None):
        """Let the lane fetch all reads from a source that has the whole object, as long as there is
        no part.
        """
        if source.source == NULL:
            raise ValueError("not a source")
        lane_allow_whole(self.lane, source.source)

    def read_whole(self, long long offset, long long stop):
        """Return the bytes [offset, stop), at most to the object's end, from the source that has the
        whole object; None if there is none, or it fails. Releases the GIL.
        """
        cdef Block* block
        if self.lane.whole == NULL or not 0 <= offset < stop <= self.lane.size_bytes:
            return None
        with nogil:
            block = fetch_whole(self.lane, offset, stop, 0)
        if block == NULL:
            return None
        lane_note(self.lane, stop, stop - offset, False)
        try:
            return memoryview(view_of(block, stop - offset))
        finally:
            release_block(block)

    def allow_random(
        self, LaneSource source not None, list recent not None, int reads,
        double for_s, double late_s,
    ):
        """Let the lane fetch the bytes of reads at random places: so many, for so many seconds.

        `recent` are the ranges of the last reads, the last one at the end. After `late_s` seconds
        a read is Python's.
        """
        cdef random_t* random = &self.lane.random
        cdef source_t* before
        cdef long long starts[RECENT]
        cdef long long stops[RECENT]
        cdef int index
        if source.source == NULL:
            raise ValueError("not a source")
        recent = recent[-RECENT:]
        for index in range(RECENT):
            starts[index] = stops[index] = NOWHERE
        for index, (start, stop) in enumerate(recent):
            starts[index] = start
            stops[index] = stop
        atomic_add(&source.source.refs, 1)
        pthread_mutex_lock(&self.lane.mutex)
        before = random.source
        random.source = source.source
        memcpy(random.starts, starts, sizeof(starts))
        memcpy(random.stops, stops, sizeof(stops))
        random.next = len(recent) % RECENT
        random.untold = 0
        random.left = reads
        random.until_s = now_s() + for_s
        random.late_s = late_s
        pthread_mutex_unlock(&self.lane.mutex)
        if before != NULL:
            release_source(before)

    def take_random(self):
        """Stop fetching; return the last reads that were fetched: (start, stop, seconds) each.

        0 seconds: the bytes are still on their way.
        """
        cdef random_t copy
        cdef int each, index
        if self.lane.random.source == NULL:
            return []
        pthread_mutex_lock(&self.lane.mutex)
        copy = self.lane.random
        self.lane.random.source = NULL
        self.lane.random.untold = 0
        pthread_mutex_unlock(&self.lane.mutex)
        if copy.source != NULL:
            release_source(copy.source)
        taken = []
        for each in range(copy.untold):
            index = (copy.next - copy.untold + each + RECENT) % RECENT
            taken.append((copy.starts[index], copy.stops[index], copy.durations_s[index]))
        return taken


def unregister(unsigned long long handle):
    """Let the reads of this file handle go to Python again."""
    unregister_lane(handle)


def registered():
    """Return the number of registered file handles."""
    return entries


cdef bint register_lane(unsigned long long handle, lane_t* lane) noexcept nogil:
    """Let the reads of a file handle use a lane; False without memory."""
    global entries
    cdef Entry* entry = <Entry*>malloc(sizeof(Entry))
    if entry == NULL:
        return False
    entry.handle = handle
    entry.lane = lane
    atomic_add(&lane.refs, 1)
    pthread_mutex_lock(&registry_mutex)
    entry.next = buckets[handle % BUCKETS]
    buckets[handle % BUCKETS] = entry
    entries += 1
    pthread_mutex_unlock(&registry_mutex)
    return True


cdef void unregister_lane(unsigned long long handle) noexcept nogil:
    """Let the reads of a file handle go to Python again."""
    global entries
    cdef Entry* found = NULL
    cdef Entry** link
    pthread_mutex_lock(&registry_mutex)
    link = &buckets[handle % BUCKETS]
    while link[0] != NULL and link[0].handle != handle:
        link = &link[0].next
    if link[0] != NULL:
        found = link[0]
        link[0] = found.next
        entries -= 1
    pthread_mutex_unlock(&registry_mutex)
    if found != NULL:
        release_lane(found.lane)
        free(found)


cdef lane_t* find_lane(unsigned long long handle) noexcept nogil:
    """Return the lane of a file handle, with a reference for the caller; NULL if it has none."""
    cdef lane_t* lane = NULL
    cdef Entry* entry
    pthread_mutex_lock(&registry_mutex)
    entry = buckets[handle % BUCKETS]
    while entry != NULL and entry.handle != handle:
        entry = entry.next
    if entry != NULL:
        lane = entry.lane
        atomic_add(&lane.refs, 1)
    pthread_mutex_unlock(&registry_mutex)
    return lane
