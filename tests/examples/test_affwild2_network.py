"""The backbones of the Aff-Wild2 example: shapes, published key names, strict loaders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from examples.affwild2.dataset.files import DamagedFile
from examples.affwild2.network import backbones
from examples.affwild2.network.backbones import IR50, DemoFaces, DemoVoice, DemoWords, VGGish


def _skeleton(module: type[nn.Module]) -> nn.Module:
    """Builds a module without allocating its weights."""
    with torch.device("meta"):
        return module()


def _published(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A state dict of the right shapes, cheap on disk: one random number per key."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand((), generator=generator).expand(value.shape)
        if value.is_floating_point()
        else torch.zeros_like(value, device="cpu")
        for key, value in module.state_dict().items()
    }


@pytest.mark.parametrize(
    ("first", "last", "prefix"),
    [
        (0, 3, "backbone.input_layer."),
        (4, 9, "backbone.output_layer."),
        (10, 30, "backbone.body."),
        (187, 188, "logits."),
    ],
)
def test_ir50_parameters_have_the_published_order(first: int, last: int, prefix: str) -> None:
    names = [name for name, _ in _skeleton(IR50).named_parameters()]
    assert len(names) == 189
    assert all(name.startswith(prefix) for name in names[first : last + 1])
    assert not names[first - 1].startswith(prefix) or first == 0


def test_ir50_stages_begin_where_published() -> None:
    named = list(_skeleton(IR50).named_parameters())
    for first, inputs, width in ((31, 64, 128), (62, 128, 256), (163, 256, 512)):
        name, weight = named[first]
        assert name.endswith("shortcut_layer.0.weight")
        assert weight.shape == (width, inputs, 1, 1)
    assert sum(weight.numel() for _, weight in named) == 37_287_624


def test_ir50_maps_faces_to_unit_vectors() -> None:
    model = IR50().eval()
    with torch.inference_mode():
        out = model(torch.rand(2, 3, 40, 40) * 2 - 1)
    assert out.shape == (2, 512)
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(2))
    sizes: list[tuple[int, ...]] = []
    for i in (2, 6, 20, 23):  # the last unit of each stage
        unit = model.backbone.get_submodule(f"body.{i}")
        unit.register_forward_hook(lambda _, __, y: sizes.append(tuple(y.shape[1:])))
    model(torch.zeros(1, 3, 40, 40))
    assert sizes == [(64, 40, 40), (128, 20, 20), (256, 10, 10), (512, 5, 5)]


def test_release_groups_are_the_published_positions() -> None:
    face = _skeleton(IR50)
    assert isinstance(face, IR50)
    parameters = list(face.parameters())
    spans = [(4, 9), (163, 186), (142, 162)]
    for group, (first, last) in zip(face.release_groups(), spans, strict=True):
        assert [id(p) for p in group] == [id(p) for p in parameters[first : last + 1]]
    voice = _skeleton(VGGish)
    assert isinstance(voice, VGGish)
    parameters = list(voice.parameters())
    for group, first in zip(voice.release_groups(), (16, 14, 12), strict=True):
        assert [id(p) for p in group] == [id(p) for p in parameters[first : first + 2]]
    demo = DemoFaces()
    assert [len(g) for g in demo.release_groups()] == [len(list(demo.parameters()))]


def test_vggish_has_the_published_keys_and_flattens_bands_last() -> None:
    model = VGGish().eval()
    convolutions = [f"features.{i}" for i in (0, 3, 6, 8, 11, 13)]
    layers = [*convolutions, *(f"embeddings.{i}" for i in (0, 2, 4))]
    assert list(model.state_dict()) == [f"{x}.{p}" for x in layers for p in ("weight", "bias")]
    seen: list[Tensor] = []
    model.embeddings[0].register_forward_hook(lambda _, x, __: seen.append(x[0]))
    with torch.inference_mode():
        patch = torch.randn(1, 96, 64)
        out = model(patch)
        maps = model.features(patch[:, None])  # (1, 512, 6, 4)
    assert maps.shape == (1, 512, 6, 4)
    torch.testing.assert_close(seen[0].reshape(6, 4, 512), maps[0].permute(1, 2, 0))
    assert out.shape == (1, 128)
    assert (out < 0).any(), "the last layer must have no ReLU"


@pytest.mark.parametrize(
    ("load", "module"), [(backbones.load_ir50, IR50), (backbones.load_vggish, VGGish)]
)
def test_published_weights_are_loaded_strictly(
    tmp_path: Path, load: object, module: type[nn.Module]
) -> None:
    assert callable(load)
    state = _published(_skeleton(module))
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    loaded = load(path)
    for key, value in loaded.state_dict().items():
        torch.testing.assert_close(value, state[key].clone(), msg=key)
    first = next(iter(state))
    torch.save({f"module.{key}": value for key, value in state.items()}, path)
    with pytest.raises(DamagedFile, match=f"does not fit {module.__name__}: key '{first}' is miss"):
        load(path)


def test_a_wrong_key_is_named(tmp_path: Path) -> None:
    state, path = _published(DemoFaces()), tmp_path / "weights.pth"
    torch.save(state | {"extra.bias": torch.zeros(1)}, path)
    with pytest.raises(DamagedFile, match=r"does not fit DemoFaces: key 'extra\.bias' is unknown$"):
        backbones.load_weights(DemoFaces(), path)
    torch.save(state | {"output.bias": torch.zeros(3)}, path)
    message = r"key 'output\.bias' has shape \(3,\), expected \(64,\)$"
    with pytest.raises(DamagedFile, match=message):
        backbones.load_weights(DemoFaces(), path)
    torch.save(state | {"output.bias": 3.0}, path)
    with pytest.raises(DamagedFile, match=r"key 'output\.bias' is no tensor"):
        backbones.load_weights(DemoFaces(), path)
    torch.save({}, path)
    with pytest.raises(DamagedFile, match=r"is missing; .*, and 15 more"):
        backbones.load_weights(DemoFaces(), path)


def test_a_file_without_weights_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    for content in (b"", b"not weights", b"\x80\x02"):
        path.write_bytes(content)
        with pytest.raises(DamagedFile, match="cannot be loaded as weights") as caught:
            backbones.load_weights(DemoFaces(), path)
        assert str(caught.value).startswith(str(path))
    torch.save([1, 2], path)
    with pytest.raises(DamagedFile, match="must hold a state dict, found list"):
        backbones.load_weights(DemoFaces(), path)
    with pytest.raises(DamagedFile, match="cannot be loaded as weights"):
        backbones.load_weights(DemoFaces(), tmp_path / "none.pth")


def test_demo_faces_do_not_mix_frames() -> None:
    model = DemoFaces()
    faces = torch.rand(5, 3, 40, 40)
    out = model(faces)
    assert out.shape == (5, model.dim)
    torch.testing.assert_close(out[2:3], model(faces[2:3]))


def test_demo_voice_is_mean_and_deviation_of_each_band() -> None:
    patches = torch.randn(3, 96, 64)
    out = DemoVoice()(patches)
    assert out.shape == (3, DemoVoice.dim)
    torch.testing.assert_close(out[:, :64], patches.mean(1))
    torch.testing.assert_close(out[:, 64:], patches.std(1))
    assert not list(DemoVoice().parameters())


def test_no_word_is_zero_and_stays_so() -> None:
    model = DemoWords(10)
    out = model(torch.tensor([0, 3, 10]))
    assert out.shape == (3, model.dim)
    assert (out[0] == 0).all()
    out.sum().backward()
    grad = model.table.weight.grad
    assert grad is not None
    assert (grad[0] == 0).all()
    assert (grad[3] != 0).all()
