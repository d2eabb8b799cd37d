"""Distilling: what is done to the ONNX file, what is learnt in closed form, and a short run on made pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import zstandard
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn
from torch.nn import functional as F

from isthmus_training import checkpoint, goldens
from isthmus_training.__main__ import main
from isthmus_training.distil import converted, initial, losses, network, plain, quality, surgery, train, views
from isthmus_training.distil.bundle import CutBundle
from isthmus_training.ranks import Ranks
from isthmus_training.workers import Workers

pytest.importorskip("onnx2torch")


def conv(name: str, x: str, y: str, weight: np.ndarray, **attributes: Any) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    weights = [numpy_helper.from_array(weight.astype(np.float32), f"{name}.w")]
    weights.append(numpy_helper.from_array(np.zeros(len(weight), np.float32), f"{name}.b"))
    return helper.make_node("Conv", [x, f"{name}.w", f"{name}.b"], [y], **attributes), weights


def tiny(path: Path, listed: bool = True) -> Path:
    """A detector in small, as old exporters write it: constants as nodes, weights among the inputs, a batch of one spelt
    out; two maps, of strides 4 and 8, scores and values."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))

    nodes, weights = [], []
    layers: list[tuple[str, str, str, np.ndarray, dict[str, Any]]] = [
        ("a", "picture", "a0", drawn(8, 3, 4, 4), {"strides": [4, 4]}),
        ("b", "a1", "b0", drawn(12, 8, 2, 2), {"strides": [2, 2]}),
        ("c", "b1", "c0", drawn(12, 1, 3, 3), {"group": 12, "pads": [1, 1, 1, 1]}),
        ("d", "a1", "d0", drawn(12, 8, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("s", "e0", "s0", drawn(3, 12, 1, 1), {}),
        ("v", "e0", "v0", drawn(4, 12, 1, 1), {}),
    ]
    for name, x, y, weight, attributes in layers:
        node, own = conv(name, x, y, weight, **attributes)
        nodes.append(node)
        weights += own
        if name in "ab":
            nodes += [
                helper.make_node("Add", [y, "three"], [f"{name}t"]),
                helper.make_node("Clip", [f"{name}t", "zero", "six"], [f"{name}c"]),
                helper.make_node("Mul", [y, f"{name}c"], [f"{name}m"]),
                helper.make_node("Div", [f"{name}m", "six"], [f"{name}1"]),
            ]
        if name == "d":
            nodes.append(helper.make_node("Add", ["c0", "d0"], ["e0"]))
    nodes += [
        helper.make_node("Sigmoid", ["s0"], ["s1"]),
        helper.make_node("Reshape", ["s1", "as_scores"], ["s2"]),
        helper.make_node("Transpose", ["s2"], ["scores"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["v0", "as_values"], ["v2"]),
        helper.make_node("Transpose", ["v2"], ["values"], perm=[0, 2, 1]),
    ]
    constants = {
        "three": np.array(3, np.float32),
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
        "as_scores": np.array([1, 3, -1]),
        "as_values": np.array([1, 4, -1]),
    }
    made = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value)))
        for name, value in constants.items()
    ]
    inputs = [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, 32, 32])]
    if listed:
        inputs += [helper.make_tensor_value_info(w.name, TensorProto.FLOAT, list(w.dims)) for w in weights]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 16, c]) for n, c in (("scores", 3), ("values", 4))]
    graph = helper.make_graph([*made, *nodes], "tiny", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    model.ir_version = 6
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def run(model: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    session = converted.session(model)
    return session.run(None, {value.name: x for value, x in zip(session.get_inputs(), inputs, strict=True)})


def picture(count: int = 2, side: int = 32) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 3, side, side)).astype(np.float32)


def test_cut_gives_what_the_whole_network_gives(tmp_path: Path) -> None:
    model = surgery.read(tiny(tmp_path / "tiny.onnx"))
    assert [value.name for value in model.graph.input] == ["picture"]
    cut = surgery.cut(model, ["a1", "b1"])
    assert cut.shapes == [(8, 8, 8), (12, 4, 4)]
    x = picture()
    whole, behind = run(model, x), run(cut.trunk, *run(cut.prefix, x))
    for one, other in zip(whole, behind, strict=True):
        assert one.shape[0] == 2
        np.testing.assert_allclose(one, other, atol=1e-6)
    # 8·3·16 weights at 64 places, 12·8·4, 12·9, 12·8·9, 3·12 and 4·12 at 16.
    assert surgery.macs(model) == 384 * 64 + (384 + 108 + 864 + 36 + 48) * 16
    more = run(surgery.with_outputs(model, ["a1"]), x)
    np.testing.assert_allclose(more[0], run(cut.prefix, x)[0], atol=1e-6)


def test_pictures_of_other_sizes_go_through(tmp_path: Path) -> None:
    model = surgery.resized(surgery.read(tiny(tmp_path / "tiny.onnx")))
    assert run(model, picture(3, 64))[0].shape == (3, 64, 3)


def test_what_is_no_cut_is_refused(tmp_path: Path) -> None:
    model = surgery.read(tiny(tmp_path / "tiny.onnx"))
    with pytest.raises(ValueError, match="scores depends on the picture past them"):
        surgery.cut(model, ["b1"])
    with pytest.raises(ValueError, match="no node of the network gives nowhere"):
        surgery.cut(model, ["nowhere"])


@pytest.mark.parametrize(
    ("kind", "stride", "side"), [("SAME_UPPER", 2, 8), ("SAME_LOWER", 2, 7), ("SAME_UPPER", 1, 8), ("VALID", 2, 9)]
)
def test_padding_is_spelt_out(tmp_path: Path, kind: str, stride: int, side: int) -> None:
    node, weights = conv(
        "a", "picture", "out", np.random.default_rng(0).normal(size=(4, 3, 3, 3)), strides=[stride] * 2, auto_pad=kind
    )
    value = helper.make_tensor_value_info
    shape = [1, 4, *[(side - 3) // stride + 1 if kind == "VALID" else -(-side // stride)] * 2]
    picture_value, out = value("picture", TensorProto.FLOAT, [1, 3, side, side]), value("out", TensorProto.FLOAT, shape)
    model = helper.make_model(helper.make_graph([node], "padded", [picture_value], [out], weights))
    model.opset_import[0].version, model.ir_version = 13, 8
    onnx.save(model, tmp_path / "padded.onnx")
    read = surgery.read(tmp_path / "padded.onnx")
    assert not any(attribute.name == "auto_pad" for attribute in read.graph.node[0].attribute)
    x = picture(1, side)
    np.testing.assert_array_equal(run(model, x)[0], run(read, x)[0])


def test_converted_network_and_its_gradients(tmp_path: Path) -> None:
    model = surgery.read(tiny(tmp_path / "tiny.onnx"))
    cut = surgery.cut(model, ["a1"])
    module = converted.convert(cut.trunk)
    assert [type(part).__name__ for part in module.modules()].count("Depthwise") == 1
    assert converted.check(module, cut.trunk, run(cut.prefix, picture())) < 1e-5
    x = torch.from_numpy(run(cut.prefix, picture())[0]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module.double()(x)[0].sum((1, 2)), (x[:, :, :4, :4],), atol=1e-4)


@pytest.mark.parametrize(("stride", "size", "kernel"), [(1, 7, 5), (2, 7, 5), (2, 8, 3)])
def test_depthwise_gradient(stride: int, size: int, kernel: int) -> None:
    plain = nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6).double()
    fast = converted.Depthwise(plain)
    x = torch.randn(2, 6, size, size, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(fast(x), plain(x))
    wanted = torch.autograd.grad(plain(x).square().sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(fast(x).square().sum(), x)[0], wanted)


SHAPES = [(8, 8, 8), (12, 4, 4), (6, 2, 2)]


def test_closed_form_reproduces_what_has_few_dimensions() -> None:
    """Tensors of three grids that are linear in five numbers a place come back from five latents."""
    torch.manual_seed(0)
    hidden = torch.randn(40, 5, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    hidden = hidden - hidden.mean((0, 2, 3), keepdim=True)
    fine = F.pixel_shuffle(F.conv2d(hidden, torch.randn(32, 5, 1, 1)), 2) + 1
    tensors = [fine, F.conv2d(hidden, torch.randn(12, 5, 1, 1)), F.conv2d(hidden, torch.randn(6, 5, 1, 1))[..., ::2, ::2]]
    sizes = network.Sizes(5, (4, 4), [100], (8, 1), (8, 1))
    moments = initial.Moments([network.Ratio.between(shape, sizes.grid) for shape in SHAPES])
    moments.add(tensors)
    moments.add_gradients([torch.randn_like(tensor) for tensor in tensors])
    encoder, adapter = network.TensorEncoder(SHAPES, sizes), network.Adapter(SHAPES, sizes)
    deviations = initial.start_linear(encoder, adapter, moments)
    with torch.no_grad():
        latents = encoder(tensors, 100)
        torch.testing.assert_close(latents.std((0, 2, 3)), deviations, rtol=0.05, atol=0.01)
        for got, wanted in zip(adapter(latents), tensors, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_metric_prefers_what_the_outputs_hear() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 2, 8, 8) * torch.tensor([10.0, 1.0])[:, None, None]
    moments = initial.Moments([network.Ratio(1, 1)])
    moments.add([x])
    moments.add_gradients([torch.randn_like(x) * torch.tensor([0.0, 1.0])[:, None, None]])
    _, into, _, _ = initial.components(moments, 1, 0.01)
    assert abs(into[0, 1]) > 5 * abs(into[0, 0])


@pytest.mark.parametrize("width", [50, 100])
def test_plain_layers_compute_the_same(width: int) -> None:
    for conv in (nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(6, 8, 2, 2), nn.ConvTranspose2d(6, 8, 2, 2)):
        slim = network.Slim(conv, [50, 100], (True, True))
        nn.init.normal_(slim.biases[str(width)])
        x = torch.randn(2, 6 * width // 100, 4, 4)
        torch.testing.assert_close(slim.plain(width)(x), slim(x, width))


def test_rate_is_that_of_the_distribution() -> None:
    rate = network.Rate(2, 3)
    symbols = torch.arange(-40.0, 41)[:, None, None, None].repeat(1, 3, 1, 1)
    with torch.no_grad():
        mass = (-rate(symbols, torch.zeros(81, dtype=torch.long))[:, 0]).exp2().sum()
    assert abs(float(mass) - 1) < 1e-3
    quiet, loud = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 5.0)
    depth = torch.zeros(1, dtype=torch.long)
    assert rate(quiet, depth).sum() < rate(loud, depth).sum()


DISTRIBUTION = {"layout": "distribution", "bins": 2, "strides": [8]}


def test_losses_are_nothing_where_all_is_right_and_grow() -> None:
    torch.manual_seed(0)
    scores, values = torch.rand(3, 16, 4) * 0.5, torch.randn(3, 16, 8)
    for task, outputs in (
        ("classification", [torch.randn(3, 7)]),
        ("segmentation", [torch.randn(3, 5, 4, 4)]),
        ("detection", [scores, values]),
        ("tensors", [torch.randn(3, 7), torch.randn(3, 2, 2)]),
    ):
        loss = losses.OutputLoss(task, DISTRIBUTION)
        assert float(loss(outputs, outputs).abs().max()) < 1e-6
        near, far = (loss([o + size * torch.randn_like(o) for o in outputs], outputs) for size in (0.05, 0.5))
        assert near.shape == (3,) and float(near.mean()) < float(far.mean())
        assert all(value.isfinite().all() for value in loss.embedded(outputs, outputs))


def test_boxes_count_where_the_network_is_sure() -> None:
    scores, values = torch.full((1, 4, 2), 0.01), torch.zeros(1, 4, 8)
    scores[0, 0, 0] = 0.9
    values[0, :, 1] = 1
    loss = losses.OutputLoss("detection", DISTRIBUTION)
    empty, sure = values.clone(), values.clone()
    empty[0, 3, 0] = sure[0, 0, 0] = 2
    assert float(loss([scores, sure], [scores, values])) > 100 * float(loss([scores, empty], [scores, values]))


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        ({"layout": "yolox"}, [(2, 40, 8)]),
        ({"layout": "yolov5", "activation": "sigmoid"}, [(2, 40, 8)]),
        ({"layout": "yolov8"}, [(2, 7, 40)]),
        ({"layout": "distribution", "bins": 4}, [(2, 40, 3), (2, 10, 3), (2, 40, 16), (2, 10, 16)]),
        ({"layout": "distribution", "bins": 4}, [(2, 40, 19)]),
        ({"layout": "ssd", "boxes": "corners", "background": "first", "activation": "softmax"}, [(2, 40, 4), (2, 40, 4)]),
        ({"layout": "detr"}, [(2, 40, 4), (2, 40, 4)]),
        ({"layout": "fastestdet"}, [(2, 8, 6, 7)]),
        ({"layout": "centernet"}, [(2, 3, 6, 7), (2, 2, 6, 7), (2, 2, 6, 7)]),
    ],
)
def test_layouts_are_told_apart(spec: dict[str, Any], shapes: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    outputs = [torch.rand(shape) for shape in shapes]
    for rows in losses.LAYOUTS[spec["layout"]](spec, outputs):
        assert rows.scores.shape[-1] == 3 and rows.scores.shape[:2] == rows.boxes.shape[:2]
    loss = losses.OutputLoss("detection", spec)
    assert float(loss(outputs, outputs).abs().max()) < 1e-5
    assert float(loss([o + 0.1 * torch.rand_like(o) for o in outputs], outputs).min()) > 0


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made pictures of several sizes, and a file that is none."""
    folder, rng = tmp_path_factory.mktemp("street"), np.random.default_rng(2)
    for number in range(30):
        size = (40 + number, 48)
        pixels = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((10, 10, 1))).astype(np.uint8)
        Image.fromarray(pixels).resize(size).save(folder / f"{number:02}.png")
    (folder / "broken.jpg").write_bytes(b"not a picture")
    return folder


SMALL = ["--sent", "2,4", "--bits", "3,5", "--widths", "50,100", "--encoder", "8,1", "--adapter", "8,1"]
QUICK = ["--hours", "0.0008", "--batch", "2", "--first", "8", "--threads", "1", "--precision", "f32"]


@pytest.mark.parametrize("kind", ["prefix", "slim"])
def test_from_a_file_and_pictures_to_a_bundle(tmp_path: Path, street: Path, kind: str) -> None:
    (tmp_path / "labels.txt").write_text("bus\ncar\ntruck\n")
    (tmp_path / "boxes.toml").write_text('layout = "distribution"\nbins = 1\nstrides = [8]\nconfidence = 0.6\n')
    network, out = tiny(tmp_path / "tiny.onnx"), tmp_path / "bundle"
    command = ["distil", str(network), "--at", "a1,b1", "--pictures", str(street), "--out", str(out), "--head", kind]
    command += ["--task", "detection", "--labels", str(tmp_path / "labels.txt"), "--boxes", str(tmp_path / "boxes.toml")]
    command += ["--fit", "letterbox", "--channels", "bgr", *SMALL, *QUICK]
    command += ["--picture-encoder", "4,8,8"]
    assert main(command) == 0
    bundle = CutBundle(out)
    manifest = bundle.manifest
    assert manifest["format"] == 2 and manifest["input"]["fill"] == [114, 114, 114] and manifest["splits"][0]["name"] == "s8"
    assert manifest["splits"][0]["features"] == [[8, 8, 8], [12, 4, 4]] and manifest["splits"][0]["latent"] == [4, 4, 4]
    assert {point["bits"] for point in manifest["points"]} == {3, 5} and len(manifest["points"]) == 8
    record = zstandard.ZstdDecompressor().stream_reader((out / "outcomes.csv.zst").read_bytes()).read().decode()
    assert record.startswith("frame,label,point,bytes,quality,confidence,reply\n0,,full,0,1,")
    for golden in goldens.read(out):
        split = manifest["splits"][0]
        width = next(w for w in split["widths"] if w["name"] == golden.point["width"])
        x = bundle.view(Image.fromarray(golden.tensors["picture"]))
        np.testing.assert_array_equal(x[0], golden.tensors["input"])
        np.testing.assert_allclose(bundle.run(width["head"], x)[0][0], golden.tensors["latents"], atol=1e-4)
        whole = run(surgery.read(network), x)
        np.testing.assert_allclose(whole[0][0], golden.tensors["full.boxes.scores"], atol=1e-5)
        assert golden.tensors["output.boxes.values"].shape == (16, 4) and "exit" not in golden.tensors


def test_written_graphs_compute_what_was_learnt(tmp_path: Path) -> None:
    model = surgery.read(tiny(tmp_path / "tiny.onnx"))
    cut = surgery.cut(model, ["a1", "b1"])
    settings = train.Settings(latents=4, channels=(2, 4), encoder=(8, 1), adapter=(8, 1))
    learnt = train.Distillation(model, cut, settings, losses.OutputLoss("tensors"), Workers(Ranks("cpu"), 1))
    split = learnt.kept
    for parameter in split.parameters():
        nn.init.normal_(parameter, std=0.2)
    x = picture(1)
    tensors = [torch.from_numpy(tensor) for tensor in run(cut.prefix, x)]
    shapes = [(8, 8, 8), (12, 4, 4)]
    # At 16 places: 8·4·4 and 12·1·1 into 4 latents and, at half the width, 4 hidden channels; two of 4·4·9; 4 into 4.
    head = plain.head(split, 50, cut.prefix, (3, 32, 32), (4, 4, 4))
    assert surgery.macs(head) - surgery.macs(cut.prefix) == (2 * (32 + 12) * 4 + 2 * 144 + 16) * 16
    with torch.no_grad():
        for width in settings.widths:
            wanted = split.encoder(tensors, width)
            latents = run(plain.head(split, width, cut.prefix, (3, 32, 32), (4, 4, 4)), x)[0]
            np.testing.assert_allclose(latents, wanted.numpy(), rtol=1e-2, atol=1e-2 * float(wanted.abs().max()))
        for got, made in zip(run(plain.adapter(split.adapter, (4, 4, 4), shapes), latents), split.adapter(wanted), strict=True):
            np.testing.assert_allclose(got, made.numpy(), rtol=1e-2, atol=1e-2 * float(made.abs().max()))


def test_a_stopped_run_goes_on(tmp_path: Path, street: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["distil", str(tiny(tmp_path / "tiny.onnx")), "--at", "a1", "--pictures", str(street), "--view", "32"]
    command += ["--run", str(tmp_path / "run"), *SMALL, *QUICK]
    assert main(command) == 0
    first = checkpoint.restore(tmp_path / "run" / train.FILE)
    assert first is not None and first["steps"] > 0
    assert main([*command, "--hours", "0.0012"]) == 0
    again = checkpoint.restore(tmp_path / "run" / train.FILE)
    assert again is not None and again["steps"] > first["steps"]
    assert f"continues after step {first['steps']}" in capsys.readouterr().out


def test_learning_lowers_the_loss(tmp_path: Path, street: Path) -> None:
    model = surgery.read(tiny(tmp_path / "tiny.onnx"))
    cut = surgery.cut(model, ["a1", "b1"])
    settings = train.Settings(
        latents=4,
        channels=(4,),
        bits=(6,),
        widths=(100,),
        encoder=(8, 1),
        adapter=(8, 1),
        batch=4,
        first=16,
        learning_rate=3e-3,
    )
    learnt = train.Distillation(model, cut, settings, losses.OutputLoss("tensors"), Workers(Ranks("cpu"), 1))
    how = views.Input(32, 32, [0.5] * 3, [0.5] * 3)
    source = train.Source(views.Pictures([street], 0.1, 1), how, train.Teacher(model, cut, False))
    found = [learnt.step(source)["loss"] for _ in range(60)]
    assert np.mean(found[-10:]) < 0.8 * np.mean(found[:10])


def test_answers_beside_the_whole_networks() -> None:
    boxes = np.array([[0, 0.9, 0, 0, 10, 10], [1, 0.8, 20, 20, 30, 30]])
    assert quality.f1(boxes, boxes) == 1 and quality.f1(boxes[:1], boxes) == pytest.approx(2 / 3)
    assert quality.f1(boxes[:0], boxes[:0]) == 1 and quality.f1(boxes[:0], boxes) == 0
    logits, other = np.array([0.1, 3.0, 0.2]), np.array([5.0, 1.0, 0.0])
    judge = quality.Judge({"task": "classification"}, (8, 8))
    assert judge([logits], [logits])[0] == 1 and judge([other], [logits])[0] == 0
    maps = np.zeros((2, 4, 4))
    maps[1, :2] = 1
    half = maps.copy()
    half[1, 1] = -1
    judge = quality.Judge({"task": "segmentation"}, (8, 8))
    assert judge([maps], [maps])[0] == 1 and judge([half], [maps])[0] == pytest.approx((0.5 + 8 / 12) / 2)
    judge = quality.Judge({"task": "regression"}, (8, 8))
    assert judge([np.array([1.0, 2.0])], [np.array([1.1, 4.0])])[0] == 0.5
    judge = quality.Judge({"task": "tensors"}, (8, 8))
    assert judge([maps], [maps])[0] == 1 and judge([half], [maps])[0] < 1


@pytest.mark.parametrize("fit", ["crop", "letterbox", "stretch"])
def test_views_have_the_size_that_was_asked_for(fit: str) -> None:
    how = views.Input(48, 32, [0.0] * 3, [1.0] * 3, fit)
    rng = np.random.default_rng(0)
    for size in ((100, 20), (20, 100), (48, 32)):
        wide = Image.new("RGB", size, (200, 10, 10))
        assert how.fitted(wide).shape == (32, 48, 3)
        assert views.random_view(wide, how, (24, 24), rng).shape == (24, 24, 3)
    boxed = views.Input(48, 32, [0.0] * 3, [1.0] * 3, "letterbox").fitted(Image.new("RGB", (96, 20)))
    assert tuple(boxed[0, 0]) == (114, 114, 114) and tuple(boxed[16, 24]) == (0, 0, 0)
