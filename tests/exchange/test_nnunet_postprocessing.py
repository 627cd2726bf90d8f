import json

import pytest

from medseg.errors import InputError, ModelError
from medseg.exchange.nnunet_postprocessing import read_postprocessing

KEEP = "remove_all_but_largest_component_from_segmentation"
PLAIN = {"background": (0,), "liver": (1,), "tumour": (2,)}
REGIONS = {"background": (0,), "whole": (1, 3, 2), "core": (3, 2)}


def read(folder, labels, *steps):
    content = {"postprocessing_fns": [f for f, _ in steps], "postprocessing_kwargs": [k for _, k in steps]}
    (folder / "postprocessing.json").write_text(json.dumps(content))
    return [str(step) for step in read_postprocessing(folder / "postprocessing.json", labels)]


def test_steps_are_named_after_classes(tmp_path):
    together, alone = (KEEP, {"labels_or_regions": [1, 2]}), (KEEP, {"labels_or_regions": 2, "background_label": 0})
    assert read(tmp_path, PLAIN, together, alone) == [
        "all classes together: keep the largest components", "tumour: keep the largest components"
    ]  # fmt: skip
    assert read(tmp_path, REGIONS, (KEEP, {"labels_or_regions": [2, 3]})) == ["core: keep the largest components"]
    assert read(tmp_path, PLAIN) == []


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (("os.system", {"labels_or_regions": 1}), r"postprocessing\.json: asks for os\.system"),
        ((KEEP, {"labels_or_regions": 1, "background_label": 2}), r"asks for remove_all"),
        ((KEEP, {"labels_or_regions": 7}), r"cleans the values \['7'\], expected those of a label or of all"),
        ((KEEP, "text"), r"asks for remove_all"),
    ],
)
def test_other_steps_are_refused(step, sentence, tmp_path):
    with pytest.raises(ModelError, match=sentence):
        read(tmp_path, PLAIN, step)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ModelError, match=r"a\.json: is not as nnU-Net v2 writes it"):
        read_postprocessing(tmp_path / "a.json", PLAIN)
    with pytest.raises(InputError, match=r"b\.json"):
        read_postprocessing(tmp_path / "b.json", PLAIN)
