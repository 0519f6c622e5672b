"""Answers compared."""

import pytest

from tasks.answers import exact_match, token_f1


def test_answers_are_compared_as_squad_does():
    assert exact_match("The Kyoto.", "kyoto") == 1 and exact_match("Kyoto", "Osaka") == 0
    assert token_f1("in Kyoto", "the old Kyoto") == pytest.approx(2 * 0.5 * 0.5 / (0.5 + 0.5))
    assert token_f1("", "") == 1 and token_f1("", "Kyoto") == 0
