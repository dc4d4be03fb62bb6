# Answers to the kernel without the interpreter.

from mountpoint.fuse._protocol cimport iovec

cdef bint answer_read(const char* request, int size, int descriptor) noexcept nogil
cdef int write_all(int descriptor, const iovec* pieces, size_t count) noexcept nogil
