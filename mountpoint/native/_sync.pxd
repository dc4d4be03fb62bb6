# Mutexes, waits and reference counts of the code that runs without the interpreter.

from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from *:
    """
    #define atomic_add(pointer, amount) __atomic_add_fetch(pointer, amount, __ATOMIC_ACQ_REL)
    """
    int atomic_add(int*, int) nogil  # returns the sum

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_cond_init(pthread_cond_t*, pthread_condattr_t*)
    int pthread_cond_destroy(pthread_cond_t*)
    int pthread_cond_signal(pthread_cond_t*)
    int pthread_cond_broadcast(pthread_cond_t*)
    int pthread_cond_timedwait(pthread_cond_t*, pthread_mutex_t*, timespec*)
    int pthread_condattr_init(pthread_condattr_t*)
    int pthread_condattr_destroy(pthread_condattr_t*)
    int pthread_condattr_setclock(pthread_condattr_t*, int)


cdef inline double now_s() noexcept nogil:
    """Return the seconds of the monotonic clock."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef inline void init_cond(pthread_cond_t* cond) noexcept nogil:
    """Initialize a condition whose waits end by the monotonic clock."""
    cdef pthread_condattr_t attributes
    pthread_condattr_init(&attributes)
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
    pthread_cond_init(cond, &attributes)
    pthread_condattr_destroy(&attributes)


cdef inline timespec time_of(double moment_s) noexcept nogil:
    """Return a moment of the monotonic clock, in seconds, as a wait takes it."""
    cdef timespec moment
    moment.tv_sec = <long>moment_s
    moment.tv_nsec = <long>((moment_s - moment.tv_sec) * 1e9)
    return moment
