"""A toy data set: three classes of generated pictures, and a file that is no picture."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (210, 50, 40)}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(7)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for number in range(24):
            noise = rng.normal(0, 20, (48, 64, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")
    (root / "red" / "broken.png").write_bytes(b"not a picture")
    return root


TOY = """
name = "toy"
seed = 3

[data]
size = [32, 32]
stored = [40, 40]
holdout = 0.25

[network]
channels = [16, 24]
blocks = [1, 1]

[full]
phases = [[2, 1.0]]
warmup = 0.5
batch = 16
learning_rate = 0.05

[split]
widths = [50, 100]
head = [8, 8, 16, 16]
strides = [2, 2, 2, 2]
channels = [2, 3]
bits = [6, 4]
exit_units = 8
adapter_units = 16
adapter_blocks = 1

[stage1]
phases = [[1, 1.0]]
feature = 1.0
last = 0.5
invariant = 0.5
noise = 0.5
rate = 0.02
batch = 16

[stage2]
phases = [[1, 1.0]]
task = 0.5
soft = 0.5
trains = ["adapter", "trunk"]
batch = 16

[stage3]
phases = [[1, 1.0]]
task = 0.5
soft = 0.5
rate = 0.02
trains = ["head", "adapter", "trunk"]
whole = true
passes = 1
batch = 8
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(TOY)
    return path


def write_teacher(path: Path, weights: np.ndarray, stride: int) -> None:
    """A classifier for pictures in −1..=1: `features` are `weights` [K, 3] times every `stride`-th place, logits their
    means."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["features"], kernel_shape=[1, 1], strides=[stride, stride]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(weights)])
    values = numpy_helper.from_array(weights[:, :, None, None], "w")
    model = helper.make_model(
        helper.make_graph(nodes, "teacher", [x], [logits], [values]), opset_imports=[helper.make_opsetid("", 13)]
    )
    model.ir_version = 8
    onnx.save(model, path)
