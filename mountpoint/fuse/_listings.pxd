# Answers to READDIRPLUS, made of libfuse's answers to READDIR.

cdef char* merge(
    const char* listing, size_t size, const char* attributes, size_t attributes_size,
    size_t* merged_size
) noexcept nogil
