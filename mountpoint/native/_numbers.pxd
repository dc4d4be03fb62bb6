# A short queue of numbers, in which threads without the interpreter tell Python of inodes or handles.

from libc.string cimport memcpy

from mountpoint.native._arrivals cimport shared_int
from mountpoint.native._sync cimport pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock

cdef enum:
    MAX_NUMBERS = 256

# At most `limit` numbers. The owner's mutex guards it; `count` is also read without it.
cdef struct numbers_t:
    unsigned long long numbers[MAX_NUMBERS]
    shared_int count
    int limit


cdef inline bint has_place(const numbers_t* queue) noexcept nogil:
    return queue.count < queue.limit


cdef inline void put(numbers_t* queue, unsigned long long number) noexcept nogil:
    """Queue a number (mutex held), unless the queue is full."""
    if has_place(queue):
        queue.numbers[queue.count] = number
        queue.count += 1


cdef inline list take_numbers(numbers_t* queue, pthread_mutex_t* mutex):
    """Empty a queue, which the mutex guards; return its numbers."""
    cdef numbers_t taken
    cdef int index
    if queue.count == 0:
        return []
    pthread_mutex_lock(mutex)
    memcpy(&taken, queue, sizeof(numbers_t))
    queue.count = 0
    pthread_mutex_unlock(mutex)
    return [taken.numbers[index] for index in range(taken.count)]
