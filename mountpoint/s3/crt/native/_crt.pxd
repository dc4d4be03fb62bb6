# Layouts and types of the CRT's C functions that `_gets` and `_requests` call, for the versions in `symbols`.
#
# Source: the headers in awscrt's source archive (aws-c-common, aws-c-http, aws-c-s3). A test compares
# every layout with the debug information of the installed wheel. C's enums are ints here, and its
# bools are unsigned chars.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef struct aws_byte_cursor:
    size_t len
    const uint8_t* ptr

cdef struct aws_byte_buf:
    size_t len
    uint8_t* buffer
    size_t capacity
    void* allocator

cdef struct aws_http_header:
    aws_byte_cursor name
    aws_byte_cursor value
    int compression

cdef struct aws_s3_meta_request_progress:
    uint64_t bytes_transferred
    uint64_t content_length

cdef struct aws_s3_meta_request_result:
    void* error_response_headers
    aws_byte_buf* error_response_body
    void* error_response_operation_name
    int response_status
    unsigned char did_validate
    int validation_algorithm
    int error_code

ctypedef int (*headers_callback_fn)(void*, const void*, int, void*) noexcept nogil
ctypedef int (*body_callback_fn)(void*, const aws_byte_cursor*, uint64_t, void*) noexcept nogil
ctypedef void (*finish_callback_fn)(void*, const aws_s3_meta_request_result*, void*) noexcept nogil
ctypedef void (*progress_callback_fn)(
    void*, const aws_s3_meta_request_progress*, void*
) noexcept nogil

cdef struct aws_s3_meta_request_options:
    int type
    aws_byte_cursor operation_name
    const void* signing_config
    void* message
    aws_byte_cursor recv_filepath
    int recv_file_option
    uint64_t recv_file_position
    unsigned char recv_file_delete_on_failure
    aws_byte_buf* recv_buffer
    int out_of_order_delivery
    aws_byte_cursor send_filepath
    void* fio_opts
    void* send_async_stream
    unsigned char send_using_async_writes
    aws_byte_cursor request_body
    const void* checksum_config
    uint64_t part_size
    unsigned char force_dynamic_part_size
    uint64_t multipart_upload_threshold
    void* user_data
    headers_callback_fn headers_callback
    body_callback_fn body_callback
    void* body_callback_ex
    finish_callback_fn finish_callback
    void* shutdown_callback
    progress_callback_fn progress_callback
    void* telemetry_callback
    void* upload_review_callback
    const void* endpoint
    void* resume_token
    const uint64_t* object_size_hint
    aws_byte_cursor copy_source_uri
    uint32_t max_active_connections_override
    void* on_error_resume_token

# The functions, in the order of `symbols.FUNCTIONS`.
cdef struct Functions:
    void* (*default_allocator)() noexcept nogil
    const char* (*error_name)(int) noexcept nogil
    const char* (*error_str)(int) noexcept nogil
    int (*last_error)() noexcept nogil
    void* (*new_request)(void*) noexcept nogil
    int (*set_method)(void*, aws_byte_cursor) noexcept nogil
    int (*set_path)(void*, aws_byte_cursor) noexcept nogil
    int (*add_header)(void*, aws_http_header) noexcept nogil
    void* (*release_message)(void*) noexcept nogil
    size_t (*count_headers)(const void*) noexcept nogil
    int (*get_index)(const void*, size_t, aws_http_header*) noexcept nogil
    void* (*make_request)(void*, const aws_s3_meta_request_options*) noexcept nogil
    void (*cancel)(void*) noexcept nogil
    void* (*release_request)(void*) noexcept nogil
    uint32_t (*crc32)(const uint8_t*, size_t, uint32_t) noexcept nogil
    uint32_t (*crc32c)(const uint8_t*, size_t, uint32_t) noexcept nogil
    uint64_t (*crc64nvme)(const uint8_t*, size_t, uint64_t) noexcept nogil
