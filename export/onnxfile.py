"""Look into an ONNX file without the onnx package: inputs, outputs, metadata, and whether weights lie outside the file.

An ONNX file is one protocol-buffers message. `facts_of` walks just the fields that a bundle must be sure of before a
runtime gets to see the file; field numbers are those of `onnx.proto3`. It does not know bundles or networks.

>>> facts_of(b"nonsense")
Traceback (most recent call last):
ssai3d_rt.errors.BundleError: not an ONNX file: ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssai3d_rt.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterator

FLOAT, FLOAT16 = 1, 10
"""`TensorProto.DataType` of the element types that we use."""

Field = tuple[int, int | bytes]

_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Port:
    """A graph input or output: name, `TensorProto.DataType`, and sizes (None is dynamic)."""

    name: str
    element: int
    dims: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class OnnxFacts:
    """What `facts_of` reads.

    Parameters
    ----------
    inputs, outputs
        Of the main graph; weights are not inputs.
    metadata
        `metadata_props` of the model.
    opset
        Version of the standard operator set.
    external_data
        Whether any tensor keeps its values in another file.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metadata: dict[str, str]
    opset: int
    external_data: bool


def facts_of(onnx: bytes) -> OnnxFacts:
    """Read the facts of an ONNX file's bytes.

    Raises
    ------
    BundleError
        The bytes are not an ONNX model.
    """
    try:
        model = list(_fields(onnx))
        graph = next(_message(value) for number, value in model if number == 7)
        inputs = tuple(_port(_message(value)) for number, value in _fields(graph) if number == 11)
        outputs = tuple(_port(_message(value)) for number, value in _fields(graph) if number == 12)
        metadata = dict(_pair(_message(value)) for number, value in model if number == 14)
        opset = next(
            (
                version
                for domain, version in (_opset(_message(v)) for n, v in model if n == 8)
                if domain in ("", "ai.onnx")
            ),
            0,
        )
        functions = [_message(value) for number, value in model if number == 25]
        external = _graph_is_external(graph, 0) or any(_nodes_are_external(f, 7, 0) for f in functions)
    except (StopIteration, ValueError, IndexError) as error:
        raise BundleError(f"not an ONNX file: {str(error) or 'it holds no graph'}") from None
    return OnnxFacts(inputs, outputs, metadata, opset, external)


def _graph_is_external(graph: bytes, depth: int) -> bool:
    """Whether a GraphProto holds a tensor with external values: initializers, sparse ones, attributes, subgraphs."""
    if depth > _DEPTH:
        raise ValueError("graphs nested too deeply")
    for number, value in _fields(graph):
        if number == 5 and _tensor_is_external(_message(value)):
            return True
        if number == 15 and _sparse_is_external(_message(value)):
            return True
    return _nodes_are_external(graph, 1, depth)


def _nodes_are_external(owner: bytes, node_field: int, depth: int) -> bool:
    attributes = (
        _message(attribute)
        for number, node in _fields(owner)
        if number == node_field
        for field, attribute in _fields(_message(node))
        if field == 5
    )
    return any(_attribute_is_external(attribute, depth) for attribute in attributes)


def _attribute_is_external(attribute: bytes, depth: int) -> bool:
    for number, value in _fields(attribute):
        if number in (5, 10) and _tensor_is_external(_message(value)):
            return True
        if number in (6, 11) and _graph_is_external(_message(value), depth + 1):
            return True
        if number in (22, 23) and _sparse_is_external(_message(value)):
            return True
    return False


def _tensor_is_external(tensor: bytes) -> bool:
    """`TensorProto.external_data` (13) present, or `data_location` (14) is EXTERNAL (1)."""
    return any(number == 13 or (number == 14 and value == 1) for number, value in _fields(tensor))


def _sparse_is_external(sparse: bytes) -> bool:
    return any(number in (1, 2) and _tensor_is_external(_message(value)) for number, value in _fields(sparse))


def _port(info: bytes) -> Port:
    """ValueInfoProto -> Port."""
    name, element, dims = "", 0, []
    for number, value in _fields(info):
        if number == 1:
            name = _message(value).decode()
        if number == 2:
            tensors = [_message(v) for n, v in _fields(_message(value)) if n == 1]
            for field, inner in (pair for tensor in tensors for pair in _fields(tensor)):
                if field == 1 and isinstance(inner, int):
                    element = inner
                if field == 2:
                    dims = [_size(_message(d)) for n, d in _fields(_message(inner)) if n == 1]
    return Port(name, element, tuple(dims))


def _size(dimension: bytes) -> int | None:
    return next((value for number, value in _fields(dimension) if number == 1 and isinstance(value, int)), None)


def _pair(entry: bytes) -> tuple[str, str]:
    """StringStringEntryProto -> (key, value)."""
    parts = {number: _message(value).decode() for number, value in _fields(entry)}
    return parts.get(1, ""), parts.get(2, "")


def _opset(entry: bytes) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in _fields(entry):
        if number == 1:
            domain = _message(value).decode()
        if number == 2 and isinstance(value, int):
            version = value
    return domain, version


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _fields(message: bytes) -> Iterator[Field]:
    """Split a protocol-buffers message into (field number, value): a varint as int, anything longer as bytes."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise ValueError("field number 0")
        if kind == 0:
            integer, at = _varint(message, at)
            yield number, integer
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > end:
            raise ValueError("it ends too early")
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message):
            raise ValueError("it ends too early")
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number longer than 64 bits")
