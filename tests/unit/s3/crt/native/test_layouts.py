"""The layouts in `_crt.pxd` equal those in the debug information of the installed awscrt.

The wheels describe the structs that awscrt's own C files use, and most functions that they call.
The layouts of `_crt.pxd` are computed here by C's rules.
"""

import functools
import re
from collections.abc import Collection, Iterator, Mapping
from importlib import resources
from typing import NamedTuple

import _awscrt
import awscrt
import pytest
from elftools.dwarf.die import DIE
from elftools.elf.elffile import ELFFile

from mountpoint.s3.crt.native.symbols import FUNCTIONS, VERSIONS

#: Kinds of types: these, "pointer", a struct's name, "int8[6]": an array, or "int32(pointer,
#: uint64)": a pointer to a function. C's enums are int32, its bools uint8, and bit fields in a
#: struct without a name are a number.
SCALARS = {
    "void": "void",
    "char": "int8",
    "unsigned char": "uint8",
    "uint8_t": "uint8",
    "uint16_t": "uint16",
    "int64_t": "int64",
    "double": "float64",
    "int": "int32",
    "uint32_t": "uint32",
    "uint64_t": "uint64",
    "size_t": "uint64",
}
#: awscrt does not call these, so it has no prototypes of them; test_symbols.py calls them.
NOT_CALLED = {
    "aws_http_message_new_request",
    "aws_http_message_add_header",
    "aws_http_connection_new_requests_allowed",
}
#: awscrt's objects in capsules of which `_requests` uses the first field, and that field's kind.
BINDINGS = {
    "s3_client_binding": "pointer",
    "http_connection_binding": "pointer",
    "config_binding": "aws_signing_config_aws",
}
REQUEST_TYPES = "aws_s3_meta_request_type"

#: The names and kinds of the fields of structs.
Structs = dict[str, list[tuple[str, str]]]


class Field(NamedTuple):
    """A field of a struct."""

    name: str
    kind: str
    offset: int


class Layout(NamedTuple):
    """A struct."""

    size: int
    fields: tuple[Field, ...]


# The declarations


def parse(text: str) -> Structs:
    """Parse a pxd of structs and pointers to functions. The struct `Functions` is one of them."""
    text = re.sub(r"#.*", "", text)
    text = re.sub(r"\([^()]*\)", lambda found: re.sub(r"\s+", " ", found[0]), text)
    structs: Structs = {}
    kinds = dict(SCALARS)
    for line in filter(str.strip, text.splitlines()):
        if found := re.fullmatch(r"cdef struct (\w+):", line):
            fields = structs[found[1]] = []
            kinds[found[1]] = found[1]
        elif line.startswith("    "):
            fields.append(declared(line.strip(), kinds))
        elif line.startswith("ctypedef "):
            name, kind = declared(line.removeprefix("ctypedef "), kinds)
            kinds[name] = kind
        else:
            assert line.startswith("from "), line
    return structs


def declared(text: str, kinds: Mapping[str, str]) -> tuple[str, str]:
    """Return the name and the kind in a declaration."""

    def kind(type_: str) -> str:
        type_ = type_.replace("const ", "").strip()
        return "pointer" if type_.endswith("*") else kinds[type_]

    if found := re.fullmatch(r"(.+?) ?\(\*(\w+)\)\((.*)\) noexcept nogil", text):
        result, name, parameters = found.groups()
        parts = [kind(part) for part in parameters.split(",") if part]
        return name, f"{kind(result)}({', '.join(parts)})"
    type_, _, name = text.rpartition(" ")
    if found := re.fullmatch(r"(\w+)(\[\d+\])", name):
        return found[1], kind(type_) + found[2]
    return name, kind(type_)


def laid_out(structs: Structs, name: str) -> Layout:
    """Lay out a struct as x86-64 and aarch64 do: each field at a multiple of its alignment."""
    at, fields = 0, []
    for field, kind in structs[name]:
        alignment = alignment_of(structs, kind)
        at += -at % alignment
        fields.append(Field(field, kind, at))
        count = re.search(r"\[(\d+)\]", kind)
        size = laid_out(structs, kind).size if kind in structs else alignment
        at += size * (int(count[1]) if count else 1)
    return Layout(at + -at % alignment_of(structs, name), tuple(fields))


def alignment_of(structs: Structs, kind: str) -> int:
    """Return the alignment of a kind; the size of a scalar is the same."""
    if kind in structs:
        return max(alignment_of(structs, part) for _, part in structs[kind])
    bits = re.fullmatch(r"(?:u?int|float)(\d+)(?:\[\d+\])?", kind)
    return int(bits[1]) // 8 if bits else 8


# The debug information


class Debug(NamedTuple):
    """What debug information says of structs, functions, and the enum REQUEST_TYPES."""

    structs: dict[str, Layout]
    functions: dict[str, str]
    request_types: dict[str, int]


def type_of(die: DIE) -> DIE | None:
    """Return the type of a DIE without qualifiers and typedefs; None is void."""
    transparent = ("DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type")
    while "DW_AT_type" in die.attributes:
        die = die.get_DIE_from_attribute("DW_AT_type")
        if die.tag not in transparent:
            return die
    return None


def number(die: DIE, attribute: str) -> int:
    """Return an attribute that is a number."""
    value = die.attributes[attribute].value
    assert isinstance(value, int)
    return value


def named(die: DIE) -> str:
    """Return the name of a DIE."""
    name = die.attributes.get("DW_AT_name")
    return name.value.decode() if name else ""


def signature(die: DIE) -> str:
    """Return the kind of a function, with pointers to functions among its parameters."""
    parameters = (each for each in die.iter_children() if each.tag == "DW_TAG_formal_parameter")
    kinds = (kind_of(each) for each in parameters)
    texts = ("pointer" if "(" in kind else kind for kind in kinds)
    return f"{kind_of(die)}({', '.join(texts)})"


def kind_of(die: DIE) -> str:
    """Return the kind of a DIE's type."""
    type_ = type_of(die)
    if type_ is None:
        return "void"
    if type_.tag == "DW_TAG_array_type":
        (range_,) = type_.iter_children()
        return f"{kind_of(type_)}[{number(range_, 'DW_AT_upper_bound') + 1}]"
    if type_.tag == "DW_TAG_structure_type" and named(type_):
        return named(type_)
    bits = 8 * number(type_, "DW_AT_byte_size")
    if type_.tag == "DW_TAG_pointer_type":
        assert bits == 64
        target = type_of(type_)
        if target is not None and target.tag == "DW_TAG_subroutine_type":
            return signature(target)
        return "pointer"
    if type_.tag == "DW_TAG_enumeration_type":
        return f"int{bits}"
    if type_.tag == "DW_TAG_structure_type":
        return f"uint{bits}"
    assert type_.tag == "DW_TAG_base_type", type_.tag
    if number(type_, "DW_AT_encoding") == 4:  # DW_ATE_float
        return f"float{bits}"
    signed = number(type_, "DW_AT_encoding") in (5, 6)  # DW_ATE_signed, DW_ATE_signed_char
    return f"{'int' if signed else 'uint'}{bits}"


def layout_of(die: DIE) -> Layout:
    """Return the layout of a struct."""
    fields = (
        Field(named(member), kind_of(member), number(member, "DW_AT_data_member_location"))
        for member in die.iter_children()
        if member.tag == "DW_TAG_member"
    )
    return Layout(number(die, "DW_AT_byte_size"), tuple(fields))


def constants_of(die: DIE) -> dict[str, int]:
    """Return the constants of an enum."""
    return {named(each): number(each, "DW_AT_const_value") for each in die.iter_children()}


@functools.cache
def debug(path: str) -> Debug:
    """Read the structs of PXD, FUNCTIONS and some other facts from a file of awscrt."""
    names = (PXD.keys() | BINDINGS.keys()) - {"Functions"}
    structs, functions, request_types = found = Debug({}, {}, {})
    with open(path, "rb") as file:
        elf = ELFFile(file)
        assert elf.has_dwarf_info(), "awscrt was built without debug information"
        for unit in elf.get_dwarf_info(relocate_dwarf_sections=False).iter_CUs():
            top = unit.get_top_DIE()
            if "/crt/" in named(top):  # the CRT's own files: without types
                continue
            for die in top.iter_children():
                name, defined = named(die), "DW_AT_declaration" not in die.attributes
                if die.tag == "DW_TAG_structure_type" and name in names and defined:
                    structs[name] = layout_of(die)
                elif die.tag == "DW_TAG_enumeration_type" and name == REQUEST_TYPES:
                    request_types.update(constants_of(die))
                elif die.tag == "DW_TAG_subprogram" and name in FUNCTIONS:
                    kind = signature(die)
                    if kind != "void()":  # none of FUNCTIONS; here it is not described
                        functions[name] = kind
    return found


# The comparison


def agrees(declared: str, kind: str) -> bool:
    """Whether a declared kind is that of awscrt. An unused callback may be declared as void*."""
    return declared == kind or (declared == "pointer" and "(" in kind)


def differences(structs: Structs, actual: Debug) -> list[str]:
    """Return what differs."""
    found = []
    for name in structs.keys() - {"Functions"}:
        ours, theirs = laid_out(structs, name), actual.structs[name]
        if ours.size != theirs.size or len(ours.fields) != len(theirs.fields):
            found.append(f"{name}: {ours.size} bytes, {theirs.size} in awscrt")
        for our, their in zip(ours.fields, theirs.fields, strict=False):
            same_place = (our.name, our.offset) == (their.name, their.offset)
            if not (same_place and agrees(our.kind, their.kind)):
                found.append(f"{name}: {our}, {their} in awscrt")
    if len(structs["Functions"]) != len(FUNCTIONS):
        found.append("Functions: not as many as in FUNCTIONS")
    for (member, kind), name in zip(structs["Functions"], FUNCTIONS, strict=False):
        words = name.split("_")
        if not (set(member.split("_")) <= set(words) and kind == actual.functions.get(name, kind)):
            found.append(f"Functions: {member} is {kind}, {name} {actual.functions.get(name)}")
    return found


PXD = parse((resources.files("mountpoint.s3.crt.native") / "_crt.pxd").read_text())
AWSCRT = _awscrt.__file__


def test_installed_version() -> None:
    """The version of constraints.txt is used natively."""
    assert awscrt.__version__ in VERSIONS


@pytest.mark.slow
def test_layouts() -> None:
    """Every struct and every function is declared as it is."""
    assert differences(PXD, debug(AWSCRT)) == []


def test_objects_in_capsules() -> None:
    """The CRT's object is at the start of awscrt's."""
    for name, kind in BINDINGS.items():
        assert debug(AWSCRT).structs[name].fields[0] == Field("native", kind, 0)


def test_request_types() -> None:
    """The types of requests have these numbers."""
    numbers = debug(AWSCRT).request_types
    assert numbers["AWS_S3_META_REQUEST_TYPE_DEFAULT"] == 0
    assert numbers["AWS_S3_META_REQUEST_TYPE_GET_OBJECT"] == 1


def test_prototypes() -> None:
    """The parameters of all functions were compared, except for three."""
    compared = debug(AWSCRT).functions.keys()
    if not compared:
        pytest.skip("awscrt was built with a compiler before GCC 10, without prototypes")
    assert set(FUNCTIONS) - compared == NOT_CALLED


def mistyped(kind: str) -> Iterator[str]:
    """Yield other kinds than this one."""
    if "(" not in kind:
        yield from {*SCALARS.values(), "pointer"} - {kind, "void"}
        return
    result, text = kind.removesuffix(")").split("(")
    parameters = text.split(", ") if text else []
    yield f"uint8({text})"
    yield f"{result}({', '.join([*parameters, 'int32'])})"
    for at in range(len(parameters)):
        yield f"{result}({', '.join(parameters[:at] + parameters[at + 1 :])})"


def mutants(structs: Structs, compared: Collection[str]) -> Iterator[Structs]:
    """Yield the declarations with one mistake each: a field missing, misplaced or mistyped.

    Of FUNCTIONS, only the prototypes of `compared` are mistyped.
    """
    for struct, fields in structs.items():
        for at, (name, kind) in enumerate(fields):
            before, after = fields[:at], fields[at + 1 :]
            yield structs | {struct: before + after}
            yield structs | {struct: [*before, (f"other_{name}", kind), *after]}
            if after:
                yield structs | {struct: [*before, after[0], (name, kind), *after[1:]]}
            if struct != "Functions" or FUNCTIONS[at] in compared:
                for other in mistyped(kind):
                    yield structs | {struct: [*before, (name, other), *after]}


def test_mistakes_are_seen() -> None:
    """The comparison fails if any field is missing, misplaced or mistyped."""
    actual = debug(AWSCRT)
    seen = 0
    for structs in mutants(PXD, actual.functions):
        assert differences(structs, actual)
        seen += 1
    assert seen > 300
