"""The live example says what the offline network says of the same windows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

from examples.common.methods import METHODS
from examples.common.network import SavedOptions, SensorNet, load_model, save_model
from examples.common.recordings import SENSORS, WINDOW
from examples.live.__main__ import Options, live_model, offline, recording, replay, run
from examples.watch.data import load_recordings


def network(method: str) -> SensorNet:
    """Builds a network whose fusion does something, as a trained one's does."""
    net = SensorNet(METHODS[method], 7, dropout=0.2).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.mark.parametrize("method", ["jca", "rcma", "gyroscope"])
def test_live_equals_offline_on_the_same_windows(method: str) -> None:
    net = network(method)
    streams = recording(load_recordings(), 3, WINDOW + 20)
    streams = {name: streams[name] for name in net.sensors}
    live, state, scores = live_model(net), None, []
    with torch.inference_mode():
        for frame in replay(streams, fast=True):
            prediction, state = live.stream(frame, state)
            scores.append(prediction)
    torch.testing.assert_close(torch.cat(scores), offline(net, streams), rtol=1e-4, atol=1e-5)
    assert state is not None
    assert state.windows["gyroscope"].shape[1] == WINDOW


def test_the_command_prints_latency_and_real_time_factor() -> None:
    """The network that is kept here, on a person whom it has not seen."""
    console = Console(record=True, width=100, quiet=False)
    assert run(Options(frames=60, fast=True), console) < 1e-4
    text = " ".join(console.export_text().split())
    for word in ("latency, 99 %", "real-time factor", "largest difference from offline"):
        assert word in text
    assert "person 1, held out" in text


def test_a_saved_network_is_the_same_again(tmp_path: Path) -> None:
    net, options = network("rcma"), SavedOptions("rcma", load_recordings().names, 0.2, (1, 2))
    save_model(tmp_path / "net.safetensors", net, options)
    again, found = load_model(tmp_path / "net.safetensors")
    assert found == options
    streams = {name: torch.randn(2, 9, dim) for name, dim in SENSORS.items()}
    assert torch.equal(again(streams), net(streams))


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"there is no .*none\.safetensors; run `python -m examples\.watch"
    ):
        run(Options(model=tmp_path / "none.safetensors"), Console(quiet=True))
    file = tmp_path / "net.safetensors"
    names = load_recordings().names
    save_model(file, network("rcma"), SavedOptions("rcma", names, 0.2))
    with pytest.raises(SystemExit, match="there is no recording 140; they are numbered 0 to 139"):
        run(Options(model=file, recording=140), Console(quiet=True))
