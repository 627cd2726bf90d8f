import numpy as np
import pytest

from medseg.config.sections import PrepareSection
from medseg.errors import ConfigError, InputError
from medseg.manifest import load_manifest
from medseg.manifest.cases import Channel
from medseg.preparation.fingerprint import CaseGeometry, Fingerprint, Intensities
from medseg.preparation.plan import Plan
from medseg.preparation.plan_file import plan_sha256, plan_text, read_plan, write_plan
from medseg.preparation.planning import make_plan
from medseg.preparation.topology import Topology, feature_map_values, plan_topology

LABELS = {"background": (0,), "a": (1,), "b": (2,)}


def fingerprint(
    shape=(35, 50, 36), spacing=(1.0, 1.0, 1.0), *, cases=208, planar=False, share=1.0, ct=None, channels=1
):
    geometry = CaseGeometry(shape, spacing, share)
    return Fingerprint({f"case_{i:03d}": geometry for i in range(cases)}, planar, (ct,) * channels)


def plan(print_=None, *, channels=("MR",), labels=None, ignore=None, **section):
    return make_plan(
        print_ or fingerprint(),
        channels=[Channel(name=name) for name in channels],
        labels=labels or LABELS,
        ignore=ignore,
        section=PrepareSection(**section),
    )


def test_hippocampus_gets_nnunets_plan():
    made = plan()  # nnU-Net 2.8.1: 40x56x40 as (z, y, x), batch 7, 4 stages
    assert made.patch_size_xyz == (40, 56, 40)
    assert made.batch_size == 7
    assert made.features == (32, 64, 128, 256)
    assert made.strides == ((1, 1, 1),) + ((2, 2, 2),) * 3
    assert made.kernel_sizes == ((3, 3, 3),) * 4
    assert made.spacing_xyz_mm == (1.0, 1.0, 1.0)
    assert made.median_shape_xyz == (35, 50, 36)
    assert not made.batch_dice
    assert made.channels[0].scheme == "zscore"
    assert not made.channels[0].use_mask


@pytest.mark.real
def test_the_shared_hippocampus_cases_get_nnunets_plan(shared_data, repository):
    import nibabel as nib

    manifest = load_manifest(repository / "data_manifests" / "hippocampus.json")
    cases = {}
    for case in manifest.training:
        header = nib.load(shared_data / "hippocampus" / case.images[0])
        cases[case.id] = CaseGeometry(header.shape, tuple(float(v) for v in header.header.get_zooms()), 1.0)
    made = plan(Fingerprint(cases, False, (None,)))
    assert (made.patch_size_xyz, made.batch_size, len(made.features)) == ((40, 56, 40), 7, 4)


def test_a_thick_sliced_set_follows_nnunets_known_plans():
    # Decathlon pancreas in nnU-Net's tables: median 96 x 512 x 512 at 2.5 x 0.8 x 0.8 mm, patch 40 x 224 x 224, batch 2.
    made = plan(fingerprint((512, 512, 96), (0.8, 0.8, 2.5), cases=281))
    assert made.patch_size_xyz == (224, 224, 40)
    assert made.batch_size == 2
    assert made.strides[1] == (2, 2, 1)
    assert made.kernel_sizes[0] == (3, 3, 1)
    assert made.features == (32, 64, 128, 256, 320, 320)
    assert made.batch_dice


def test_isotropic_large_scans_get_128_cubed():
    made = plan(fingerprint((400, 400, 400), (1.0, 1.0, 1.0), cases=100))
    assert made.patch_size_xyz == (128, 128, 128)
    assert made.batch_size == 2
    assert made.features == (32, 64, 128, 256, 320, 320)


def test_few_thick_slices_take_the_tenth_percentile():
    thick = {f"c{i}": CaseGeometry((250, 250, 10), (1.5, 1.5, z), 1.0) for i, z in enumerate([5.0] * 2 + [10.0] * 8)}
    made = plan(Fingerprint(thick, False, (None,)))
    assert made.spacing_xyz_mm == (1.5, 1.5, 5.0)
    assert "10th percentile" in made.reasons["spacing_xyz_mm"]
    thin = {f"c{i}": CaseGeometry((250, 250, 10), (1.5, 1.5, z), 1.0) for i, z in enumerate([1.0] * 2 + [10.0] * 8)}
    assert plan(Fingerprint(thin, False, (None,))).spacing_xyz_mm == (1.5, 1.5, 1.5 + 1e-5)
    many = {k: CaseGeometry((250, 250, 100), g.spacing_xyz_mm, 1.0) for k, g in thick.items()}
    assert plan(Fingerprint(many, False, (None,))).spacing_xyz_mm == (1.5, 1.5, 10.0)


def test_pictures_get_a_2d_plan():
    made = plan(fingerprint((256, 256, 1), cases=200, planar=True, channels=3), channels=("red", "green", "blue"))
    assert made.dimensions == 2
    assert made.patch_size_xyz == (256, 256, 1)
    assert made.batch_size == 10  # 5 % of 200 pictures
    assert made.features == (32, 64, 128, 256, 512, 512, 512)
    assert set(made.strides[1:]) == {(2, 2, 1)}
    assert set(made.kernel_sizes) == {(3, 3, 1)}
    assert made.batch_dice
    assert {c.scheme for c in made.channels} == {"rgb"}


def test_ct_takes_the_foregrounds_statistics():
    known = Intensities(mean=90.0, std=20.0, median=91.0, low=-50.0, high=200.0, minimum=-100.0, maximum=400.0)
    made = plan(fingerprint(ct=known), channels=("ct",))
    channel = made.channels[0]
    assert (channel.scheme, channel.low, channel.high, channel.mean, channel.std) == ("ct", -50.0, 200.0, 90.0, 20.0)
    with pytest.raises(InputError, match="CT: has no foreground voxels to take CT statistics from"):
        plan(channels=("CT",))


def test_the_mask_is_used_where_the_crop_takes_much_away():
    assert plan(fingerprint(share=0.74)).channels[0].use_mask
    assert not plan(fingerprint(share=0.76)).channels[0].use_mask
    assert not plan(fingerprint(share=0.5), normalisation="rgb").channels[0].use_mask


def test_overrides_win_and_say_so():
    made = plan(
        spacing_xyz_mm=(2.0, 2.0, 2.0),
        patch_size_xyz=(24, 20, 16),
        batch_size=3,
        normalisation="percentile",
        dtype="float32",
    )
    assert made.spacing_xyz_mm == (2.0, 2.0, 2.0)
    assert made.patch_size_xyz == (24, 20, 16)
    assert made.batch_size == 3
    assert made.channels[0].scheme == "percentile"
    assert made.stored_dtype == "float32"
    for field in ("spacing_xyz_mm", "patch_size_xyz", "batch_size"):
        assert made.reasons[field].startswith("As the config asks")
    divisors = [np.prod([stage[axis] for stage in made.strides]) for axis in range(3)]
    assert all(p % d == 0 for p, d in zip(made.patch_size_xyz, divisors, strict=True))
    with pytest.raises(ConfigError, match=r"prepare.patch_size_xyz: is \[64, 64, 8\], expected 1 along z"):
        plan(fingerprint((64, 64, 1), planar=True), patch_size_xyz=(64, 64, 8))


def test_an_empty_set_is_refused():
    with pytest.raises(InputError, match="training: has 0 usable cases"):
        plan(Fingerprint({}, False, ()))


def test_slices_of_volumes_are_stacked_along_the_coarsest_axis():
    # PET of the sarcoma set in small: voxels are longest in the plane, of equals nnU-Net's first is y
    made = plan(fingerprint((35, 34, 62), (5.5, 5.5, 3.25), cases=41), configuration="2d")
    assert (made.dimensions, made.through_plane_axis, made.slice_axis) == (2, 1, 1)
    assert made.patch_size_xyz == (40, 1, 64)
    assert made.spacing_xyz_mm == (5.5, 5.5, 3.25)
    assert set(made.strides[1:]) == {(2, 1, 2)}
    assert set(made.kernel_sizes) == {(3, 1, 3)}
    assert made.batch_dice
    assert set(made.alternatives) == {"3d_fullres"}
    with pytest.raises(ConfigError, match=r"prepare.patch_size_xyz: is \[40, 40, 1\], expected 1 along y"):
        plan(fingerprint((35, 34, 62), (5.5, 5.5, 3.25)), configuration="2d", patch_size_xyz=(40, 40, 1))


def test_through_the_plane_of_slices_the_median_stands_and_not_the_tenth_percentile():
    thick = {f"c{i}": CaseGeometry((250, 250, 10), (1.5, 1.5, z), 1.0) for i, z in enumerate([5.0] * 2 + [10.0] * 8)}
    made = plan(Fingerprint(thick, False, (None,)), configuration="2d")
    assert made.spacing_xyz_mm == (1.5, 1.5, 10.0)
    assert made.median_shape_xyz == (250, 250, 10)
    assert made.patch_size_xyz[2] == 1
    assert "10th percentile" not in made.reasons["spacing_xyz_mm"]
    assert made.alternatives["3d_fullres"].spacing_xyz_mm == (1.5, 1.5, 5.0)


def test_the_low_resolution_holds_a_quarter_of_a_large_scan():
    made = plan(fingerprint((512, 512, 400), (0.8, 0.8, 1.0), cases=100), configuration="3d_lowres")
    assert made.configuration == "3d_lowres"
    assert made.cascade
    assert not made.batch_dice
    assert np.prod(made.patch_size_xyz) / np.prod(made.median_shape_xyz) >= 0.25
    assert min(made.spacing_xyz_mm) > 1.0
    assert set(made.alternatives) == {"2d", "3d_fullres"}
    assert made.alternatives["3d_fullres"].batch_dice
    with pytest.raises(
        ConfigError, match=r"prepare\.configuration: is 3d_lowres, but a full-resolution patch holds much"
    ):
        plan(configuration="3d_lowres")
    given = plan(configuration="3d_lowres", spacing_xyz_mm=(2.0, 2.0, 2.0))
    assert given.spacing_xyz_mm == (2.0, 2.0, 2.0)


def test_a_cascades_second_stage_is_the_full_resolution_with_mask_channels():
    large, labels = (
        fingerprint((512, 512, 400), (0.8, 0.8, 1.0), cases=100),
        {"background": (0,), "a": (1, 2), "b": (2, 3)},
    )
    full = plan(large)
    made = plan(large, configuration="3d_cascade_fullres", previous_work="low")
    assert (made.configuration, full.configuration) == ("3d_cascade_fullres", "3d_fullres")
    assert (made.previous_channels, made.input_count) == (len(LABELS) - 1, len(LABELS))
    assert (full.previous_channels, full.input_count) == (0, 1)
    its_own = {"configuration", "previous_channels", "reasons", "alternatives"}
    assert made.model_dump(exclude=its_own) == full.model_dump(exclude=its_own)
    overlapping = plan(large, labels=labels, configuration="3d_cascade_fullres", previous_work="low")
    assert overlapping.previous_channels == 3, "one per combination: a, a+b, b"
    with pytest.raises(ConfigError, match=r"is 3d_cascade_fullres, expected 2d or auto; the scans are pictures"):
        plan(fingerprint((64, 64, 1), planar=True), configuration="3d_cascade_fullres", previous_work="low")


def test_pictures_have_no_third_dimension():
    with pytest.raises(ConfigError, match=r"prepare\.configuration: is 3d_fullres, expected 2d or auto"):
        plan(fingerprint((64, 64, 1), planar=True), configuration="3d_fullres")


def test_memory_is_the_configs_else_the_presets_or_what_the_device_has():
    def made(device_gb=None, **section):
        return make_plan(
            fingerprint((400, 400, 400), cases=100), channels=[Channel(name="MR")], labels=LABELS, ignore=None,
            section=PrepareSection(**section), device_gb=device_gb,
        )  # fmt: skip

    large, small = made(device_gb=80.0, preset="resenc_l"), made(device_gb=6.0, preset="resenc_l")
    assert (large.memory_gb, small.memory_gb) == (24.0, 6.0)
    assert np.prod(small.patch_size_xyz) < np.prod(large.patch_size_xyz)
    assert "the device has only 6 GB" in small.reasons["memory_gb"]
    assert made(device_gb=6.0, memory_gb=12.0).memory_gb == 12.0
    assert large.residual
    assert large.convolutions[:5] == (1, 3, 4, 6, 6)
    assert set(large.decoder_convolutions) == {1}
    with pytest.raises(ConfigError, match=r"prepare\.memory_gb: is too little"):
        made(memory_gb=1e-7)


def test_normalisation_can_be_given_by_channel():
    made = plan(fingerprint(channels=2), channels=("T1", "T2"), normalisation={"T2": "range"}, mask_normalisation=True)
    assert [(c.scheme, c.use_mask) for c in made.channels] == [("zscore", True), ("range", False)]
    with pytest.raises(ConfigError, match=r"prepare\.normalisation: names PD, expected of T1, T2"):
        plan(fingerprint(channels=2), channels=("T1", "T2"), normalisation={"PD": "range"})


def test_a_plan_from_before_the_newer_fields_still_loads(tmp_path):
    newer = ("configuration", "preset", "memory_gb", "through_plane_axis", "residual", "convolutions",
             "decoder_convolutions", "cascade", "alternatives")  # fmt: skip
    made = plan()
    text = plan_text(made.model_copy(update={"alternatives": {}}))
    kept = [line for line in text.splitlines() if not line.startswith(tuple(f"{name}:" for name in newer))]
    (tmp_path / "plan.yaml").write_text("\n".join(kept) + "\n")
    old = read_plan(tmp_path / "plan.yaml")
    assert old.configuration is None
    assert (old.convolutions, old.preset, old.residual) == ((), "plain", False)
    assert old.patch_size_xyz == made.patch_size_xyz


def test_every_decision_has_its_reason():
    made = plan()
    decided = set(Plan.model_fields) - {
        "format", "labels", "label_table", "ignore", "fingerprint_sha256", "reasons", "made_from_cases",
    }  # fmt: skip
    assert set(made.reasons) == decided
    assert all(reason.endswith(".") and "\n" not in reason for reason in made.reasons.values())


# --- topology -------------------------------------------------------------------------------------------------------


def test_axes_are_halved_until_short():
    made = plan_topology(spacing_mm=(1, 1, 1), patch_size=(35, 50, 36))
    assert made.patch_size == (40, 56, 40)
    assert made.divisors == (8, 8, 8)


def test_an_axis_alone_needs_twelve_voxels():
    # 23 -> 12 -> 6: three voxels of 4 are 12
    assert len(plan_topology(spacing_mm=(1, 9), patch_size=(12, 4)).strides) == 2
    assert len(plan_topology(spacing_mm=(1, 9), patch_size=(11, 4)).strides) == 1


def test_coarse_axes_wait_for_the_fine_ones():
    made = plan_topology(spacing_mm=(4, 1, 1), patch_size=(16, 64, 64))
    assert made.strides[:4] == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert made.kernel_sizes[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    assert made.kernel_sizes[-1] == (3, 3, 3)


def test_a_given_patch_stays():
    assert plan_topology(spacing_mm=(1, 1), patch_size=(40, 24), keep_patch=True).patch_size == (40, 24)
    assert plan_topology(spacing_mm=(1, 1), patch_size=(41, 25), keep_patch=True).strides == ((1, 1),)


def test_feature_map_values_counted_by_hand():
    topology = Topology(((1, 1), (2, 2)), ((3, 3), (3, 3)), (4, 4))
    # encoder 2*8*16 + 2*16*4, decoder 2 convolutions and 1 transposed of 8*16, scores 3*16
    plain = feature_map_values(
        topology=topology, features=(8, 16), classes=3, convolutions=(2, 2), decoder_convolutions=(2,)
    )
    assert plain == 256 + 128 + 384 + 48
    # stem 8*16; a block of 2 convolutions; 3 blocks at 16*4 of which the first has a skip convolution; decoder 1 + 1
    residual = feature_map_values(
        topology=topology, features=(8, 16), classes=3, convolutions=(1, 3), decoder_convolutions=(1,), residual=True
    )
    assert residual == 128 + 256 + (2 * 3 + 1) * 64 + 256 + 48


# --- the file -------------------------------------------------------------------------------------------------------


def test_the_plan_file_reads_back_with_its_reasons(tmp_path):
    made = plan(fingerprint(spacing=(0.1, 1e-3, 123456.789)), channels=('T1: the "first"',), ignore=9)
    write_plan(tmp_path / "plan.yaml", made)
    assert read_plan(tmp_path / "plan.yaml") == made
    text = (tmp_path / "plan.yaml").read_text()
    assert f"# {made.reasons['patch_size_xyz']}\npatch_size_xyz: [" in text


def test_the_plans_checksum_is_not_of_its_reasons():
    made = plan()
    assert plan_sha256(made) == plan_sha256(made.model_copy(update={"reasons": {}, "alternatives": {}}))
    assert plan_sha256(made) != plan_sha256(made.model_copy(update={"batch_size": 8}))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.replace("format: 1", "format: 2"), "has plan format 2, expected 1"),
        (lambda t: t.replace("batch_size: 7", "batch_size: 0"), "batch_size: .*greater than or equal to 1"),
        (lambda t: t.replace("batch_size: 7", "batch_sise: 7"), "is no plan"),
        (lambda t: t + "format: 1\n", "is no YAML"),
        (lambda t: "", "has plan format None"),
    ],
)
def test_a_plan_that_is_none_is_refused(tmp_path, edit, message):
    (tmp_path / "plan.yaml").write_text(edit(plan_text(plan())))
    with pytest.raises(InputError, match=message):
        read_plan(tmp_path / "plan.yaml")


def test_a_missing_plan_is_named(tmp_path):
    with pytest.raises(InputError, match=r"plan\.yaml: can't be read"):
        read_plan(tmp_path / "plan.yaml")


def test_the_small_preset_holds_the_labelled_structures_with_thin_stages_and_a_batch_of_two():
    geometry = CaseGeometry((35, 50, 36), (1.0, 1.0, 1.0), 1.0)
    cases = {f"case_{i:03d}": geometry for i in range(100)}
    structures = Fingerprint(cases, False, (None,), structure_xyz_mm=(25.0, 43.0, 30.3))
    made = plan(structures, preset="small")
    # Three halvings, so multiples of 8: 25 -> 32, 43 -> 48, 30.3 -> 32; the plain plan's patch is 40 x 56 x 40.
    assert made.patch_size_xyz == (32, 48, 32)
    assert (made.features, made.batch_size) == ((16, 48, 96, 192), 2)
    assert plan(structures).patch_size_xyz == plan(Fingerprint(cases, False, (None,)), preset="small").patch_size_xyz


def test_the_small_preset_never_enlarges_a_patch():
    geometry = CaseGeometry((35, 50, 36), (1.0, 1.0, 1.0), 1.0)
    wide = Fingerprint({"a": geometry, "b": geometry}, False, (None,), structure_xyz_mm=(300.0, 300.0, 300.0))
    assert plan(wide, preset="small").patch_size_xyz == plan(wide).patch_size_xyz
