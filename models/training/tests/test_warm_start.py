"""A bundle's weights train on from where they were."""

import tomllib
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn

from isthmus_training import config, full, student, warm_start
from isthmus_training.__main__ import main
from isthmus_training.network import Encoder, Features, Unsent, block

PREFIX = "prefix_channels = [8, 12, 16]\nprefix_blocks = [0, 1, 1]\nchannels = ["


@pytest.fixture
def own_prefix(toy: Path) -> Path:
    """The toy's recipe with layers of the full network's own."""
    toy.write_text(toy.read_text().replace("channels = [", PREFIX, 1).replace("whole = true", "whole = false"))
    return toy


@pytest.mark.parametrize("changes", [[], ["split.widths=[50]"]], ids=["all widths", "one of them"])
def test_networks_start_as_the_bundle_was(pictures: Path, own_prefix: Path, tmp_path: Path, changes: list[str]) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    common = ["--data", str(pictures), "--config", str(own_prefix), "--threads", "2", "--run", str(run)]
    assert main(["train", *common, "--device", "cpu"]) == 0
    assert main(["export", *common, "--bundle", str(bundle)]) == 0

    def exported(file: str, x: torch.Tensor) -> list[torch.Tensor]:
        session = onnxruntime.InferenceSession(bundle / "onnx" / file)
        return [torch.from_numpy(value) for value in session.run(None, {session.get_inputs()[0].name: x.numpy()})]

    settings = config.load(own_prefix, changes)
    torch.manual_seed(5)
    x = torch.randn(64, 3, 32, 32)
    network = full.build(settings, 3)
    warm_start.load_full(network, bundle, x)
    split = student.Student(settings, network, None)
    warm_start.load_split(split, bundle, "s16", x, torch.zeros(0))
    with torch.no_grad():
        (logits,) = exported("full.onnx", x)
        torch.testing.assert_close(network.eval()(x), logits, atol=1e-3, rtol=1e-3)
        # The statistics are these pictures' own, so that training starts from the same function too.
        torch.testing.assert_close(network.train()(x), logits, atol=1e-2, rtol=1e-2)
        for width in settings.split.widths:
            latents, exits = zip(*(exported(f"head_s16_w{width}.onnx", one[None]) for one in x), strict=True)
            ours = split.head.eval()(x, width)
            torch.testing.assert_close(ours[0], torch.cat(latents), atol=1e-2, rtol=1e-2)
            torch.testing.assert_close(ours[1], torch.cat(exits), atol=1e-2, rtol=1e-2)
            (features,) = exported(f"adapter_s16_w{width}.onnx", ours[0])
            torch.testing.assert_close(split.adapter.eval()(ours[0], width), features, atol=1e-2, rtol=1e-2)
        (logits,) = exported("trunk_s16.onnx", features)
        torch.testing.assert_close(split.trunk.eval()(features), logits, atol=1e-2, rtol=1e-2)
        # A network that is a head and an adapter itself takes a width's.
        prefix = Unsent(Encoder([4, 4, 8, 8], [2, 2, 2, 2], [100]), 3, (16, 1), Features(16))
        stages = nn.Sequential(block(16, 16, 1), block(16, 24, 2))
        warm_start.load_unsent(prefix, stages, bundle, 50, x)
        sent = torch.cat([exported("head_s16_w50.onnx", one[None])[0] for one in x])
        (features,) = exported("adapter_s16_w50.onnx", sent)
        torch.testing.assert_close(prefix.eval()(x), features, atol=1e-2, rtol=1e-2)
        assert stages.eval()(features).shape == (64, 24, 1, 1)


def test_other_layers_are_refused(own_prefix: Path, tmp_path: Path, pictures: Path) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    common = ["--data", str(pictures), "--config", str(own_prefix), "--threads", "2", "--run", str(run)]
    assert main(["train", *common, "--device", "cpu"]) == 0
    assert main(["export", *common, "--bundle", str(bundle)]) == 0
    own_prefix.write_text(own_prefix.read_text().replace("[8, 12, 16]", "[8, 12, 20]"))
    network = full.build(config.load(own_prefix), 3)
    with pytest.raises(ValueError, match="other layers"):
        warm_start.load_full(network, bundle, torch.zeros(2, 3, 32, 32))


def test_a_larger_adapter_starts_anew_behind_the_head_that_is_there(
    pictures: Path, own_prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    common = ["--data", str(pictures), "--config", str(own_prefix), "--threads", "2"]
    assert main(["train", *common, "--run", str(run), "--device", "cpu"]) == 0
    assert main(["export", *common, "--run", str(run), "--bundle", str(bundle)]) == 0
    larger = ["split.adapter_units=24", "split.adapter_blocks=3"]
    settings = config.load(own_prefix, larger)
    known = student.latest(run)
    x = torch.randn(64, 3, 32, 32)
    for start in (bundle, run):
        network, _ = full.restore(settings, 3, run)
        split = student.Student(settings, network.eval(), None)
        capsys.readouterr()
        if start == bundle:
            warm_start.load_split(split, bundle, "s16", x, network.prefix(x))
        else:
            warm_start.load_run(split, known, run)
        assert f"the adapter has other layers than that of {start}, and starts anew" in capsys.readouterr().out
        before = student.restore(config.load(own_prefix), network, None, run).eval()
        with torch.no_grad():
            torch.testing.assert_close(split.eval().head(x, 50), before.head(x, 50), atol=2e-2, rtol=2e-2)
        assert split.adapter.plain(50)[0].out_channels == 24
    # From the command, with a head that stays as it is.
    changes = [*larger, 'stage1.trains=["adapter"]', "stage2.enabled=false", "stage3.enabled=false"]
    train = ["train", *common, "--run", str(tmp_path / "larger"), "--device", "cpu", "--only", "split", "--start", str(bundle)]
    assert main([*train, *(part for change in changes for part in ("--set", change))]) == 0
    assert "starts anew" in capsys.readouterr().out
    assert main([*train[:-1], str(run), "--set", "split.exit_units=9"]) == 1
    assert f"{run}: its head has other layers than the configuration describes" in capsys.readouterr().err


def test_a_split_is_added_before_a_bundles_trunk(pictures: Path, own_prefix: Path, tmp_path: Path) -> None:
    bundle, early = tmp_path / "bundle", tmp_path / "early.toml"
    common = ["--data", str(pictures), "--threads", "2"]
    first = [*common, "--config", str(own_prefix), "--run", str(tmp_path / "first")]
    assert main(["train", *first, "--device", "cpu"]) == 0
    assert main(["export", *first, "--bundle", str(bundle)]) == 0
    trunk = (bundle / "onnx/trunk_s16.onnx").read_bytes()
    recipe = own_prefix.read_text()
    for old, new in {
        "[split]\n": '[split]\nname = "s8"\nadapter_shared = true\n',
        "[8, 8, 16, 16]": "[8, 8, 16]",
        "[2, 2, 2, 2]": "[2, 2, 2]",
        '["adapter", "trunk"]': '["adapter"]',
        '["head", "adapter", "trunk"]': '["head", "adapter"]',
    }.items():
        assert old in recipe
        recipe = recipe.replace(old, new)
    early.write_text(recipe)

    settings, x = config.load(early), torch.randn(64, 3, 32, 32)
    network = full.build(settings, 3)
    warm_start.load_full(network, bundle, x)
    whole, part = (student.Student(config.load(path), network, None).eval() for path in (own_prefix, early))
    warm_start.load_split(whole, bundle, "s16", x, torch.zeros(0))
    with torch.no_grad():
        features = network.eval().prefix(x)
        warm_start.load_first_layers(part, bundle, x, features)
        torch.testing.assert_close(part.trunk(features), whole.trunk(features), atol=1e-3, rtol=1e-3)
        for width in settings.split.widths:
            y = x
            for layer in whole.head.encoder.layers[:3]:
                y = torch.relu(layer(y, width))
            torch.testing.assert_close(part.head.encoder(x, width), y, atol=1e-3, rtol=1e-3)

    second = [*common, "--config", str(early), "--run", str(tmp_path / "second")]
    assert main(["train", *second, "--device", "cpu", "--only", "split", "--start", str(bundle)]) == 0
    assert main(["export", *second, "--bundle", str(bundle), "--add"]) == 0
    manifest = tomllib.loads((bundle / "manifest.toml").read_text("utf-8"))
    late, added = manifest["splits"]
    assert (late["name"], added["name"], added["latent"]) == ("s16", "s8", [3, 4, 4])
    assert added["trunk"] == late["trunk"] and (bundle / late["trunk"]).read_bytes() == trunk
    assert len({width["adapter"] for width in added["widths"]}) == 1
    assert {point["split"] for point in manifest["points"]} == {"s16", "s8"}
    assert main(["evaluate", *common, "--config", str(early), "--bundle", str(bundle)]) == 0
    # The split that brought the trunk is not one to add.
    assert main(["export", *first, "--bundle", str(bundle), "--add"]) == 1
