"""GETs without the interpreter, for Python: send them, take the ended ones, look at the answers.

A GET is sent for a sink (`NativeGets.get`), or by a read in a lane, which waits for it
(`NativeGets.source`). `_gets` has the GETs themselves.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from mountpoint.native._arrivals cimport READY, Arrival, end
from mountpoint.native._blocks cimport Block, release_block, view_of
from mountpoint.native._lane cimport LaneSource
from mountpoint.native._sync cimport (
    atomic_add,
    init_cond,
    now_s,
    pthread_cond_timedwait,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    time_of,
    timespec,
)
from mountpoint.s3.crt.native._answers cimport NO_CHECKSUM, NOTHING, described_by
from mountpoint.s3.crt.native._connections cimport Connections
from mountpoint.s3.crt.native._crt cimport aws_byte_cursor, aws_http_header
from mountpoint.s3.crt.native._functions cimport crt
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
from mountpoint.s3.crt.native._templates cimport Template, free_gone, new_template

from mountpoint.errors import TransportFault
from mountpoint.s3.crt.native._functions import set_addresses

cdef aws_byte_cursor cursor_of(bytes text):
    return cursor(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))


cdef class NativeGet:
    """One GET, as Python sees it once it has ended. It does not refer to its sink.

    `owner` is whatever the caller of `get` passed, until it is released.
    """

    cdef Get* get
    cdef object client  # the CRT's, as long as the request runs
    cdef readonly object owner

    def __dealloc__(self):
        if self.get != NULL:
            release_get(self.get)

    @property
    def status(self):
        """The HTTP status; 0 without an answer."""
        return self.get.status

    @property
    def error(self):
        """The CRT's error code; 0 if it has none."""
        return self.get.error

    @property
    def thread(self):
        """The thread that reads, if the get is for a read in the lane; otherwise 0."""
        return self.get.thread

    @property
    def begun_at_s(self):
        """When a get in the lane was sent, by the monotonic clock."""
        return self.get.begun_at_s

    @property
    def cancelled(self):
        """Whether it was cancelled."""
        cdef bint cancelled
        pthread_mutex_lock(&self.get.mutex)
        cancelled = self.get.cancelled
        pthread_mutex_unlock(&self.get.mutex)
        return cancelled

    @property
    def verify(self):
        """Whether the body is to be compared with a checksum."""
        return self.get.verify

    @property
    def requested(self):
        """The bytes that were requested."""
        return self.get.size

    @property
    def ended(self):
        """Whether the request has ended."""
        return self.get.ended

    @property
    def refused(self):
        """Whether the error is an answer of the store, with headers."""
        return self.get.refused

    @property
    def unclear(self):
        """Whether the request has succeeded, but the answer is not the usual one."""
        return self.get.unclear

    @property
    def received(self):
        """The bytes of the body."""
        return self.get.received

    @property
    def position(self):
        """The position of the body in the object, as the CRT gives it."""
        return self.get.position if self.get.whole else self.get.start

    @property
    def verified(self):
        """Whether the body was compared with a checksum."""
        return self.get.algorithm != NO_CHECKSUM

    @property
    def described_at_s(self):
        """When the headers arrived, by the monotonic clock; 0 if they did not."""
        return self.get.described_at_s

    @property
    def ended_at_s(self):
        """When the request ended, by the monotonic clock."""
        return self.get.ended_at_s

    def cancel(self):
        """Cancel the request unless it has ended."""
        with nogil:
            cancel(self.get)

    def headers(self):
        """Return names and values of the answer's headers, once they have arrived."""
        return self._headers(False)

    def description(self):
        """Return those headers that describe the object besides its size and ETag."""
        return self._headers(True)

    cdef list _headers(self, bint describing):
        cdef const char* position = self.get.headers
        cdef const char* stop = position + self.get.headers_size
        cdef const char* name
        cdef list headers = []
        cdef uint32_t name_size, size
        while position < stop:
            memcpy(&name_size, position, 4)
            name = position + 4
            position = name + name_size
            memcpy(&size, position, 4)
            position += 4
            if not describing or described_by(name, name_size) != NOTHING:
                headers.append((
                    PyUnicode_DecodeUTF8(name, name_size, b"surrogateescape"),
                    PyUnicode_DecodeUTF8(position, size, b"surrogateescape"),
                ))
            position += size
        return headers

    def error_body(self):
        """Return the body of a refusal; None if there is none."""
        if self.get.error_body == NULL:
            return None
        return self.get.error_body[:self.get.error_body_size]

    def body(self):
        """Return a view of the bytes that have arrived, as many as were requested at most."""
        cdef uint64_t size = min(self.get.received, self.get.size)
        if self.get.block == NULL:
            raise ValueError("the body was released")
        return memoryview(view_of(self.get.block, size))

    def accept(self):
        """Declare the body right: the arrival is READY, unless it has ended."""
        end(self.get.arrival, READY, self.get.block)

    def release(self):
        """Release the owner and the body, which the arrival keeps if it is READY."""
        cdef Block* block = self.get.block
        self.owner = None
        self.client = None
        self.get.block = NULL
        if block != NULL:
            release_block(block)


cdef class NativeGets:
    """The GETs of one client. `functions` are the addresses from `symbols`.

    Small ones use `connections`, if one is idle.
    """

    cdef object client
    cdef Connections connections
    cdef void* native
    cdef Queue* queue

    def __cinit__(self, functions, client, Connections connections not None):
        set_addresses(functions)
        self.client = client
        self.connections = connections
        self.native = first_field(client._binding, b"aws_s3_client")
        self.queue = <Queue*>malloc(sizeof(Queue))
        if self.queue == NULL:
            raise MemoryError()
        memset(self.queue, 0, sizeof(Queue))
        self.queue.refs = 1
        pthread_mutex_init(&self.queue.mutex, NULL)
        init_cond(&self.queue.changed)

    def __dealloc__(self):
        if self.queue != NULL:
            pthread_mutex_lock(&self.queue.mutex)
            self.queue.closed = True
            pthread_mutex_unlock(&self.queue.mutex)
            free_gone(self.queue)
            release_queue(self.queue)

    def get(
        self, Arrival sink not None, bytes path not None, list headers not None, signing, *,
        uint64_t start, uint64_t size, uint64_t object_size, bytes etag not None,
        bint whole, bint verify, bint single, owner,
    ):
        """Send a GET for [start, start + size) of the object, or with `whole` without a range.

        `headers` are all headers. `signing` is an AwsSigningConfig, or None. The answer must have
        `etag` and `object_size`. `single`: the ETag is not of a multipart upload. Raises
        TransportFault if the CRT refuses the request, or if there is no memory for the body.
        """
        cdef Get* get = new_get(
            self.queue, sink.arrival, start, size, PyBytes_AS_STRING(etag), len(etag)
        )
        if get == NULL:
            raise TransportFault(f"there is no memory for {size} bytes")
        cdef NativeGet it = NativeGet.__new__(NativeGet)
        it.get = get
        it.client = self.client
        it.owner = owner
        get.object_size = object_size
        get.whole = whole
        get.verify = verify
        get.single = single
        cdef wanted_t wanted
        wanted.path = cursor_of(path)
        wanted.signing = config_of(signing)
        wanted.headers = headers_of(headers)
        wanted.headers_count = len(headers)
        wanted.range = NULL
        cdef bint sent
        get.object = <void*>it
        Py_INCREF(it)
        with nogil:
            sent = dispatch(self.native, self.connections.pool, get, &wanted)
        free(wanted.headers)
        if not sent:
            Py_DECREF(it)
            it.release()
            error = crt.error_str(crt.last_error()).decode()
            raise TransportFault(f"the request cannot be sent: {error}")
        return it

    def source(
        self, bytes path not None, list headers not None, signing, *,
        uint64_t object_size, bytes etag not None, bint verify, bint single, bint matches,
    ):
        """Return the source of one version's bytes for reads in the lane. Arguments: see `get`.

        `headers` are all headers but Range; `matches`: they require the version.
        """
        free_gone(self.queue)
        cdef Template* template = new_template()
        if template == NULL:
            raise MemoryError()
        cdef LaneSource it = LaneSource.__new__(LaneSource)
        cdef tuple kept = (self.client, self.connections, path, headers, signing, etag)
        template.client = self.native
        template.queue = self.queue
        template.pool = self.connections.pool
        template.signing = config_of(signing)
        template.path = cursor_of(path)
        template.headers = headers_of(headers)
        template.headers_count = len(headers)
        template.etag = PyBytes_AS_STRING(etag)
        template.etag_size = len(etag)
        template.object_size = object_size
        template.verify = verify
        template.single = single
        template.matches = matches
        atomic_add(&self.queue.refs, 1)
        template.kept = <void*>kept
        Py_INCREF(kept)
        it.source = &template.source
        return it

    def wait(self, double timeout_s):
        """Wait up to `timeout_s` seconds for ended gets that need Python; return whether any do."""
        cdef timespec until = time_of(now_s() + timeout_s)
        cdef bint urgent
        with nogil:
            pthread_mutex_lock(&self.queue.mutex)
            while not self.queue.urgent:
                if pthread_cond_timedwait(&self.queue.changed, &self.queue.mutex, &until) != 0:
                    break
            urgent = self.queue.urgent
            pthread_mutex_unlock(&self.queue.mutex)
        return urgent

    def take(self):
        """Return the gets that have ended since the last call, those in the lane, too."""
        cdef list taken = []
        cdef NativeGet it
        cdef Get* get
        cdef Get* following
        free_gone(self.queue)
        with nogil:
            pthread_mutex_lock(&self.queue.mutex)
            get = self.queue.first
            self.queue.first = NULL
            self.queue.last = NULL
            self.queue.waiting = 0
            self.queue.urgent = False
            pthread_mutex_unlock(&self.queue.mutex)
        while get != NULL:
            following = get.next
            if get.object == NULL:
                it = NativeGet.__new__(NativeGet)
                it.get = get  # with the CRT's reference
            else:
                it = <NativeGet>get.object
                Py_DECREF(it)
                release_get(get)  # the CRT's
            taken.append(it)
            get = following
        return taken


cdef aws_http_header* headers_of(list headers) except NULL:
    """Return an array of headers, to be freed. It points into the bytes of `headers`."""
    cdef aws_http_header* fields = <aws_http_header*>malloc(
        (len(headers) + 1) * sizeof(aws_http_header)
    )
    cdef bytes name, value
    if fields == NULL:
        raise MemoryError()
    memset(fields, 0, (len(headers) + 1) * sizeof(aws_http_header))
    for index, (name, value) in enumerate(headers):
        fields[<Py_ssize_t>index].name = cursor_of(name)
        fields[<Py_ssize_t>index].value = cursor_of(value)
    return fields


cdef const void* config_of(signing) except? NULL:
    """Return the CRT's configuration in an AwsSigningConfig; NULL for None."""
    if signing is None:
        return NULL
    return PyCapsule_GetPointer(signing._binding, b"aws_signing_config_aws")


cdef void* first_field(capsule, const char* name) except NULL:
    """Return the first field of awscrt's own object in a capsule: the CRT's object."""
    cdef void** binding = <void**>PyCapsule_GetPointer(capsule, name)
    if binding[0] == NULL:
        raise ValueError("the client has ended")
    return binding[0]
