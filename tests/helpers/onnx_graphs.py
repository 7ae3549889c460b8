# SPDX-License-Identifier: Apache-2.0
"""Graphs of ONNX without a network in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def constant_graph(path: Path, side: int = 64, **outputs: np.ndarray) -> str:
    """A graph that takes a picture [1, 3, side, side] and returns the same whatever it is; returns the file's name."""
    from onnx import TensorProto, helper, numpy_helper, save

    values = [numpy_helper.from_array(array, f"{name}_value") for name, array in outputs.items()]
    nodes = [helper.make_node("Identity", [f"{name}_value"], [name]) for name in outputs]
    results = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in outputs.items()
    ]
    picture = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, side, side])
    graph = helper.make_graph(nodes, "constant", [picture], results, values)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return str(path)
