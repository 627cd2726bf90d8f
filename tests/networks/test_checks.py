import pytest
import torch

from medseg.errors import ConfigError
from medseg.networks.checks import check_network

UNET = {
    "kind": "unet", "dimensions": 2, "channels": 1, "classes": 2, "features": [2, 4, 4],
    "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 1]], "kernel_sizes": [[3, 3, 1]] * 3,
}  # fmt: skip


def monai(name, dimensions=2, **arguments):
    return {
        "kind": "monai",
        "name": name,
        "dimensions": dimensions,
        "channels": 1,
        "classes": 2,
        "arguments": arguments,
    }


def test_a_patch_that_fits_passes_and_draws_nothing():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check_network(UNET, (16, 8))
    check_network(monai("SwinUNETR", feature_size=12), (64, 64))  # computes numbers while it is built
    assert torch.rand(1) == expected


def test_a_patch_that_does_not_fit_gets_one_that_would():
    with pytest.raises(
        ConfigError, match=r"unet can't take patches of \[18, 8\] \(.*\); \[20, 8\] would do; set prepare"
    ):
        check_network(UNET, (18, 8))
    with pytest.raises(ConfigError, match=r"SwinUNETR can't take patches of \[40, 56\] \(.*\); \[64, 64\] would do"):
        check_network(monai("SwinUNETR", feature_size=12), (40, 56))


def test_values_that_make_no_network_are_refused():
    with pytest.raises(ConfigError, match="network: features has 1 entries, expected at least two stages"):
        check_network(UNET | {"features": [2]}, (16, 16))
    with pytest.raises(ConfigError, match=r"network\.arguments: SwinUNETR refuses them: .*divisible"):
        check_network(monai("SwinUNETR", feature_size=13), (64, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MedNeXtS", "MedNeXtB", "MedNeXtM", "MedNeXtL"])
def test_the_sizes_of_mednext_take_patches_of_32(name):
    for dimensions in (2, 3):
        check_network(monai(name, dimensions, deep_supervision=True), (32,) * dimensions)
    # one window alone has one value per channel at the coarsest of 16, which group norm refuses
    with pytest.raises(ConfigError, match=r"\[32, 32, 32\] would do"):
        check_network(monai(name, 3), (16, 16, 16))
