"""Types of the extension module; its docstrings are in `_format.pyx`."""

BLOCK_BYTES: int
SMALL_BYTES: int
SMALL: int
MAX_IDENTITY_BYTES: int
MAGIC: bytes

Data = bytes | bytearray | memoryview

def trailer_bytes(identity: bytes, size: int) -> int: ...
def trailer_of(identity: bytes, number: int, data: Data) -> bytes: ...
def is_block(identity: bytes, number: int, size: int, content: Data) -> bool: ...
def crc32c_of(data: Data, by_table: bool = False) -> int: ...
