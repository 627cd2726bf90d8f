import pytest

from medseg.durable.markdown import code, fenced, plain, table, text_table


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("case_01", "case_01"),
        ("_a_ **b**", r"\_a\_ \*\*b\*\*"),
        ("` ![x](http://a.b/c.png)", r"\` !\[x\](http://a.b/c.png)"),
        (r"\[x](javascript:alert(1))", r"\\\[x\](javascript:alert(1))"),
        ("<img src=x>&lt;", "&lt;img src=x&gt;&amp;lt;"),
        ("a|b\n\n# c", r"a\|b # c"),
    ],
)
def test_text_stays_text(text, wanted):
    assert plain(text) == wanted


def test_code_ends_where_it_should():
    assert code("a`b|c\nd") == "`a'b/c d`"
    assert fenced("x") == ["```", "x", "```"]
    assert fenced("--set\n```\n# x") == ["````", "--set\n```\n# x", "````"]


def test_a_table():
    assert table(["a", "b"], [["1", "2"]], gap="~") == ["| a~ | b~ |", "| --- | --- |", "| 1~ | 2~ |"]


def test_a_bar_ends_no_cell_of_text():
    assert text_table(["a|b"], [["1|2"]]) == ["| a/b |", "| --- |", "| 1/2 |"]
    assert text_table([], []) == ["|  |", "|  |"]
