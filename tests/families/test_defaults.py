"""What runs when nothing is stored, pinned: a change of an estimate shows which defaults it changes."""

from pinned_defaults import FILE, text


def test_the_defaults_of_every_preset_are_those_of_the_file():
    # After a change that is meant: python tests/support/pinned_defaults.py, and judge the difference.
    assert text().splitlines() == FILE.read_text().splitlines()
