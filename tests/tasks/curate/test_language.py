"""The language of a text is told by its letters alone, with the same value beside any other text."""

from fractions import Fraction

import numpy as np
import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier, visit_counts

from tasks.curate.language import (
    LANGUAGES,
    NOT_LANGUAGE,
    Floats,
    _scores,
    language_probabilities,
    letters_of,
    open_model,
)

TEXTS = {
    "en": "She opened the window because the room had become far too warm for reading.",
    "de": "Sie öffnete das Fenster, weil es im Zimmer zum Lesen viel zu warm geworden war.",
    "fr": "Elle ouvrit la fenêtre parce qu'il faisait beaucoup trop chaud pour lire dans la chambre.",
    "es": "Abrió la ventana porque en la habitación hacía demasiado calor para seguir leyendo.",
    "fi": "Hän avasi ikkunan, koska huoneessa oli tullut aivan liian kuuma lukemiseen.",
    "ru": "Она открыла окно, потому что в комнате стало слишком жарко для чтения.",
    "zh": "她打开了窗户。因为房间里太热了没法看书。",
    "ja": "部屋が暑すぎて本が読めなかったので、彼女は窓を開けた。",
    "ar": "فتحت النافذة لأن الغرفة أصبحت حارة جدا للقراءة.",
}


def probabilities(*texts: str) -> Floats:
    return language_probabilities(letters_of(texts))


def test_the_languages_are_those_of_the_model() -> None:
    assert {*LANGUAGES, NOT_LANGUAGE} == set(open_model().labels)
    assert list(LANGUAGES) == sorted(set(LANGUAGES))


@pytest.mark.parametrize("code", TEXTS)
def test_a_sentence_is_told(code: str) -> None:
    [found] = probabilities(TEXTS[code])
    assert (*LANGUAGES, NOT_LANGUAGE)[found.argmax()] == code
    assert found.max() > 0.7  # Chinese and Arabic share a part with their neighbours, Wu and Moroccan


def test_probabilities_are_those_of_the_library() -> None:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    letters = letters_of([*TEXTS.values(), "ok", "Hello there", "srećan put"])
    for text, found in zip(letters, language_probabilities(letters), strict=True):
        wanted = dict(identifier.rank(text.decode()))
        np.testing.assert_allclose(found, [wanted[code] for code in (*LANGUAGES, NOT_LANGUAGE)], atol=1e-5)


def test_a_text_has_the_same_value_beside_any_other() -> None:
    together = probabilities(*TEXTS.values())
    for text, found in zip(TEXTS.values(), together, strict=True):
        assert (probabilities(text)[0] == found).all()
    assert (probabilities(*reversed(TEXTS.values())) == together[::-1]).all()


def test_scores_are_exact() -> None:
    """The sum of all products, in fractions, is what floating point gives: there is no order that could matter."""
    model = open_model()
    [text] = letters_of([TEXTS["en"] * 20])
    visits = visit_counts(model.steps, model.rows, model.visited, text)
    unit = 2**20
    sums = [Fraction(float(prior)) for prior in model.prior]
    for feature, count in visits.items():
        weight = Fraction(round(float(np.log1p(count)) * unit), unit)
        for column, units in enumerate(model.weights[feature].tolist()):
            sums[column] += weight * Fraction(units, 512)
    assert _scores(model, text).tolist() == [float(each) for each in sums]
    assert [Fraction(each) for each in _scores(model, text).tolist()] == sums


def test_sums_and_signs_do_not_count() -> None:
    bare = "Tom has some apples and gives most of them to Ann"
    sums = "Tom has 5 - 2 = <<5-2=3>>3 some apples, and gives\n* most: (100%) of them to Ann. #### 3"
    assert letters_of([sums]) == letters_of([bare])
    assert letters_of(["1 + 1 = 2", "", "…"])[:2] == [b"", b""]


def test_a_text_without_letters_is_in_no_language_more_than_in_another() -> None:
    [found] = probabilities("12 + 30 = 42")
    assert found.max() < 0.03
    assert found.sum() == pytest.approx(1, abs=1e-3)


def test_capitals_and_split_accents_make_no_difference() -> None:
    assert letters_of(["WARM ROOM", "Warm room"]) == [b"warm room", b"Warm room"]
    assert letters_of(["cafe\u0301"]) == letters_of(["café"])


def test_no_text_at_all() -> None:
    assert language_probabilities([]).shape == (0, len(LANGUAGES) + 1)
