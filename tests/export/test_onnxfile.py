from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssai3d_rt.errors import BundleError
from ssai3d_rt.export.onnxfile import FLOAT, Port, facts_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ssai3d_rt.export.bundle import Bundle

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def model(**changes: object) -> bytes:
    """A graph y = x + w with something changed."""
    weight = numpy_helper.from_array(np.ones(3, np.float32), "w")
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    if changes.get("initializer") == "external":
        external(weight)
    if changes.get("attribute") == "external":
        constant = numpy_helper.from_array(np.ones(3, np.float32), "c")
        external(constant)
        nodes.append(helper.make_node("Constant", [], ["c"], value=constant))
    if changes.get("subgraph") == "external":
        inner = numpy_helper.from_array(np.ones(3, np.float32), "i")
        external(inner)
        branch = helper.make_graph([], "branch", [], [], [inner])
        nodes.append(helper.make_node("If", ["b"], ["z"], then_branch=branch, else_branch=branch))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [weight],
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    helper.set_model_props(whole, {"tile": "64"})
    return bytes(whole.SerializeToString())


def external(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"


def test_facts_of_a_small_model() -> None:
    facts = facts_of(model())
    assert facts.inputs == (Port("x", FLOAT, (None, 3)),)
    assert facts.outputs == (Port("y", FLOAT, (None, 3)),)
    assert (facts.metadata, facts.opset, facts.external_data) == ({"tile": "64"}, 18, False)


@pytest.mark.parametrize("where", ["initializer", "attribute", "subgraph"])
def test_weights_outside_the_file_are_found(where: str) -> None:
    assert facts_of(model(**{where: "external"})).external_data


def test_facts_of_an_export_agree_with_the_onnx_package(tiny_bundle: Bundle) -> None:
    facts = facts_of(tiny_bundle.onnx)
    theirs = onnx.load_from_string(tiny_bundle.onnx)
    assert facts.metadata == {entry.key: entry.value for entry in theirs.metadata_props}
    assert facts.opset == theirs.opset_import[0].version == 18
    assert [port.name for port in facts.inputs] == [port.name for port in theirs.graph.input] == ["tiles"]
    assert [port.dims for port in facts.outputs] == [(None, 1, 64, 64)]
    assert not facts.external_data


@pytest.mark.parametrize("spoil", [lambda b: b"", lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b"\x00" + b])
def test_what_is_not_an_onnx_file_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(BundleError, match="not an ONNX file"):
        facts_of(spoil(model()))


@given(st.binary(max_size=64) | st.binary(min_size=1, max_size=64).map(lambda junk: model() + junk))
def test_no_bytes_make_it_fail_otherwise(junk: bytes) -> None:
    try:
        facts_of(junk)
    except BundleError:
        return
