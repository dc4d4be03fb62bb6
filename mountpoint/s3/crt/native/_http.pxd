from mountpoint.s3.crt.native._connections cimport Connection
from mountpoint.s3.crt.native._gets cimport Get

cdef bint send_on(
    Connection* connection, Get* get, void* message, const void* signing
) noexcept nogil
