"""The loop: repeating, resuming, choosing a precision, averaging weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from isthmus_training import checkpoint, loop, precision
from isthmus_training.__main__ import main


@pytest.fixture
def train(pictures: Path, toy: Path, tmp_path: Path) -> Any:
    """Trains on one thread, so that additions come in one order, and gives a stage's checkpoint."""

    def run(name: str, *arguments: str, stage: str = "full") -> dict[str, Any]:
        common = ["train", "--data", str(pictures), "--config", str(toy), "--threads", "1", "--device", "cpu"]
        assert main([*common, "--out", str(tmp_path / name), *arguments]) == 0
        state = checkpoint.restore(tmp_path / name / f"{stage}.pt")
        assert state is not None
        return state

    return run


def learnt(state: dict[str, Any]) -> list[dict[str, float]]:
    """What each epoch said, but for how long it took."""
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in state["history"]]


def test_a_run_repeats_with_its_seed(train: Any) -> None:
    first, second = (train(name, stage="stage3") for name in ("first", "second"))
    assert learnt(first) == learnt(second) and first["module"].keys() == second["module"].keys()
    assert all(torch.equal(value, second["module"][name]) for name, value in first["module"].items())
    other = train("other", "--set", "seed=4", stage="stage3")
    assert learnt(first) != learnt(other)


def test_a_resumed_run_learns_what_one_in_a_go_does(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train("whole", "--only", "full")

    # After the first epoch's checkpoint, at the second's line.
    report, said = loop.report, 0

    def stop_at_the_second(*values: Any) -> None:
        nonlocal said
        said += 1
        report(*values)
        if said == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "report", stop_at_the_second)
        train("stopped", "--only", "full")
    resumed = train("stopped", "--only", "full")
    assert learnt(resumed) == learnt(whole)
    for part in ("module", "average"):
        assert all(torch.equal(value, resumed[part][name]) for name, value in whole[part].items())


@pytest.mark.parametrize("slow", precision.PRECISIONS)
def test_rates_are_measured_by_turns_for_a_second_of_each(slow: str) -> None:
    now, steps = 0.0, []

    def step(chosen: str) -> int:
        nonlocal now
        steps.append(chosen)
        # The first step of each takes long, and is not counted.
        now += 7.0 if steps.count(chosen) == 1 else 0.8 if chosen == slow else 0.1
        return 16

    rates = precision.rates(step, lambda: now)
    (fast,) = {*precision.PRECISIONS} - {slow}
    assert rates == {slow: pytest.approx(20.0), fast: pytest.approx(160.0)}
    # Two of the slow ones are more than a second, of the fast ones ten or, as sums of tenths go, eleven.
    assert steps.count(slow) == 1 + 2 and steps.count(fast) in (1 + 10, 1 + 11)
    assert set(steps[2:4]) == set(precision.PRECISIONS)


@pytest.mark.parametrize("faster", precision.PRECISIONS)
def test_auto_takes_the_faster_precision_and_leaves_no_trace(
    train: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], faster: str
) -> None:
    def rates(step: Any) -> dict[str, float]:
        return {name: step(name) * (200.0 if name == faster else 1.0) for name in precision.PRECISIONS}

    monkeypatch.setattr(precision, "rates", rates)
    chosen = train("chosen", "--set", "precision='auto'", stage="stage3")
    said = capsys.readouterr().out
    for stage in ("full", "stage1", "stage2", "stage3"):
        assert f"{stage}: trains in {faster} (" in said
    assert f"1600 pictures a second in {faster}" in said
    named = train("named", "--set", f"precision='{faster}'", stage="stage3")
    assert "trains in" not in capsys.readouterr().out
    assert learnt(chosen) == learnt(named)
    assert all(torch.equal(value, named["module"][name]) for name, value in chosen["module"].items())


def test_an_averaged_stage_leaves_the_average(train: Any) -> None:
    plain = train("plain", stage="stage1")
    averaged = train("averaged", "--set", "stage1.average=0.9", stage="stage1")
    assert "average" not in plain
    for name, value in averaged["average"].items():
        assert torch.equal(averaged["module"][name], value)
    # Every width's norms were measured anew: as many times as there are batches, narrower ones in turn.
    counted = {name: int(value) for name, value in averaged["module"].items() if name.endswith("num_batches_tracked")}
    of_heads = {name: count for name, count in counted.items() if name.startswith(("head.", "adapter."))}
    assert len(of_heads) > 10 and set(of_heads.values()) == {100}
    # The trunk, which this stage does not train, keeps its own.
    assert all(torch.equal(v, plain["module"][k]) for k, v in averaged["module"].items() if k.startswith("trunk."))
    moved = [k for k, v in averaged["module"].items() if k.startswith("head.") and not torch.equal(v, plain["module"][k])]
    assert any(name.endswith("conv.weight") for name in moved)


def test_other_checkpoints_are_refused_with_what_to_do(
    pictures: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--data", str(pictures), "--config", str(toy), "--out", str(tmp_path), "--device", "cpu"]
    torch.save({"both": {}, "average": {}, "steps": 0, "history": []}, tmp_path / "full.pt")
    assert main(arguments) == 1
    assert f"{tmp_path / 'full.pt'} is a checkpoint of format 1, expected 2" in capsys.readouterr().err
    (tmp_path / "full.pt").write_bytes(b"PK and no more")
    assert main(arguments) == 1
    assert "is no checkpoint of this kit, or is damaged" in capsys.readouterr().err
