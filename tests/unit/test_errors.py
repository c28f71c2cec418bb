"""How texts show names."""

from __future__ import annotations

import pytest

from cradled.errors import quote


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", '""'),
        ("docker.io/x:1", '"docker.io/x:1"'),
        ("a b 'c'", "\"a b 'c'\""),
        ("é漢🙂", '"é漢🙂"'),
        ('"', r'"\""'),
        ("\\", r'"\\"'),
        ("\a\b\f\n\r\t\v", r'"\a\b\f\n\r\t\v"'),
        ("\0\x1b\x7f", r'"\x00\x1b\x7f"'),
        ("\x85\xa0\u2028\ufeff", r'"\u0085\u00a0\u2028\ufeff"'),
        ("\U000e0001", r'"\U000e0001"'),
    ],
)
def test_names_are_shown_as_go_quotes_them(text: str, shown: str) -> None:
    assert quote(text) == shown
