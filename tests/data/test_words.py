"""Words are counted in any script."""

import pytest

from data.words import count_words


@pytest.mark.parametrize(
    ("text", "n_words"),
    [
        ("", 0),
        (" The <unk> film 's plot , it was fun . \n", 10),  # as WikiText is written
        ("Die schöne Müllerin — von Schubert", 6),
        ("한국어 텍스트 입니다", 3),
        ("Привет, мир!", 2),
        ("我喜欢这部电影。", 7),
        ("我 喜欢 电影 。", 6),
        ("映画はとても面白かった", 11),
        ("カタカナ、テレビ", 2),
        ("我用iPhone看了2部电影", 9),
        ("ภาษาไทย", 6 + 1),  # seven letters; no sign above or below them counts
        ("ที่นี่", 2),  # two letters, each with a vowel and a tone
        ("བོད་སྐད་", 2),
        ("see 电影 now", 4),
    ],
)
def test_words_stand_between_spaces_or_unicode_boundaries_where_a_script_has_none(text, n_words):
    assert count_words(text) == n_words
