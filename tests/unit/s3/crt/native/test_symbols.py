"""The CRT's functions are found in the loaded awscrt; where they are not, the reason is said."""

import ctypes
import functools
import io
import mmap
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _awscrt
import awscrt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountpoint.s3.crt.native import symbols
from mountpoint.s3.crt.native.symbols import Unavailable

AWSCRT = Path(_awscrt.__file__)
DIGITS = b"123456789"


class Cursor(ctypes.Structure):
    """struct aws_byte_cursor"""

    _fields_ = (("length", ctypes.c_size_t), ("pointer", ctypes.POINTER(ctypes.c_char)))


class Header(ctypes.Structure):
    """struct aws_http_header"""

    _fields_ = (("name", Cursor), ("value", Cursor), ("compression", ctypes.c_int))


def cursor(text: bytes) -> Cursor:
    """Return a cursor over the text."""
    return Cursor(len(text), ctypes.create_string_buffer(text))


@functools.cache
def functions() -> dict[str, int]:
    """Return the addresses by name."""
    return dict(zip(symbols.FUNCTIONS, symbols.addresses(), strict=True))


def call(name: str, result: Any, *arguments: Any) -> Any:
    """Call a function of the CRT."""
    types = (type(argument) for argument in arguments)
    return ctypes.CFUNCTYPE(result, *types)(functions()[name])(*arguments)


def test_errors_have_names() -> None:
    """An error number has a name and a text."""
    assert call("aws_error_name", ctypes.c_char_p, ctypes.c_int(0)) == b"AWS_ERROR_SUCCESS"
    assert call("aws_error_str", ctypes.c_char_p, ctypes.c_int(0)) == b"Success."


@pytest.mark.parametrize(
    ("name", "type_", "expected"),
    [
        ("aws_checksums_crc32_ex", ctypes.c_uint32, 0xCBF43926),
        ("aws_checksums_crc32c_ex", ctypes.c_uint32, 0xE3069283),
        ("aws_checksums_crc64nvme_ex", ctypes.c_uint64, 0xAE8B14860A799888),
    ],
)
def test_checksums(name: str, type_: type, expected: int) -> None:
    """Each checksum is that of its algorithm, also in two steps."""
    digits, length = ctypes.c_char_p(DIGITS), ctypes.c_size_t
    assert call(name, type_, digits, length(9), type_(0)) == expected
    start = call(name, type_, digits, length(4), type_(0))
    rest = ctypes.c_char_p(DIGITS[4:])
    assert call(name, type_, rest, length(5), type_(start)) == expected


def test_messages() -> None:
    """A message keeps the header that is added, and an index past it is an error."""
    allocator = ctypes.c_void_p(call("aws_default_allocator", ctypes.c_void_p))
    message = ctypes.c_void_p(call("aws_http_message_new_request", ctypes.c_void_p, allocator))
    for part, text in (("method", b"GET"), ("path", b"/key")):
        name = f"aws_http_message_set_request_{part}"
        assert call(name, ctypes.c_int, message, cursor(text)) == 0
    header = Header(cursor(b"Range"), cursor(b"bytes=0-9"), 0)
    assert call("aws_http_message_add_header", ctypes.c_int, message, header) == 0

    names = ("aws_http_message_get_headers",)
    (get_headers,) = symbols.find(str(AWSCRT), symbols.ANCHOR, names)
    pointers = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    headers = ctypes.c_void_p(pointers(get_headers)(message))
    assert call("aws_http_headers_count", ctypes.c_size_t, headers) == 1
    found = Header()
    get = functools.partial(call, "aws_http_headers_get_index", ctypes.c_int, headers)
    assert get(ctypes.c_size_t(0), ctypes.pointer(found)) == 0
    assert found.name.pointer[: found.name.length] == b"Range"
    assert found.value.pointer[: found.value.length] == b"bytes=0-9"
    assert get(ctypes.c_size_t(1), ctypes.pointer(found)) == -1
    error = ctypes.c_int(call("aws_last_error", ctypes.c_int))
    assert call("aws_error_name", ctypes.c_char_p, error) == b"AWS_ERROR_INVALID_INDEX"
    assert call("aws_http_message_release", ctypes.c_void_p, message) is None


def test_release_of_nothing() -> None:
    """aws_s3_meta_request_release accepts NULL, as its header says."""
    nothing = ctypes.c_void_p(None)
    assert call("aws_s3_meta_request_release", ctypes.c_void_p, nothing) is None


def test_hidden_functions(tmp_path: Path) -> None:
    """The address is right where the first segment is not at 0, and with other mappings."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    source, library = tmp_path / "lib.c", tmp_path / "lib.so"
    source.write_text(
        '__attribute__((visibility("hidden"), noinline)) int hidden(void) { return 42; }\n'
        "int anchor(void) { return hidden(); }\n"
    )
    layout = ("-shared", "-fPIC", "-Wl,-Ttext-segment=0x200000")
    subprocess.run([compiler, *layout, source, "-o", library], check=True)
    loaded = ctypes.CDLL(str(library))
    with pytest.raises(AttributeError):
        _ = loaded.hidden
    with library.open("rb") as file:
        assert symbols.symbol_values(file, ["hidden"])["hidden"] >= 0x200000
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
            (address,) = symbols.find(str(library), "anchor", ["hidden"])
    assert ctypes.CFUNCTYPE(ctypes.c_int)(address)() == 42


def test_functions_of_shared_libraries() -> None:
    """Exported functions of the library and of its dependencies are found without the file."""
    exported, getpid = symbols.find(str(AWSCRT), "no_anchor", ["PyInit__awscrt", "getpid"])
    with AWSCRT.open("rb") as file:
        values = symbols.symbol_values(file, ["PyInit__awscrt", symbols.FUNCTIONS[0]])
    base = functions()[symbols.FUNCTIONS[0]] - values[symbols.FUNCTIONS[0]]
    assert exported == base + values["PyInit__awscrt"]
    assert ctypes.CFUNCTYPE(ctypes.c_int)(getpid)() == os.getpid()


@pytest.mark.parametrize("version", ["0.38.0", "1.0.0.dev0", None])
def test_unknown_version(version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown version of awscrt is not used."""
    monkeypatch.setattr(awscrt, "__version__", version)
    with pytest.raises(Unavailable, match=rf"^it knows awscrt 0\.38\.1, and this is {version}$"):
        symbols.addresses()


def test_unknown_version_of_the_s3_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A known awscrt that was built with another aws-c-s3 is not used."""
    monkeypatch.setattr(symbols, "S3_VERSIONS", frozenset({"1.3.0", "1.6.0"}))
    reason = r"^it knows aws-c-s3 1\.3\.0, 1\.6\.0, and this is 1\.5\.1$"
    with pytest.raises(Unavailable, match=reason):
        symbols.addresses()


def test_other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only 64-bit Linux on two processors is known."""
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    reason = "^it needs 64-bit linux on x86_64 or aarch64, and this is 64-bit linux on riscv64$"
    with pytest.raises(Unavailable, match=reason):
        symbols.addresses()


@pytest.mark.parametrize(
    ("path", "anchor", "name", "reason"),
    [
        (AWSCRT, symbols.ANCHOR, "aws_nothing", "has no symbol aws_nothing"),
        (AWSCRT, "nothing", symbols.FUNCTIONS[0], "undefined symbol: nothing|not found: nothing"),
        (Path("/none.so"), symbols.ANCHOR, symbols.FUNCTIONS[0], "cannot be searched"),
        (Path(), symbols.ANCHOR, symbols.FUNCTIONS[0], "cannot be searched"),
    ],
    ids=["function", "anchor", "file", "directory"],
)
def test_missing(path: Path, anchor: str, name: str, reason: str) -> None:
    """What is missing is a reason, not a failure."""
    with pytest.raises(Unavailable, match=reason):
        symbols.find(str(path), anchor, [name])


# The file


def section_headers(content: bytes) -> range:
    """Return where an ELF file's section headers start."""
    _, offset, size, count = symbols.FILE_HEADER.unpack_from(content)
    return range(offset, offset + size * count, size)


def without_symbols(content: bytes) -> bytes:
    """Return the file with another type for the symbol table's section: strip(1) removes it."""
    patched = bytearray(content)
    for at in section_headers(content):
        if struct.unpack_from("<I", content, at + 4)[0] == symbols.SHT_SYMTAB:
            struct.pack_into("<I", patched, at + 4, 0)
    return bytes(patched)


def without_sections(content: bytes) -> bytes:
    """Return the file without section headers."""
    return content[:40] + bytes(8) + content[48:58] + bytes(6) + content[64:]


@pytest.mark.parametrize("strip", [without_symbols, without_sections])
def test_stripped(strip: Any, tmp_path: Path) -> None:
    """A stripped awscrt works, and is not used natively."""
    (tmp_path / AWSCRT.name).write_bytes(strip(AWSCRT.read_bytes()))
    program = "from mountpoint.s3.crt.native import symbols\nsymbols.addresses()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.endswith("Unavailable: awscrt's library has no symbol table\n"), done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[io.BufferedRandom]:
    """Copy awscrt's library, to change its section headers."""
    path = tmp_path_factory.mktemp("symbols") / AWSCRT.name
    shutil.copyfile(AWSCRT, path)
    with path.open("r+b") as file:
        yield file


@pytest.mark.slow
@given(st.data())
@settings(deadline=None, max_examples=60)
def test_damaged_section_headers(copy: io.BufferedRandom, data: st.DataObject) -> None:
    """Damage never gives other values, nor another exception."""
    names = (symbols.ANCHOR, *symbols.FUNCTIONS, symbols.S3_VERSION)
    with AWSCRT.open("rb") as file:
        right = symbols.symbol_values(file, names)
        file.seek(0)
        headers = section_headers(file.read(symbols.FILE_HEADER.size))
    file_header = st.integers(0, symbols.FILE_HEADER.size - 1)
    last_headers = st.integers(headers[-3], headers[-1] + 63)  # .symtab and its strings
    places = st.one_of(file_header, st.integers(headers[0], headers[-1] + 63), last_headers)
    bits = data.draw(st.lists(st.tuples(places, st.integers(0, 7)), min_size=1, max_size=4))

    def flip() -> None:
        for place, bit in bits:
            copy.seek(place)
            (byte,) = copy.read(1)
            copy.seek(place)
            copy.write(bytes([byte ^ 1 << bit]))

    flip()
    try:
        assert symbols.symbol_values(copy, names) == right
    except Unavailable:
        pass
    finally:
        flip()


def small_file(*entries: tuple[str, int]) -> bytes:
    """Return an ELF file with only a symbol table: functions with their values."""
    header, strings = symbols.FILE_HEADER.size, b"\0"
    table = bytes(symbols.SYMBOL.size)
    for name, value in entries:
        table += symbols.SYMBOL.pack(len(strings), symbols.STT_FUNC, 1, value)
        strings += name.encode() + b"\0"
    sections = (
        (0, 0, 0, 0, 0),
        (symbols.SHT_SYMTAB, header, len(table), 2, symbols.SYMBOL.size),
        (symbols.SHT_STRTAB, header + len(table), len(strings), 0, 0),
    )
    end = header + len(table) + len(strings)
    head = (symbols.ELF64_LITTLE_ENDIAN, end, symbols.SECTION.size, len(sections))
    content = symbols.FILE_HEADER.pack(*head) + table + strings
    return content + b"".join(symbols.SECTION.pack(*section) for section in sections)


def test_names_are_whole() -> None:
    """A name is not found in the middle of another, and may be stored as another's end."""
    content = small_file(("get_error_name", 1), ("error_name", 2), ("error", 3), ("error", 3))
    names = ["error", "error_name"]
    assert symbols.symbol_values(io.BytesIO(content), names) == {"error": 3, "error_name": 2}
    table = symbols.FILE_HEADER.size + symbols.SYMBOL.size
    shared = bytearray(content)
    struct.pack_into("<I", shared, table, 5)  # past "get_" in the strings
    with pytest.raises(Unavailable, match="has two symbols error_name"):
        symbols.symbol_values(io.BytesIO(shared), names)
    struct.pack_into("<Q", shared, table + 8, 2)
    assert symbols.symbol_values(io.BytesIO(shared), names) == {"error": 3, "error_name": 2}


def test_undefined() -> None:
    """A function that the file only calls is not one that it contains."""
    content = bytearray(small_file(("error", 3)))
    section = symbols.FILE_HEADER.size + symbols.SYMBOL.size + 6
    struct.pack_into("<H", content, section, symbols.SHN_UNDEF)
    with pytest.raises(Unavailable, match="has no symbol error"):
        symbols.symbol_values(io.BytesIO(content), ["error"])


def test_every_truncation_and_every_flipped_bit() -> None:
    """A file that was shortened, or has one wrong bit, gives no other exception."""
    content = small_file(("error", 3), ("error_name", 2))
    for length in range(len(content)):
        with pytest.raises(Unavailable, match="is malformed"):
            symbols.symbol_values(io.BytesIO(content[:length]), ["error", "error_name"])
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            symbols.symbol_values(io.BytesIO(flipped), ["error", "error_name"])
        except Unavailable:
            continue
