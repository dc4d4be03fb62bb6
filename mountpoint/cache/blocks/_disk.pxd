# Reading and writing files, past the kernel's page cache where that is cheaper.
#
# The kernel keeps the mount's own pages of what programs read, so it need not keep the bytes of
# block files as well. Large reads take what the page cache has, and otherwise go past it (O_DIRECT);
# so do large writes. That costs a third of the CPU time. Both need memory, offsets and sizes in
# whole pages; everything else, and file systems without O_DIRECT, go through the page cache.

from libc.stddef cimport size_t

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    #define DISK_PAGE_BYTES 4096
    #define DISK_SHORT (-2)        /* the file ends before the bytes that were wanted */
    #define DISK_LARGE_BYTES (128 << 10)

    #ifndef RWF_NOWAIT
    #define RWF_NOWAIT 8
    #endif

    /* O_NOATIME: this module sets the times. Some file systems refuse it. O_NONBLOCK: the open of a
       pipe does not wait for its writer. */
    static int open_to_read(int directory, const char *path) {
        int flags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
        int file = openat(directory, path, flags | O_NOATIME);
        return file < 0 && errno == EPERM ? openat(directory, path, flags) : file;
    }

    static int is_regular(int file) {
        struct stat found;
        return fstat(file, &found) != 0 || S_ISREG(found.st_mode);
    }

    static int open_new(int directory, const char *path) {
        return openat(directory, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    }

    /* Rename a new file to a name that is not taken; EEXIST if it is. Some file systems replace what is
       there: NFS cannot do otherwise. */
    static int publish_file(int directory, const char *from, const char *to) {
    #ifdef SYS_renameat2
        if (syscall(SYS_renameat2, directory, from, directory, to, 1 /* RENAME_NOREPLACE */) == 0)
            return 0;
        if (errno != EINVAL && errno != ENOSYS)
            return errno;
    #endif
        return renameat(directory, from, directory, to) == 0 ? 0 : errno;
    }

    /* Set the time of the last use to now, if it is this many seconds older, or newer: a file server's
       clock may be ahead a little. */
    static void touch_file(int file, long apart_s) {
        struct stat found;
        struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, {.tv_nsec = UTIME_OMIT}};
        long now = time(NULL);
        if (fstat(file, &found) == 0 && labs(now - found.st_atime) > apart_s)
            futimens(file, times);
    }

    static int set_direct(int file, int direct) {
        int flags = fcntl(file, F_GETFL);
        return fcntl(file, F_SETFL, direct ? flags | O_DIRECT : flags & ~O_DIRECT) == 0;
    }

    /* The bytes of both pieces if they may go past the page cache, otherwise 0. */
    static ssize_t direct_bytes(const struct iovec *pieces, long long offset) {
        uintptr_t together = offset | (uintptr_t)pieces[0].iov_base | pieces[0].iov_len
            | (uintptr_t)pieces[1].iov_base | pieces[1].iov_len;
        size_t size = pieces[0].iov_len + pieces[1].iov_len;
        return together % DISK_PAGE_BYTES == 0 && size >= DISK_LARGE_BYTES ? (ssize_t)size : 0;
    }

    static int move_on(struct iovec *pieces, size_t done) {
        for (int index = 0; index < 2; index++) {
            size_t step = done < pieces[index].iov_len ? done : pieces[index].iov_len;
            pieces[index].iov_base = (char *)pieces[index].iov_base + step;
            pieces[index].iov_len -= step;
            done -= step;
        }
        return pieces[0].iov_len + pieces[1].iov_len == 0;
    }

    /* Read exactly these two pieces; the result is 0, DISK_SHORT or an errno. */
    static int read_pieces(int file, struct iovec pieces[2], long long offset) {
        ssize_t size = direct_bytes(pieces, offset), done;
        if (size > 0) {
    #ifdef SYS_preadv2
            if (syscall(SYS_preadv2, file, pieces, 2, (long)offset, 0L, RWF_NOWAIT) == size)
                return 0;
    #endif
            if (set_direct(file, 1)) {
                done = preadv(file, pieces, 2, offset);
                set_direct(file, 0);
                if (done == size)
                    return 0;
            }
        }
        for (;;) {
            done = preadv(file, pieces, 2, offset);
            if (done < 0 && errno != EINTR)
                return errno;
            if (done == 0)
                return DISK_SHORT;
            if (done > 0) {
                offset += done;
                if (move_on(pieces, done))
                    return 0;
            }
        }
    }

    /* Let the kernel begin to read; do not wait. */
    static void prefetch(int file, long long offset, size_t size) {
        posix_fadvise(file, offset, size, POSIX_FADV_WILLNEED);
    }

    static int read_piece(int file, void *into, size_t size, long long offset) {
        struct iovec pieces[2] = {{into, size}, {into, 0}};
        return size == 0 ? 0 : read_pieces(file, pieces, offset);
    }

    /* Write these two pieces to the start of a new file; the result is 0 or an errno. */
    static int write_pieces(int file, struct iovec pieces[2]) {
        ssize_t size = direct_bytes(pieces, 0), done;
        if (size > 0 && set_direct(file, 1)) {
            done = pwritev(file, pieces, 2, 0);
            if (done == size)
                return 0;
            set_direct(file, 0);
        }
        for (;;) {
            done = writev(file, pieces, 2);
            if (done < 0 && errno != EINTR)
                return errno;
            if (done > 0 && move_on(pieces, done))
                return 0;
        }
    }
    """
    struct iovec:
        void* iov_base
        size_t iov_len
    enum:
        DISK_PAGE_BYTES
        DISK_SHORT
    int open_to_read(int directory, const char* path) noexcept nogil
    int open_new(int directory, const char* path) noexcept nogil
    bint is_regular(int file) noexcept nogil
    int publish_file(int directory, const char* source, const char* to) noexcept nogil
    void touch_file(int file, long apart_s) noexcept nogil
    int read_pieces(int file, iovec* pieces, long long offset) noexcept nogil
    void prefetch(int file, long long offset, size_t size) noexcept nogil
    int read_piece(int file, void* into, size_t size, long long offset) noexcept nogil
    int write_pieces(int file, iovec* pieces) noexcept nogil
