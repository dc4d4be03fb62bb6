# The memory of bodies that arrive without the interpreter.
#
# Ownership: whoever calls `new_block` or `hold_block` owns one reference, and gives it back with
# `release_block`. The last release returns the memory to a free list. A block neither moves nor
# changes owner while it has references, so the CRT may write into it, and threads may answer the
# kernel from it, without any lock.

cdef struct Block:
    int refs            # atomic
    int size_class      # index of its free list; -1: from malloc
    size_t capacity     # bytes
    char* bytes
    Block* next         # in a free list


cdef Block* new_block(size_t size) noexcept nogil
cdef void hold_block(Block* block) noexcept nogil
cdef void release_block(Block* block) noexcept nogil


cdef class BlockView:
    cdef Block* block
    cdef Py_ssize_t size

cdef BlockView view_of(Block* block, Py_ssize_t size)
