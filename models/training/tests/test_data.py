import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_teacher
from PIL import Image

from isthmus_training import config, data
from isthmus_training.config import Normalisation
from isthmus_training.data import Pictures, normalise
from isthmus_training.teacher import LabelMaps, OnlineTeacher

AS_IT_IS = Normalisation([0.0] * 3, [1.0] * 3)


def test_a_plain_folder_is_divided_by_seed_and_bad_files_are_named(pictures: Path) -> None:
    train, val = data.scan(pictures, 0.25, 3)
    assert train.classes == ["blue", "green", "red"]
    assert not set(train.paths) & set(val.paths)
    assert len(train.paths) + len(val.paths) == 73
    assert data.scan(pictures, 0.25, 3)[1].paths == val.paths
    assert data.scan(pictures, 0.25, 4)[1].paths != val.paths
    loaded = [data.load(folder, (32, 32), 2) for folder in (train, val)]
    assert [Path(path).name for one in loaded for path in one.bad] == ["broken.png"]
    assert sum(map(len, loaded)) == 72


def test_preprocessing_crops_the_centre_and_drops_nothing_else() -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = 200
    assert (data.preprocess(Image.fromarray(pixels), (20, 20)) == 200).all()
    grey = data.preprocess(Image.fromarray(pixels[..., 0]), (40, 20))
    assert grey.shape == (20, 40, 3) and (grey[..., 0] == grey[..., 2]).all()
    rotated = Image.fromarray(pixels)
    exif = rotated.getexif()
    exif[0x0112] = 6
    rotated.info["exif"] = exif.tobytes()
    assert data.preprocess(rotated, (40, 80)).shape == (80, 40, 3)


def test_views_repeat_with_their_seed() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)
    pictures = data.Pictures(["a", "b"], pixels, torch.tensor([0, 1, 0, 1]), [])
    augmentation = data.Augmentation(0.3, 0.2, 1.0, True)

    def views(seed: int) -> data.Views:
        return data.random_views(pictures, range(4), (32, 32), augmentation, Normalisation([0.5] * 3, [0.2] * 3), seed)

    assert torch.equal(views(1).pictures, views(1).pictures)
    assert not torch.equal(views(1).pictures, views(2).pictures)
    assert 0 < views(1).kept.mean() <= 1
    mixed = views(1).mix(torch.eye(4))
    torch.testing.assert_close(mixed.sum(1), torch.ones(4))


def test_a_gpu_sees_what_pillow_makes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 56, 40, 3), dtype=np.uint8)
    pictures = data.Pictures(["a", "b"], pixels, torch.tensor([0, 1, 0, 1, 0, 1]), [])
    augmentation = data.Augmentation(0.1, 0.0, 0.0, True)
    for size in ((32, 32), (64, 96)):
        by_pillow = data.random_views(pictures, range(6), size, augmentation, AS_IT_IS, 1)
        tensors = dataclasses.replace(pictures, pixels=torch.from_numpy(pixels))
        by_products = data.random_views(tensors, range(6), size, augmentation, AS_IT_IS, 1)
        assert (by_pillow.boxes[:, 0] > by_pillow.boxes[:, 2]).any()
        assert torch.equal(by_products.boxes, by_pillow.boxes)
        # Pillow rounds after each of the two directions.
        torch.testing.assert_close(by_products.pictures * 255, by_pillow.pictures * 255, atol=1.5, rtol=0)


def test_annotated_things_stay_in_every_crop(tmp_path: Path) -> None:
    # A white thing on black, off the centre; the second class is only there because two are needed.
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[20:32, 50:60] = 255
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    files = [f"{name}/{number}.png" for name in ("a", "b") for number in range(4)]
    content = {
        "images": [{"id": i, "file_name": file} for i, file in enumerate(files)],
        "annotations": [{"image_id": i, "bbox": [50, 20, 10, 12]} for i in range(len(files))],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    train, _ = data.scan(tmp_path, 0.25, 1)
    pictures = data.load(train, (60, 60), 1)
    assert pictures.objects is not None
    np.testing.assert_allclose(pictures.objects[0], np.array([40, 20, 50, 32]) / 60, atol=1e-6)
    augmentation = data.Augmentation(0.05, 0.0, 0.0, False)
    for seed in range(20):
        views = data.random_views(pictures, [0, 1], (64, 64), augmentation, AS_IT_IS, seed)
        left, top, right, bottom = views.boxes.T
        area = 255 * 10 * 12 / 60**2 / ((right - left) * (bottom - top))
        torch.testing.assert_close(views.pictures.mean((1, 2, 3)) * 255, area, atol=4, rtol=0.1)

    content["annotations"].pop()
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no box for 'b/3.png'"):
        for seed in range(9):
            data.scan(tmp_path, 0.25, seed)


def test_label_maps_follow_the_crop_and_the_mirror() -> None:
    # One picture whose left half is class 0 and right half is class 1.
    maps = np.zeros((2, 2, 4, 4), np.float16)
    maps[:, 0, :, :2] = 8
    maps[:, 1, :, 2:] = 8
    teacher = LabelMaps(maps, torch.tensor([0, 1]), 2)
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [1.0, 0.0, 0.0, 1.0]])
    logits = teacher.logits(torch.tensor([0, 1]), boxes, (1, 2))
    torch.testing.assert_close(logits[0, :, 0], torch.tensor([[8.0, 8.0], [0.0, 0.0]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(logits[1, :, 0], torch.tensor([[0.0, 8.0], [8.0, 0.0]]), atol=1e-3, rtol=0)


def test_an_online_teacher_answers_the_view_itself(tmp_path: Path) -> None:
    # Its features are the picture's blue and red, its outputs their means.
    write_teacher(tmp_path / "teacher.onnx", np.array([[0, 0, 1], [1, 0, 0]], np.float32), stride=1)
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    pixels[0, ..., 2] = pixels[1, ..., 0] = 255
    pictures = Pictures(["blue", "red"], pixels, torch.tensor([0, 1]), [])
    by = Normalisation([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])

    teacher = OnlineTeacher(tmp_path / "teacher.onnx", pictures, ["features"], by)
    assert teacher.columns.tolist() == [0, 1]
    answers = teacher.predict(normalise(torch.from_numpy(pixels), by)[:, :, :4, :6])
    torch.testing.assert_close(answers.whole, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    assert answers.features[0].shape == (2, 2, 4, 6)
    with pytest.raises(ValueError, match="no tensor 'other'"):
        OnlineTeacher(tmp_path / "teacher.onnx", pictures, ["other"], by)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"name": "x", "colour": 1}, "unknown key `colour`"),
        ({"name": "x", "full": {"epochs": 3}}, "unknown key `full.epochs`"),
        ({"name": "x", "full": {"batch": "64"}}, "`full.batch` must be of type int"),
        ({"name": "x", "data": {"size": [100, 96]}}, "multiples of 32"),
        ({"name": "x", "split": {"channels": [8, 4]}}, "split.channels"),
        ({"name": "x", "split": {"name": "s8"}}, "split.name: s8 must name the head's stride, s16"),
        ({"name": "x", "network": {"blocks": [1]}}, "network.channels and network.blocks"),
        ({"name": "x", "precision": "f16"}, "precision: 'f16' is none of auto, f32, bf16"),
        ({"name": "x", "full": {"optimiser": "adam"}}, "full.optimiser: 'adam' is neither sgd nor adamw"),
        ({"name": "x", "distil": {"hints": ["t45"]}}, "distil.hints: need a teacher that sees the views"),
        ({"name": "x", "stage3": {"invariant": 0.5, "passes": 1}}, "stage3.invariant: needs another pass"),
        ({}, "missing key `name`"),
    ],
)
def test_configuration_errors_name_the_key(table: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config.parse(table)


def test_a_setting_can_be_changed_for_one_run(toy: Path) -> None:
    changes = ["stage3.rate=0", "distil.enabled = false", "split.widths=[50]"]
    changed, shipped = config.load(toy, changes), config.load(toy)
    assert (changed.stage3.rate, changed.distil.enabled, changed.split.widths) == (0.0, False, [50])
    assert changed.stage3.phases == shipped.stage3.phases and changed.full == shipped.full
    with pytest.raises(ValueError, match="--set rate: not a KEY=VALUE of TOML"):
        config.load(toy, ["rate"])
    with pytest.raises(ValueError, match="unknown key `stage3.pace`"):
        config.load(toy, ["stage3.pace=1"])


def test_the_shipped_configurations_are_read() -> None:
    """A file has its bundle's name, and behind a dash what it adds to that."""
    shipped = sorted((Path(__file__).parents[3] / "configs" / "training").glob("*.toml"))
    assert {path.stem for path in shipped} >= {"photos", "street"}
    for path in shipped:
        assert config.load(path).name == path.stem.split("-")[0]
