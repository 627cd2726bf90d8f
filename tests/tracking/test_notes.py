from pathlib import Path

from medseg.tracking.notes import command, description


def test_a_description_has_what_is_known_and_leaves_out_what_is_not():
    text = description(
        "Scores of **demo**.",
        {"data": "6 cases", "notes": ""},
        tables={"Scores": [("class", "Dice"), ("organ|left", "0.9\n")], "Where it fails": [("case", "Dice")]},
        look=["Artifacts: `cases.json`."],
        again="medseg evaluate",
    )
    assert text.replace("&nbsp;&nbsp;", "").splitlines() == [
        "Scores of **demo**.",
        "",
        "| class | Dice |",
        "| --- | --- |",
        r"| organ\|left | 0.9 |",
        "",
        "- **data**: 6 cases",
        "",
        "**Where to look**",
        "",
        "- Artifacts: `cases.json`.",
        "",
        "**Again**",
        "",
        "```",
        "medseg evaluate",
        "```",
    ]


def test_a_class_or_an_override_can_be_no_markup():
    evil = "![x](http://a.b/c.png)"
    text = description("Scores.", {}, tables={"Scores": [("class",), (evil,)]}, again="medseg --set 'a=\n```\n# b'")
    assert evil not in text
    assert text.endswith("````\nmedseg --set 'a=\n```\n# b'\n````\n")


def test_it_fits_into_a_tag_of_mlflow():
    rows = [("case", "Dice")] + [(f"case {number}", "0.5") for number in range(2000)]
    text = description("Scores.", {}, tables={"All": rows})
    assert len(text) < 8000
    assert text.endswith("(cut: it is too long for MLflow)\n")
    assert "| case 100&nbsp;&nbsp; | 0.5&nbsp;&nbsp; |\n" in text


def test_the_command_names_no_absolute_path():
    shown = command("train", Path("/home/doe/configs/liver.yaml"), ["data.fold=1", "name=a b"], "--fold", "all")
    assert shown == ("medseg train --config liver.yaml --data-root DATA --set data.fold=1 --set 'name=a b' --fold all")
    assert command("infer", Path("configs/liver.yaml"), []).startswith("medseg infer --config configs/liver.yaml ")
