"""CSV manifests: what spreadsheets leave behind passes, what would change a case is refused with its line."""

import pytest

from medseg.errors import ManifestError
from medseg.manifest import Case, Channel, Manifest, load_manifest, save_manifest

TOP = "#format,1\n#name,Liver\n#licence,CC0\n#channel,CT\n#label,liver,1\n#label,tumour,2,3\n"
GOOD = TOP + "id,patient,image,label,fold,split,site\n001,p,a.nii,b.nii,0,training,A\n1e3,q,c.nii,d.nii,,testing,\n"


def loaded(folder, text, **options):
    (folder / "m.csv").write_bytes(text if isinstance(text, bytes) else text.encode(**options))
    return load_manifest(folder / "m.csv")


def faults_of(folder, text):
    with pytest.raises(ManifestError, match=r"^m\.csv") as caught:
        loaded(folder, text)
    return caught.value.faults


def test_fields_are_read_and_ids_stay_text(tmp_path):
    manifest = loaded(tmp_path, GOOD)
    assert manifest.labels == {"background": (0,), "liver": (1,), "tumour": (2, 3)}
    assert manifest.training == (
        Case(id="001", patient="p", images=("a.nii",), labels=("b.nii",), fold=0, extra={"site": "A"}),
    )
    assert manifest.testing[0].id == "1e3"
    assert manifest.testing[0].extra == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text + ",,,,,,\n,,,,,,\n\n",
        lambda text: text.replace("CC0", "CC0,,,,,").replace("liver,1", "liver,1,,,"),
        lambda text: text.replace("site\n", "site,,\n").replace(",A\n", ",A,,\n"),
        lambda text: text.replace("001,p", '" 001 ","p"'),
    ],
    ids=["bom", "crlf", "cr", "semicolons", "tabs", "empty end", "padded top", "padded rows", "quotes and blanks"],
)
def test_what_spreadsheets_leave_behind_passes(tmp_path, change):
    wanted = loaded(tmp_path, GOOD)
    got = loaded(tmp_path, change(GOOD))
    assert (got.training, got.testing, got.labels, got.licence) == (
        wanted.training,
        wanted.testing,
        wanted.labels,
        wanted.licence,
    )


def test_one_column_a_channel_and_one_a_rater(tmp_path):
    text = "#format,1\n#name,x\n#licence,y\n#label,a,1\nid,image_T1,image_FLAIR,label_ann,label_bob\n"
    manifest = loaded(tmp_path, text + "a,1.nii,2.nii,3.nii,4.nii\nb,5.nii,6.nii,,7.nii\n")
    assert manifest.channels == (Channel(name="T1"), Channel(name="FLAIR"))
    assert manifest.training[0].images == ("1.nii", "2.nii")
    assert manifest.training[0].labels == ("3.nii", "4.nii")
    assert manifest.training[1].labels == ("7.nii",)


def test_every_fault_comes_with_its_line(tmp_path):
    rows = [
        "001,p,a.nii,b.nii,0,training,A",  # line 8, good
        "001,p,a.nii,b.nii,0,training,A",  # 9: duplicate
        "b,p,a.nii",  # 10: ragged
        "c,p,a\0.nii,b.nii,0,,",  # 11: NUL
        'd,p,"a.nii,b.nii,0,,',  # 12: quote left open
        "e,p,,b.nii,0,,",  # 13: no image
        ",p,a.nii,b.nii,0,,",  # 14: no id
        "f,p,../a.nii,/b.nii,0,,",  # 15: absolute
        "g,p,a.nii,b.nii,0.0,,",  # 16: fold
        "h,p,a.nii,b.nii,0,validation,",  # 17: split
        ",,,,,,",  # 18: empty in the middle
        "i,p,a.nii,b.nii,0,,",
    ]
    faults = faults_of(tmp_path, TOP + "id,patient,image,label,fold,split,site\n" + "\n".join(rows) + "\n")
    lines = sorted(int(fault.split("line ")[1].split(":")[0]) for fault in faults)
    assert lines == list(range(9, 19))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("#licence", "#license"), "did you mean '#licence'"),
        (GOOD.replace("id,patient", "case,patient"), "'id' is missing.*is it 'case'"),
        (GOOD.replace("image,label,", "image,lable,"), "did you mean 'label'"),
        (GOOD.replace("#channel,CT\n", ""), "no #channel row"),
        (GOOD.replace("#label,liver,1", "#label,liver,one"), "liver: is 'one'"),
        (GOOD.replace("#label,liver,1", "#label,liver"), "#label has too few cells"),
        (GOOD.replace("#format,1", "#format,2"), "newer medseg"),
        (GOOD.replace("site", "fold"), "'fold' is there more than once"),
        (TOP, "no header row"),
        ("", "no header row"),
    ],
)
def test_faults_of_the_top_and_the_header(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message):
        loaded(tmp_path, text)


def test_other_encodings_are_refused(tmp_path):
    with pytest.raises(ManifestError, match="UTF-16"):
        loaded(tmp_path, GOOD.encode("utf-16"))
    with pytest.raises(ManifestError, match=r"line 2: holds a byte that is no UTF-8"):
        loaded(tmp_path, GOOD.replace("Liver", "Läber").encode("latin-1"))


def test_a_manifest_that_csv_can_not_hold_is_refused(tmp_path):
    channels = (Channel(name="T1"), Channel(name="T2"))
    cases = (
        Case(id="a", patient="a", images=("4d.nii",)),
        Case(id="b", patient="b", images=("1.nii", "2.nii"), extra={"split": "x"}),
    )
    mixed = Manifest(name="x", licence="y", channels=channels, labels={"background": (0,), "a": (1,)}, training=cases)
    with pytest.raises(ManifestError, match=r"save as \.json"):
        save_manifest(mixed, tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists()
