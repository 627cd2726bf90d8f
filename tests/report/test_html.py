import json

from medseg.report.html import Html, element, joined, script_json, table

EVIL = '<script>alert("x")</script>&'


def test_text_is_escaped_and_markup_is_not():
    assert element("p", "a < b", element("b", "&")) == "<p>a &lt; b<b>&amp;</b></p>"
    assert joined("<", Html("<br>"), None, ["&", Html("<hr>")]) == "&lt;<br>&amp;<hr>"


def test_attributes():
    made = element("a", "x", class_="c", data_case=3, hidden=True, open=False, title=None, href='"><script>')
    assert made == '<a class="c" data-case="3" hidden href="&quot;&gt;&lt;script&gt;">x</a>'
    assert element("meta", charset="utf-8") == '<meta charset="utf-8">'


def test_json_cannot_end_its_element():
    text = script_json({"id": EVIL + "</script>\u2028"})
    assert "<" not in text
    assert json.loads(text) == {"id": EVIL + "</script>\u2028"}


def test_a_tables_cells_are_escaped():
    made = table(["class", EVIL], [[EVIL, "1"]])
    assert "<script>" not in made
    assert '<th scope="row">&lt;script&gt;' in made
    assert '<td class="n">1</td>' in made
