"""Reads in the lane: each sends a GET of exactly its bytes, from a template, and waits.

Python makes a template once for an open file (`NativeGets.source`). It is freed by the next call of
Python after the file was closed.
"""

from cpython.ref cimport Py_DECREF
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from mountpoint.native._arrivals cimport (
    arrival_t,
    new_arrival,
    ready_block,
    release_arrival,
    wait_for,
)
from mountpoint.native._blocks cimport Block
from mountpoint.native._lane cimport source_t
from mountpoint.native._sync cimport now_s, pthread_mutex_lock, pthread_mutex_unlock
from mountpoint.s3.crt.native._crt cimport aws_http_header
from mountpoint.s3.crt.native._gets cimport (
    Get,
    Queue,
    cancel,
    cursor,
    new_get,
    release_get,
    release_queue,
)
from mountpoint.s3.crt.native._sending cimport dispatch, wanted_t


cdef Template* new_template() noexcept:
    """Return a template with one reference, without its request; NULL without memory."""
    cdef Template* template = <Template*>malloc(sizeof(Template))
    if template == NULL:
        return NULL
    memset(template, 0, sizeof(Template))
    template.source.refs = 1
    template.source.fetch = &fetch
    template.source.destroy = &destroy
    return template


cdef Block* fetch(
    source_t* source, long long start, long long stop, unsigned long long thread, double timeout_s
) noexcept nogil:
    """Get [start, stop) and wait for it; see `source_t`."""
    cdef Template* template = <Template*>source
    cdef double until_s = now_s() + timeout_s
    cdef bint lost = False
    cdef Block* block = fetch_once(template, start, stop, thread, timeout_s, True, &lost)
    if lost:
        block = fetch_once(template, start, stop, thread, until_s - now_s(), False, &lost)
    return block


cdef Block* fetch_once(
    Template* template, long long start, long long stop, unsigned long long thread,
    double timeout_s, bint directly, bint* lost
) noexcept nogil:
    """Do the same, on a connection of ours only with `directly`.

    `lost` is set to whether that connection had died, so that no answer came.
    """
    cdef arrival_t* arrival = new_arrival()
    cdef Get* get
    cdef Block* block = NULL
    if arrival == NULL:
        return NULL
    get = new_get(
        template.queue, arrival, start, stop - start, template.etag, template.etag_size
    )
    if get != NULL:
        if send_range(template, get, thread, directly):
            wait_for(arrival, False, timeout_s)
            block = ready_block(arrival)
            if block == NULL:
                lost[0] = directly and was_lost(get)
                cancel(get)
        release_get(get)
    release_arrival(arrival)
    return block


cdef bint was_lost(Get* get) noexcept nogil:
    cdef bint ended
    pthread_mutex_lock(&get.mutex)
    ended = get.ended
    pthread_mutex_unlock(&get.mutex)
    return ended and get.lent != NULL and get.status == 0


cdef bint send_range(
    Template* template, Get* get, unsigned long long thread, bint directly
) noexcept nogil:
    """Send the GET of a read in the lane; False if that fails."""
    cdef aws_http_header range
    cdef char text[64]
    cdef wanted_t wanted
    # As `CrtClient.get` does: other stores than S3 send no checksum with a range.
    get.whole = template.verify and template.matches and get.size == template.object_size
    get.object_size = template.object_size
    get.verify = template.verify
    get.single = template.single
    get.thread = thread
    get.begun_at_s = now_s()
    wanted.path = template.path
    wanted.headers = template.headers
    wanted.headers_count = template.headers_count
    wanted.range = NULL
    if not get.whole:
        memset(&range, 0, sizeof(range))
        range.name = cursor(b"Range", 5)
        range.value = cursor(text, snprintf(
            text, sizeof(text), b"bytes=%lld-%lld",
            <long long>get.start, <long long>(get.start + get.size - 1),
        ))
        wanted.range = &range
    wanted.signing = template.signing
    return dispatch(template.client, template.pool if directly else NULL, get, &wanted)


cdef void destroy(source_t* source) noexcept nogil:
    """Leave a template to the next call of Python: a reader that closes its file needs no GIL."""
    cdef Template* template = <Template*>source
    cdef Queue* queue = template.queue
    cdef bint closed
    pthread_mutex_lock(&queue.mutex)
    closed = queue.closed
    if not closed:
        template.next = <Template*>queue.gone
        queue.gone = template
    pthread_mutex_unlock(&queue.mutex)
    if closed:
        with gil:
            free_template(template)
    release_queue(queue)


cdef void free_template(Template* template) noexcept:
    Py_DECREF(<object>template.kept)
    free(template.headers)
    free(template)


cdef void free_gone(Queue* queue) noexcept:
    """Free the templates that were left."""
    cdef Template* template
    cdef Template* following
    pthread_mutex_lock(&queue.mutex)
    template = <Template*>queue.gone
    queue.gone = NULL
    pthread_mutex_unlock(&queue.mutex)
    while template != NULL:
        following = template.next
        free_template(template)
        template = following
