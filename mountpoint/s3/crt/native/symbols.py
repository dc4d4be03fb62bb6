"""The addresses of the CRT's C functions in the loaded awscrt.

Where the CRT is a set of shared libraries (conda, distributions), dlsym finds its functions.
awscrt's wheels contain the CRT in one extension, `_awscrt`, which hides them from dlsym. But its
file keeps a full symbol table: each function's address relative to where the file is loaded.
`PyInit__awscrt` is in that table and is also exported, because Python needs it; the difference
between its two addresses is where the file was loaded.

The functions' parameters and the structs that they take are facts of one version of awscrt and of
the aws-c-s3 in it; `_crt.pxd` has those of VERSIONS and S3_VERSIONS. Both are checked, because one
version of awscrt is also built with other versions of a shared aws-c-s3.
"""

import contextlib
import ctypes
import os
import platform
import struct
import sys
from collections.abc import Sequence
from typing import BinaryIO

import _awscrt
import awscrt

#: The functions that this package calls, in the order of `Functions` in `_crt.pxd`.
FUNCTIONS = (
    "aws_default_allocator",
    "aws_error_name",
    "aws_error_str",
    "aws_last_error",
    "aws_http_message_new_request",
    "aws_http_message_set_request_method",
    "aws_http_message_set_request_path",
    "aws_http_message_add_header",
    "aws_http_message_release",
    "aws_http_headers_count",
    "aws_http_headers_get_index",
    "aws_s3_client_make_meta_request",
    "aws_s3_meta_request_cancel",
    "aws_s3_meta_request_release",
    "aws_checksums_crc32_ex",
    "aws_checksums_crc32c_ex",
    "aws_checksums_crc64nvme_ex",
    "aws_signable_new_http_request",
    "aws_signable_destroy",
    "aws_sign_request_aws",
    "aws_apply_signing_result_to_http_request",
    "aws_date_time_init_epoch_secs",
    "aws_http_connection_make_request",
    "aws_http_stream_activate",
    "aws_http_stream_release",
    "aws_http_stream_get_incoming_response_status",
    "aws_http_connection_close",
    "aws_http_connection_new_requests_allowed",
)
#: The versions of awscrt with the layouts of `_crt.pxd`, and those of their aws-c-s3. To add one,
#: run tests/unit/s3/crt/native/test_layouts.py with its wheels. awscrt 0.38.0 has no `recv_buffer`.
VERSIONS = frozenset({"0.38.1"})
S3_VERSIONS = frozenset({"1.5.1"})
#: A constant in aws-c-s3 (private/s3_util.h): an aws_byte_cursor, a length and a pointer.
S3_VERSION = "g_s3_client_version"
#: Exported by every build of `_awscrt`.
ANCHOR = "PyInit__awscrt"
MACHINES = ("x86_64", "aarch64")

# Of elf(5): what is read of Elf64_Ehdr, Elf64_Shdr and Elf64_Sym.
ELF64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
FILE_HEADER = struct.Struct("<6s34xQ10xHH2x")  # e_ident, e_shoff, e_shentsize, e_shnum
SECTION = struct.Struct("<4xI16xQQI12xQ")  # sh_type, sh_offset, sh_size, sh_link, sh_entsize
SYMBOL = struct.Struct("<IBxHQ8x")  # st_name, st_info, st_shndx, st_value
SHT_SYMTAB, SHT_STRTAB = 2, 3
SHN_UNDEF = 0
STT_OBJECT, STT_FUNC = 1, 2


class Unavailable(Exception):
    """The functions cannot be used. The message completes "the native plane is not used: "."""


def addresses() -> tuple[int, ...]:
    """Return the addresses of FUNCTIONS, or raise Unavailable. Takes some 5 ms."""
    bits, machine = 8 * struct.calcsize("P"), platform.machine()
    if (bits, sys.platform) != (64, "linux") or machine not in MACHINES:
        raise Unavailable(
            f"it needs 64-bit linux on {' or '.join(MACHINES)},"
            f" and this is {bits}-bit {sys.platform} on {machine}"
        )
    _check("awscrt", getattr(awscrt, "__version__", ""), VERSIONS)
    path = getattr(_awscrt, "__file__", "")
    *functions, s3_version = find(path, ANCHOR, (*FUNCTIONS, S3_VERSION))
    length, text = (ctypes.c_size_t * 2).from_address(s3_version)
    _check("aws-c-s3", ctypes.string_at(text, length).decode("utf-8", "replace"), S3_VERSIONS)
    return tuple(functions)


def is_bundled() -> bool:
    """Whether awscrt has its own copies of the CRT's libraries: its version says theirs."""
    library = ctypes.CDLL(getattr(_awscrt, "__file__", ""), mode=os.RTLD_NOLOAD)
    return not hasattr(library, FUNCTIONS[0])


def _check(library: str, version: str, known: frozenset[str]) -> None:
    if version not in known:
        raise Unavailable(f"it knows {library} {', '.join(sorted(known))}, and this is {version}")


def find(path: str, anchor: str, names: Sequence[str]) -> tuple[int, ...]:
    """Return the addresses of functions or variables in a loaded library, or raise Unavailable.

    The library exports the function `anchor`. What dlsym finds may be in its dependencies.
    """
    try:
        library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
        with contextlib.suppress(AttributeError):
            return tuple(_address(library, name) for name in names)
        loaded = _address(library, anchor)
        with open(path, "rb") as file:
            values = symbol_values(file, (anchor, *names))
    except (OSError, AttributeError) as error:
        raise Unavailable(f"awscrt's library cannot be searched ({error})") from None
    base = loaded - values[anchor]
    return tuple(base + values[name] for name in names)


def _address(library: ctypes.CDLL, name: str) -> int:
    """Return what dlsym returns; raises AttributeError where it finds nothing."""
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def symbol_values(file: BinaryIO, names: Sequence[str]) -> dict[str, int]:
    """Return the values of functions or variables in an ELF file's symbol table.

    Raises Unavailable if one is missing, or if the file is malformed.
    """
    ident, offset, entry_bytes, count = FILE_HEADER.unpack(_read(file, 0, FILE_HEADER.size))
    if ident != ELF64_LITTLE_ENDIAN or (count and entry_bytes != SECTION.size):
        raise _malformed()
    sections = list(SECTION.iter_unpack(_read(file, offset, count * SECTION.size)))
    table = next((section for section in sections if section[0] == SHT_SYMTAB), None)
    if table is None:
        raise Unavailable("awscrt's library has no symbol table")
    _, offset, length, strings, entry_bytes = table
    if entry_bytes != SYMBOL.size or length % SYMBOL.size or strings >= count:
        raise _malformed()
    symbols = SYMBOL.iter_unpack(_read(file, offset, length))
    kind, offset, length, _, _ = sections[strings]
    if kind != SHT_STRTAB:
        raise _malformed()
    wanted = _name_offsets(_read(file, offset, length), names)

    values: dict[str, int] = {}
    for name_offset, info, section, value in symbols:
        if (
            name_offset in wanted
            and section != SHN_UNDEF
            and info & 0xF in (STT_OBJECT, STT_FUNC)
            and values.setdefault(wanted[name_offset], value) != value
        ):
            raise Unavailable(f"awscrt's library has two symbols {wanted[name_offset]}")
    for name in names:
        if name not in values:
            raise Unavailable(f"awscrt's library has no symbol {name}")
    return values


def _name_offsets(strings: bytes, names: Sequence[str]) -> dict[int, str]:
    """Return where names are in a string table. A name may be the end of a longer one."""
    offsets = {}
    for name in names:
        text = name.encode() + b"\0"
        at = strings.find(text)
        while at >= 0:
            offsets[at] = name
            at = strings.find(text, at + 1)
    return offsets


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    """Read a part of a file, or raise Unavailable if the file does not have all of it."""
    if offset + length <= file.seek(0, os.SEEK_END):
        file.seek(offset)
        part = file.read(length)
        if len(part) == length:
            return part
    raise _malformed()


def _malformed() -> Unavailable:
    return Unavailable("awscrt's library is malformed")
