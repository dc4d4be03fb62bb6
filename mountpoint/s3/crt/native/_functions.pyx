"""The table of the CRT's C functions (`_crt.pxd`), whose addresses are from `symbols`."""

from mountpoint.s3.crt.native._crt cimport Functions


def set_addresses(addresses):
    """Fill the table. Raises ValueError for another number of addresses."""
    cdef void** fields = <void**>&crt
    cdef size_t address
    cdef int index
    if len(addresses) * sizeof(void*) != sizeof(Functions):
        raise ValueError(f"{len(addresses)} functions")
    for index, address in enumerate(addresses):
        fields[index] = <void*>address
