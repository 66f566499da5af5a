"""What a comparison with the golden files sees, and what it lets pass."""

import re

import pytest

from tests.golden.fields import differences, of_json, of_page

PAGE = """<html><head><style>p { color: red }</style></head><body><h2>Data</h2><p class="note">AUC <b>now</b> 0.7012<br>
of 1,234 rows</p><svg role="img" aria-label="By slice"><text>0.5</text></svg><table><tr><th>slice</th><th>AUC</th></tr>
<tr><td>cold</td><td>0.61</td></tr></table><table><tr><td>x</td></tr></table></body></html>"""


def test_the_fields_of_a_page_are_its_texts_by_numbered_element():
    assert of_page(PAGE) == {
        "h2[1]": "Data",
        "p[1]": "AUC 0.7012 of 1,234 rows",
        "b[1]": "now",
        "svg[1]": "By slice",
        "table[1] tr[1] th[1]": "slice",
        "table[1] tr[1] th[2]": "AUC",
        "table[1] tr[2] td[1]": "cold",
        "table[1] tr[2] td[2]": "0.61",
        "table[2] tr[1] td[1]": "x",
    }


def test_the_fields_of_json_are_its_leaves():
    value = {"a": {"b": [1, {"c": None}]}, "d": [], "e": {}}
    assert of_json(value) == {"a.b[0]": 1, "a.b[1].c": None, "d": [], "e": {}}


@pytest.mark.parametrize(
    ("expected", "actual", "is_same"),
    [
        (0.5, 0.5099, True),
        (0.5, 0.5101, False),
        (0.5, 1, False),
        (1.0, 1, True),
        (0.5, None, False),
        (0, False, False),
        (12, 13, False),
        ("AUC 0.701 of 1,234 rows", "AUC 0.705 of 1,234 rows", True),
        ("AUC 0.701 of 1,234 rows", "AUC 0.721 of 1,234 rows", False),
        ("AUC 0.701 of 1,234 rows", "AUC 0.701 of 1,235 rows", False),
        ("AUC 0.701", "auc 0.701", False),
        ("lower by -0.004", "lower by +0.004", True),
        ("0.5 to 0.6", "0.5", False),
    ],
)
def test_numbers_with_a_fraction_may_differ_a_little_and_nothing_else(expected, actual, is_same):
    found = differences({"f": expected}, {"f": actual}, 0.01, [])
    assert found == ([] if is_same else [f"f: expected {expected!r}, got {actual!r}"])


def test_missing_and_new_fields_are_named_and_the_value_of_a_volatile_one_does_not_count():
    expected = {"a.seconds": 1.5, "b": 2, "c": 3, "d.seconds": 0.5}
    actual = {"a.seconds": 99.0, "b": 4, "e": 5}
    assert differences(expected, actual, 0.01, [re.compile(r".*\.seconds")]) == [
        "b: expected 2, got 4",
        "c: missing, expected 3",
        "d.seconds: missing, expected 0.5",
        "e: new, got 5",
    ]
