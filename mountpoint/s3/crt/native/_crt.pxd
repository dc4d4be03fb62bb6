# Layouts and types of the CRT's C functions that this package calls, for the versions in `symbols`.
#
# Source: the headers in awscrt's source archive (aws-c-auth, aws-c-common, aws-c-http, aws-c-s3). A test compares
# every layout with the debug information of the installed wheel. C's enums are ints here, and its
# bools are unsigned chars.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

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

ctypedef int (*http_headers_fn)(
    void*, int, const aws_http_header*, size_t, void*
) noexcept nogil
ctypedef int (*http_headers_done_fn)(void*, int, void*) noexcept nogil
ctypedef int (*http_body_fn)(void*, const aws_byte_cursor*, void*) noexcept nogil
ctypedef void (*http_complete_fn)(void*, int, void*) noexcept nogil

cdef struct aws_http_make_request_options:
    size_t self_size
    void* request
    void* user_data
    http_headers_fn on_response_headers
    http_headers_done_fn on_response_header_block_done
    http_body_fn on_response_body
    void* on_metrics
    void* on_h2_remote_end_stream
    http_complete_fn on_complete
    void* on_destroy
    unsigned char use_manual_data_writes
    unsigned char http2_use_manual_data_writes
    uint64_t response_first_byte_timeout_ms

cdef struct tm:
    int tm_sec
    int tm_min
    int tm_hour
    int tm_mday
    int tm_mon
    int tm_year
    int tm_wday
    int tm_yday
    int tm_isdst
    int64_t tm_gmtoff
    void* tm_zone

cdef struct aws_date_time:
    int64_t timestamp
    uint16_t milliseconds
    char tz[6]
    tm gmt_time
    tm local_time
    unsigned char utc_assumed

cdef struct aws_signing_config_aws:
    int config_type
    int algorithm
    int signature_type
    aws_byte_cursor region
    aws_byte_cursor service
    aws_date_time date
    void* should_sign_header
    void* should_sign_header_ud
    uint32_t flags
    aws_byte_cursor signed_body_value
    int signed_body_header
    void* credentials
    void* credentials_provider
    uint64_t expiration_in_seconds

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
    void* (*new_signable)(void*, void*) noexcept nogil
    void (*signable_destroy)(void*) noexcept nogil
    int (*sign_request)(void*, const void*, const void*, void*, void*) noexcept nogil
    int (*apply_signing_result)(void*, void*, const void*) noexcept nogil
    void (*date_time_init)(aws_date_time*, double) noexcept nogil
    void* (*http_make_request)(void*, const aws_http_make_request_options*) noexcept nogil
    int (*stream_activate)(void*) noexcept nogil
    void (*stream_release)(void*) noexcept nogil
    int (*response_status)(const void*, int*) noexcept nogil
    void (*connection_close)(void*) noexcept nogil
    unsigned char (*new_requests_allowed)(const void*) noexcept nogil
