from mountpoint.s3.crt.native._crt cimport Functions

# Set once, before the first request.
cdef Functions crt
