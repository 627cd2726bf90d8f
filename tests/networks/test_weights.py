import pytest
import safetensors.torch
import torch

from medseg.durable import sha256_file, write_json
from medseg.errors import InputError
from medseg.networks.build import build_network
from medseg.networks.weights import load_matching

UNET = {
    "kind": "unet", "dimensions": 3, "channels": 1, "classes": 3, "features": [2, 4],
    "strides": [[1, 1, 1], [2, 2, 2]], "kernel_sizes": [[3, 3, 1], [3, 3, 3]], "norm": "batch",
}  # fmt: skip
FCN = {
    "kind": "fcn", "dimensions": 2, "channels": 3, "classes": 2, "encoder": "resnet18", "width": 4, "norm": "batch",
    "strides": [[1, 1, 1], *[[2, 2, 1]] * 5], "kernel_sizes": [[3, 3, 1]] * 6,
}  # fmt: skip


def network(seed, architecture=UNET, **changes):
    torch.manual_seed(seed)
    return build_network(architecture | changes)


def written(path, weights):
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return path


def test_a_model_folder_gives_all_but_its_heads(tmp_path):
    source, target = network(0), network(1, classes=5)
    folder = tmp_path / "model"
    folder.mkdir()
    file = written(folder / "weights.safetensors", source.state_dict())
    write_json(folder / "model.json", {"files": {"weights.safetensors": sha256_file(file)}})
    before = target.heads[0].weight.clone()
    report = load_matching(target, folder)
    assert torch.equal(target.encoder[1][0][0].weight, source.encoder[1][0][0].weight)
    assert torch.equal(target.heads[0].weight, before)
    assert report.untouched == ("heads.0.weight", "heads.0.bias")
    assert report.skipped["heads.0.bias"] == "has shape [3], the network's [5]"
    assert report.sha256 == sha256_file(file)
    assert "skipped heads.0.bias (has shape [3], the network's [5])" in str(report)
    assert report.record()["loaded"] == len(report.loaded)
    (folder / "model.json").write_text('{"files": {"weights.safetensors": "0"}}')
    with pytest.raises(InputError, match=r"model: weights\.safetensors does not have its checksum"):
        load_matching(target, folder)


def test_pictures_kernels_are_turned(tmp_path):
    # A ResNet trained on (row, column) gives, on our (x, y), the transposed features of the transposed picture.
    source = network(0, FCN).eval()
    turned = {
        name.removeprefix("encoder."): t.transpose(2, 3) if t.ndim == 4 else t
        for name, t in source.state_dict().items()
        if name.startswith("encoder.")
    }
    target = network(1, FCN).eval()
    report = load_matching(target, written(tmp_path / "resnet18.safetensors", turned))
    assert all(torch.equal(a, b) for a, b in zip(source.encoder.parameters(), target.encoder.parameters(), strict=True))
    assert not report.skipped
    assert all(name.startswith("scores.") for name in report.untouched)


def test_a_volume_of_equal_slices_gives_what_the_slice_gave(tmp_path):
    # Without padding along z: every kernel is inflated, and the middle slice sees equal neighbours only.
    source = network(0, FCN, channels=3).eval()
    names = {name.removeprefix("encoder."): t for name, t in source.state_dict().items() if name.startswith("encoder.")}
    deep = FCN | {"dimensions": 3, "channels": 1, "kernel_sizes": [[3, 3, 3]] * 6}
    target = network(1, deep).eval()
    report = load_matching(target, written(tmp_path / "resnet18.safetensors", names))
    assert report.adapted["encoder.conv1.weight"] == "inflated to 3D and adapted from 3 to 1 channels"
    slice_ = torch.randn(1, 1, 16, 24)
    volume = slice_[..., None].expand(-1, -1, -1, -1, 15)
    kernel = source.encoder.conv1.weight
    expected = torch.nn.functional.conv2d(slice_.expand(-1, 3, -1, -1), kernel.transpose(2, 3), stride=2, padding=3)
    torch.testing.assert_close(target.encoder.conv1(volume)[..., 7], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_equal_channels_keep_the_answer(tmp_path, channels):
    source, target = network(0, FCN, channels=3), network(1, FCN, channels=channels)
    load_matching(target, written(tmp_path / "w.safetensors", source.state_dict()))
    x = torch.randn(1, 1, 16, 16)
    same, own = x.expand(-1, 3, -1, -1), x.expand(-1, channels, -1, -1)
    if channels in (1, 6):  # 2 and 4 don't hold each channel equally often; their scale is right, the filter another
        torch.testing.assert_close(target.encoder.conv1(own), source.encoder.conv1(same))
    assert target.encoder.conv1.weight.shape[1] == channels


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f / "none.safetensors", r"none\.safetensors: is no file"),
        (lambda f: f, "holds no weights.safetensors, expected the folder of one trained model"),
        (
            lambda f: (f / "w.pth", (f / "w.pth").write_bytes(b"x"))[0],
            r"w\.pth: has suffix '\.pth', expected \.safetensors",
        ),
        (
            lambda f: (f / "w.safetensors", (f / "w.safetensors").write_bytes(b"x" * 30))[0],
            "is no whole safetensors file",
        ),
        (
            lambda f: written(f / "w.safetensors", {"other.weight": torch.ones(3)}),
            "none of its 1 tensors fits the network",
        ),
        (lambda f: written(f / "w.safetensors", {"up.0.bias": torch.tensor([1, torch.nan])}), "not finite"),
    ],
)
def test_what_can_not_be_used_is_refused(tmp_path, make, message):
    target = network(1)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_matching(target, make(tmp_path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
