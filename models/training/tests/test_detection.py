"""Detectors: pictures with boxes, views, losses, measures, and a run from pictures to a bundle."""

import dataclasses
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from PIL import Image

from isthmus_training import config as configuration
from isthmus_training import goldens
from isthmus_training.__main__ import main
from isthmus_training.detection import evaluate, export, full, losses, network, pictures, run, teacher, views
from isthmus_training.detection.pictures import Labelled, Tile

LABELS = ["car", "person"]
TOY = """
name = "toy"
task = "detection"
seed = 3

[data]
size = [64, 64]
stored = [64, 64]

[detection]
labels = ["car", "person"]
boxes = ["train.json"]
val = "val.json"
pyramid = [8, 16]
empty = 0.2

[network]
channels = [16, 24]
blocks = [1, 1]

[full]
phases = [[2, 1.0]]
warmup = 0.5
batch = 16
learning_rate = 2e-3

[split]
widths = [50, 100]
head = [8, 8, 16, 16]
strides = [2, 2, 2, 2]
channels = [2, 4]
bits = [6, 4]
exit_units = 8
adapter_units = 16
adapter_blocks = 1

[stage1]
phases = [[1, 1.0]]
feature = 1.0
batch = 16

[stage2]
enabled = false

[stage3]
phases = [[1, 1.0]]
task = 1.0
trains = ["head", "adapter", "trunk"]
whole = true
passes = 1
batch = 16
"""


def labelled(*boxes: tuple[int, int, int, int]) -> Labelled:
    return Labelled(Path(), np.array(boxes, np.float32).reshape(-1, 4), np.zeros(len(boxes), np.int64), np.ones(2, bool))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Red squares are cars, blue ones persons, on noise; COCO's format."""
    rng = np.random.default_rng(5)
    for part, count in (("train", 32), ("val", 8)):
        (tmp_path / part).mkdir()
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for at in range(count):
            pixels = rng.integers(90, 130, (48, 80, 3)).astype(np.uint8)
            name = f"{at:02}.png"
            images.append({"id": at, "file_name": name, "width": 80, "height": 48})
            if at % 4:
                x, y, side, label = (int(rng.integers(*ends)) for ends in ((0, 50), (0, 20), (14, 28), (0, 2)))
                pixels[y : y + side, x : x + side] = ((200, 30, 30), (30, 30, 220))[label]
                box = {"image_id": at, "category_id": label + 1, "bbox": [x, y, side, side]}
                annotations.append(box | {"id": len(annotations) + 1, "area": side * side, "iscrowd": 0})
            Image.fromarray(pixels).save(tmp_path / part / name)
        categories = [{"id": 1, "name": "car"}, {"id": 2, "name": "person"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    return tmp_path


def test_sources_agree(data: Path) -> None:
    """COCO's boxes, those of a table, and YOLO's text."""
    coco = pictures.read(data / "train.json", LABELS, {})
    (data / "yolo/labels").mkdir(parents=True)
    (data / "train").rename(data / "yolo/images")
    rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for one in coco:
        lines = []
        for (left, top, right, bottom), label in zip(one.boxes, one.classes, strict=True):
            centre = ((left + right) / 160, (top + bottom) / 96, (right - left) / 80, (bottom - top) / 48)
            lines.append(f"{1 - label} " + " ".join(str(value) for value in centre))
            rows.append(f"{one.path.name},80,48,{('Auto', 'person')[label]},{left},{top},{right},{bottom}")
        (data / f"yolo/labels/{one.path.stem}.txt").write_text("\n".join(lines))
    (data / "yolo/classes.txt").write_text("person\nAuto\n")
    (data / "table.csv").write_text("\n".join(rows))
    yolo = pictures.read(data / "yolo", LABELS, {"Auto": "car"})
    table = {one.path.name: one for one in pictures.read(data / "table.csv", LABELS, {"Auto": "car"})}
    for one, other in zip(coco, yolo, strict=True):
        assert np.abs(one.boxes - other.boxes).max(initial=0) < 1e-3 and (one.classes == other.classes).all()
        if len(one.boxes):
            assert (table[one.path.name].boxes == one.boxes).all() and (table[one.path.name].classes == one.classes).all()
    beside = data / "yolo/images/annotations.json"
    (data / "train.json").rename(beside)
    assert [one.path for one in pictures.read(beside, LABELS, {})] == [beside.parent / one.path.name for one in coco]
    beside.rename(data / "train.json")
    (covered,) = {tuple(one.known) for one in pictures.read(data / "train.json", ["car", "bus"], {})}
    assert covered == (True, False)


@pytest.mark.parametrize("mirror", ["true", "false"])
def test_views_are_mirrored_where_the_configuration_allows_it(data: Path, mirror: str) -> None:
    made = configuration.parse(tomllib.loads(TOY.replace("[full]", f"[full]\nmirror = {mirror}", 1)))
    how = run.training(made, data, None).how
    assert how.mirror is (mirror == "true")


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_box_follows_its_picture_into_a_view(mirrored: bool) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[10:20, 30:50] = 255
    tile = Tile(1.5, (-15.0, 6.0), (0, 6, 64, 64), mirrored)
    view = np.zeros((64, 64, 3), np.uint8)
    pictures.draw(view, picture, tile)
    (box,), (enough,) = pictures.shown(np.array([[30, 10, 50, 20]], np.float32), 60, tile)
    rows, columns = np.nonzero(view[..., 0] > 127)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert enough and np.abs(box - found).max() <= 1
    _, (enough,) = pictures.shown(np.array([[30, 10, 50, 20]], np.float32), 60, dataclasses.replace(tile, offset=(-80.0, 6.0)))
    assert enough is not mirrored


def test_letterbox_rounds_as_the_device_does() -> None:
    view, tile = pictures.fitted(np.full((7, 10, 3), 9, np.uint8), (64, 64))
    assert tile.seen == (0, 9, 64, 54)  # 44.8 rows are 45.
    assert (view[9:54] == 9).all() and (view[:9] == pictures.FILL).all() and (view[54:] == pictures.FILL).all()


def test_free_parts_are_free() -> None:
    boxes = np.array([[0, 0, 50, 100]], np.float32)
    rng, found = np.random.default_rng(1), 0
    for _ in range(20):
        part = pictures.free_part(rng, boxes, (100, 100))
        if part is not None:
            found += 1
            assert part[0] >= 50 and part[2] <= 100
            left, top, right, bottom = pictures.magnified(part, (64, 64)).seen
            assert max(right - left, bottom - top) == 64
    assert found


def test_things_are_given_to_places_around_their_middle() -> None:
    places = views.all_places((64, 64))
    things = torch.tensor([[[8.0, 8, 40, 40], [41, 41, 43, 43]]])
    count = len(places.strides)
    nothing = torch.zeros(1, count, 2)
    targets = losses.Targets(
        things, torch.tensor([[1, 0]]), nothing > -1, nothing, nothing, torch.zeros(1, count, 4), nothing, nothing[..., 0] > 0
    )
    found = torch.cat([places.centres - 8, places.centres + 8], 1)[None]
    thing, worth = losses.assigned(torch.full((1, count, 2), 0.5), found, targets, places)
    given = worth[0] > 0
    inside = ((places.centres > 8) & (places.centres < 40)).all(1)
    assert 0 < (given & (thing[0] == 0)).sum() <= 10 and not (given & (thing[0] == 0) & ~inside).any()
    # The small one holds no middle of a place, and is given the nearest.
    (small,) = (given & (thing[0] == 1)).nonzero().T
    assert places.centres[small].tolist() == [[44.0, 44.0]]
    assert losses.present(targets).tolist() == [[1.0, 1.0]]


def test_an_exit_learns_where_things_are() -> None:
    places = views.all_places((128, 128))
    things = torch.tensor([[[8.0, 8, 104, 40], [97, 97, 99, 99]]])
    nothing = torch.zeros(1, len(places.strides), 2)
    known = nothing > -1
    targets = losses.Targets(
        things, torch.tensor([[1, 0]]), known, nothing, nothing, torch.zeros(1, len(places.strides), 4), nothing, known[..., 0]
    )
    there = losses.occupied(targets, (128, 128), (4, 4))
    assert there[0, 1].nonzero().tolist() == [[0, 1], [0, 2]]
    assert there[0, 0].nonzero().tolist() == [[3, 3]]
    right = torch.where(there > 0, 9.0, -9.0)
    assert losses.exit_loss(right, targets, (128, 128)) < 1e-3 < losses.exit_loss(-right, targets, (128, 128))
    # Where annotations say nothing, the teacher does.
    taught = torch.zeros_like(nothing)
    at = int(((places.centres == torch.tensor([80.0, 16.0])) & (places.strides == 32)[:, None]).all(1).nonzero())
    taught[0, at, 0] = 0.5
    unknown = targets._replace(known=~known, scores=taught)
    assert losses.occupied(unknown, (128, 128), (4, 4))[0, 0].nonzero().tolist() == [[0, 2], [3, 3]]


def test_distances_come_back() -> None:
    """Distributions that hold whole distances give the boxes that they were made of."""
    places = views.all_places((64, 64))
    frames = torch.cat([places.centres - 8, places.centres + 16], 1)
    wanted = losses.reached(frames, places.centres, places.strides)
    bins = torch.arange(network.BINS)
    logits = -60 * (wanted[..., None] - bins).abs()
    halves = (wanted % 1 == 0).all(1)
    assert halves.any()
    found = network.boxes(network.expected(logits), places.centres, places.strides)
    assert (found - frames)[halves].abs().max() < 1e-3
    assert losses.spread(logits[halves], wanted[halves]).max() < 1e-3
    assert losses.generalised(found, frames)[halves].max() < 1e-3


def test_measures() -> None:
    truth = [labelled((0, 0, 20, 20), (30, 30, 50, 50)), labelled()]
    found = [
        evaluate.Found(np.array([[0, 0, 20, 23], [0, 0, 50, 50]], np.float32), np.array([0.9, 0.4]), np.array([0, 0])),
        evaluate.Found(np.zeros((0, 4), np.float32), np.zeros(0), np.zeros(0, np.int64)),
    ]
    assert evaluate.f1(found[0], truth[0]) == 0.5 and evaluate.f1(found[1], truth[1]) == 1.0
    assert evaluate.f1(found[0].above(0.5), truth[0]) == 2 / 3 and evaluate.f1(found[0], truth[1]) == 0.0
    kept = evaluate.suppressed(
        np.array([[0.5, 0.0], [0.9, 0.4], [0.3, 0.8]]), np.array([[0, 0, 10, 10], [0, 0, 10, 11], [0, 0, 10, 10]], float), 0.2
    )
    assert kept.confidence.tolist() == [0.9, 0.8] and kept.classes.tolist() == [0, 1]
    pytest.importorskip("pycocotools")
    precision, half = evaluate.mean_average_precision(truth, found, LABELS)
    assert 0.3 < precision < half and half == pytest.approx(0.505, abs=0.01)


def test_a_view_looks_up_what_a_teacher_said(data: Path) -> None:
    """A made-up teacher scores cars in the places of a box: a view's places score where the box then lies."""
    source = [one for one in pictures.read(data / "train.json", LABELS, {}) if len(one.boxes) and one.classes[0] == 0][:4]
    cache = teacher.Cache(data / "answers", "toy", source)
    own = pictures.letterbox(80, 48, (teacher.SIZE, teacher.SIZE))
    middles = teacher.centres((teacher.SIZE, teacher.SIZE), teacher.STRIDES)
    for at, one in enumerate(source):
        (box,) = pictures.moved(one.boxes, 80, own)
        within = ((middles > box[:2]) & (middles < box[2:])).all(1)
        cache.arrays["scores"][at, within, 2], cache.arrays["boxes"][at, within] = 255, box
    cache.counter.write_text(str(len(source)))
    how = views.How(mosaic=0.5, jitter=0.0)
    train = views.TrainSet([views.Source(source, cache, 1.0)], LABELS, how)
    by = configuration.Normalisation([0.5] * 3, [0.5] * 3)
    checked = 0
    for seed in range(8):
        _, targets, places = train.views(range(4), (64, 64), seed, by)
        for things, scores, frames in zip(targets.things, targets.scores, targets.frames, strict=True):
            for place in (scores[:, 0] > 0.5).nonzero()[:, 0].tolist():
                # What a view cuts off is not cut off the teacher's box in the same place.
                if (frames[place, 2:] - frames[place, :2]).min() < 12:
                    continue
                checked += 1
                assert losses.overlaps(frames[place], things).max() > 0.8
                # The teacher's place that is nearest is no farther than half a stride.
                corners = torch.cat(
                    [places.centres[place] - places.strides[place], places.centres[place] + places.strides[place]]
                )
                assert losses.overlaps(corners, frames[place]) > 0
    assert checked > 20


def test_train_export_evaluate(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pycocotools")
    toy, run, bundle = tmp_path / "toy.toml", tmp_path / "run", tmp_path / "bundle"
    toy.write_text(TOY)
    common = ["--data", str(data), "--config", str(toy), "--threads", "2"]
    assert main(["train", *common, "--out", str(run), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("full epoch 2", "stage1 epoch 1", "stage3 epoch 1", "whole_mAP", "filtered_w50"))
    assert "taught" not in said
    assert main(["export", *common, "--run", str(run), "--bundle", str(bundle)]) == 0
    manifest = tomllib.loads((bundle / "manifest.toml").read_text())
    assert manifest["format"] == 2 and manifest["input"]["fit"] == "letterbox"
    (split,) = manifest["splits"]
    assert split["features"] == [[16, 4, 4]] and split["latent"] == [4, 4, 4] and "trunk" not in split
    (decoder,) = manifest["decoders"]
    assert [output["shape"] for output in decoder["outputs"]] == [[84, 2], [84, 32]]
    assert set(decoder["trunk"].values()) | {"onnx/full.onnx"} <= set(manifest["files"])
    rows = zstandard.ZstdDecompressor().stream_reader((bundle / "outcomes.csv.zst").read_bytes()).read().decode().split()
    assert rows[0] == "frame,label,point,bytes,quality,confidence,reply"
    assert len(rows) == 1 + 8 * (1 + 2 * (1 + 2 * 2))
    capsys.readouterr()
    assert main(["evaluate", *common, "--bundle", str(bundle)]) == 0
    assert f"full: quality {manifest['full']['quality']:.4f}" in capsys.readouterr().out
    _check_goldens(bundle, toy, run)


def test_an_answer_is_as_long_as_its_message() -> None:
    lengths = [export.answer_bytes(boxes) for boxes in (0, 1, 10, 11, 300)]
    assert lengths == [0, 2 + 12, 2 + 120, 3 + 132, 3 + 3600]


def _check_goldens(bundle: Path, toy: Path, run: Path) -> None:
    network = full.restore(configuration.load(toy), run).eval()
    first, *_ = goldens.read(bundle)
    assert {"output.boxes.scores", "full.boxes.distances", "latents", "stream"} <= set(first.tensors)
    with torch.no_grad():
        answers = network(torch.from_numpy(first.tensors["input"])[None])
    assert first.tensors["full.boxes.scores"].shape == answers.scores[0].shape
