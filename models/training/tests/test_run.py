"""Train, stop, continue, export, evaluate: on three colours."""

import hashlib
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from conftest import write_teacher

from isthmus_training import entropy, goldens, loop
from isthmus_training.__main__ import main
from isthmus_training.quantise import quantise


def test_train_resume_export_evaluate(
    pictures: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    common = ["--data", str(pictures), "--config", str(toy), "--threads", "2"]
    train = ["train", *common, "--out", str(run), "--device", "cpu"]

    report, reports = loop.report, 0

    def stop_after_one(*values: Any) -> None:
        nonlocal reports
        reports += 1
        report(*values)
        if reports == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "report", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        main(train)
    monkeypatch.undo()
    assert main(train) == 0
    said = capsys.readouterr().out
    assert "full: continues after epoch 1" in said
    assert "1 pictures are left out" in said
    assert all(f"stage{number} epoch 1" in said for number in (1, 2, 3))
    assert "whole_accuracy" in said and "accuracy_w50_c3_b6" in said and "invariant" in said and "last" in said

    assert main(["export", *common, "--run", str(run), "--bundle", str(bundle)]) == 0
    manifest = tomllib.loads((bundle / "manifest.toml").read_text())
    assert manifest["labels"] == ["blue", "green", "red"]
    assert manifest["full"]["accuracy"] > 0.5
    assert len(manifest["points"]) == 2 * 2 * 2
    for name, entry in manifest["files"].items():
        data = (bundle / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    on_disk = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert on_disk - set(manifest["files"]) == {"manifest.toml", "MODEL_CARD.md"}

    split = manifest["splits"][0]
    quantisers = {(w["name"], q["bits"]): q for w in split["widths"] for q in w["quantisers"]}
    written = goldens.read(bundle)
    assert len(written) == goldens.COUNT
    for tensors, about in written:
        channels, bits = int(about["channels"]), int(about["bits"])
        q = quantisers[about["width"], bits]
        scale, zero = np.array(q["scale"][:channels]), np.array(q["zero_point"][:channels])
        np.testing.assert_array_equal(tensors["symbols"], quantise(tensors["latents"][:channels], scale, zero, bits))
        zeros = np.array(q["zero_point"])
        tables = entropy.Tables.contexts_from_bytes((bundle / q["contexts"]).read_bytes(), zeros, 2**bits)
        decoded = entropy.decode(tensors["stream"].tobytes(), [tensors["symbols"].shape], tables)[0]
        np.testing.assert_array_equal(decoded, tensors["symbols"])
        assert tensors["layer_bytes"].sum() == len(tensors["stream"])

    outcomes = zstandard.decompress((bundle / "outcomes.csv.zst").read_bytes()).decode().splitlines()
    assert outcomes[0] == "frame,label,point,bytes,right,confidence"
    rows = [line.split(",") for line in outcomes[1:]]
    frames = 3 * round(24 * 0.25)
    assert len(rows) == frames * (1 + 2 + len(manifest["points"]))
    for point in manifest["points"]:
        name = f"{point['split']}/{point['width']}/c{point['channels']}/b{point['bits']}"
        mine = [row for row in rows if row[2] == name]
        assert sum(int(row[4]) for row in mine) / frames == pytest.approx(point["accuracy"], abs=1e-5)
        assert sum(int(row[3]) for row in mine) / frames == pytest.approx(point["bytes_mean"], abs=0.06)

    capsys.readouterr()
    assert main(["evaluate", *common, "--bundle", str(bundle)]) == 0
    said = capsys.readouterr().out
    assert f"full: accuracy {manifest['full']['accuracy']:.4f}" in said
    assert said.count("/c") == 8
    shutil.rmtree(bundle)


def test_a_teacher_that_sees_the_views_gives_hints(
    pictures: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = np.array([[-1, -1, 2], [-1, 2, -1], [2, -1, -1]], np.float32)
    write_teacher(tmp_path / "teacher.onnx", weights, stride=16)
    recipe = toy.read_text().replace("[full]", '[full]\noptimiser = "adamw"')
    toy.write_text(recipe + '\n[distil]\nviews = true\nhints = ["features"]\n')
    common = ["--data", str(pictures), "--config", str(toy), "--threads", "2", "--out", str(tmp_path / "run")]
    train = ["train", *common, "--device", "cpu", "--teacher", str(tmp_path / "teacher.onnx")]
    assert main(train) == 0
    assert "stage3 epoch 1" in capsys.readouterr().out

    write_teacher(tmp_path / "teacher.onnx", weights, stride=3)
    assert main([*train, "--out", str(tmp_path / "other")]) == 1
    assert "features lies on a grid of (11, 11), which the network does not have" in capsys.readouterr().err


def test_two_processes_learn_what_one_does(pictures: Path, toy: Path, tmp_path: Path) -> None:
    # Two micro-batches a step, one for each process.
    toy.write_text(toy.read_text().replace("batch = 16", "batch = 54", 1))
    common = ["train", "--data", str(pictures), "--config", str(toy), "--device", "cpu", "--only", "full", "--threads", "1"]
    assert main([*common, "--out", str(tmp_path / "one")]) == 0
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*several, "-m", "isthmus_training", *common, "--out", str(tmp_path / "two")]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("full epoch 2") == 1

    one, two = (torch.load(tmp_path / name / "full.pt", weights_only=True)["module"] for name in ("one", "two"))
    for name, value in one.items():
        if name.endswith(("weight", "bias")):
            torch.testing.assert_close(two[name], value, atol=1e-3, rtol=1e-3)


def test_a_split_network_that_needs_no_full_one_is_trained_alone(
    pictures: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [
        "train",
        "--data",
        str(pictures),
        "--config",
        str(toy),
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
        "--only",
        "split",
    ]
    assert main(train) == 1
    assert "train the full network first" in capsys.readouterr().err
    changes = ("stage1.enabled=false", "stage2.enabled=false", "stage3.soft=0.0", "stage3.whole=false")
    assert main([*train, *(part for change in changes for part in ("--set", change))]) == 0
    assert "stage3 epoch 1" in capsys.readouterr().out
    assert not (tmp_path / "full.pt").exists()


def test_a_missing_run_is_said_plainly(pictures: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(pictures), "--config", str(toy), "--run", str(tmp_path), "--bundle", str(tmp_path / "b")]
    assert main(["export", *arguments]) == 1
    assert "train the full network first" in capsys.readouterr().err
