# Answers to the kernel about prepared files, without the interpreter.

cdef bint answer_open(const char* request, int size, int descriptor) noexcept nogil
