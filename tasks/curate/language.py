"""Tell the language of texts by their letters, offline, with the same values on every machine.

The model is that of py3langid, which comes inside its package: a naive Bayes classifier over byte n-grams (Lui and
Baldwin 2012, langid.py). Two things are done differently:

- Only letters count. Digits, signs and layout say nothing about a language, and a text full of them (sums, code,
  tables) would be taken for whatever language happens to look like that.
- Scores are exact. The model's numbers are multiples of 2**-9 and 2**-21, and counts are weighted here in multiples of
  2**-20: every product and sum fits into a float64 without rounding, so that the order of additions, and with it the
  math library, changes nothing. Probabilities are rounded to 1e-6.
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from array import array

Floats = npt.NDArray[np.float64]

# The labels of py3langid 0.4: ISO 639 codes, of two letters where there are such; without `zxx`, "not a language".
_CODES = """
    ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr fuv fy
    ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky la lb
    lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk
    sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu
"""
LANGUAGES = tuple(_CODES.split())
NOT_LANGUAGE = "zxx"
# every ASCII byte that is no letter becomes a space; bytes of other characters stay
_SPACED = bytes(byte if byte >= 128 or chr(byte).isalpha() else 32 for byte in range(256))
_WEIGHT_UNIT = 2.0**-9
_COUNT_UNIT = 2.0**-20


class Model(NamedTuple):
    """The classifier: an automaton over bytes that visits features, and what each feature says for each column."""

    labels: list[str]  # one for each column; two scripts of one language have the same
    prior: Floats  # (columns,)
    weights: npt.NDArray[np.int16]  # (features, columns), in units of 2**-9
    steps: "array[int]"
    rows: list[int]  # state -> where its steps begin
    visited: list[int]  # state -> feature, -1 for none


def letters_of(texts: Sequence[str]) -> list[bytes]:
    """Leave the letters of texts, in UTF-8: ASCII that is none becomes one space, and capitals alone become small."""
    composed = (unicodedata.normalize("NFC", text.lower() if text.isupper() else text) for text in texts)
    return [b" ".join(text.encode().translate(_SPACED).split()) for text in composed]


def language_probabilities(letters: Sequence[bytes]) -> Floats:
    """Give the probability that each text is in each of LANGUAGES, or in none: (n, len(LANGUAGES) + 1), rows sum to 1.

    Args:
        letters: n texts, as `letters_of` leaves them.
    """
    model = open_model()
    scores = np.zeros((len(letters), len(model.labels)))
    for row, text in enumerate(letters):
        # the square root of its length as temperature keeps a text's probabilities apart from its length (py3langid)
        scores[row] = _scores(model, text) / max(len(text), 1) ** 0.5
    odds = np.exp(scores - scores.max(1, keepdims=True))
    shares = odds / odds.sum(1, keepdims=True)
    places = {label: place for place, label in enumerate((*LANGUAGES, NOT_LANGUAGE))}
    folded = np.zeros((len(letters), len(places)))
    for column, label in enumerate(model.labels):
        folded[:, places[label]] += shares[:, column]
    return np.round(folded, 6)


def _scores(model: Model, text: bytes) -> Floats:
    """Score one text: (columns,) log posterior, exact."""
    from py3langid.langid import visit_counts

    visits = visit_counts(model.steps, model.rows, model.visited, text)
    if not visits:
        return np.zeros(len(model.prior))  # nothing to tell by: all alike
    features = np.fromiter(visits.keys(), np.int64, len(visits))
    counts = np.fromiter(visits.values(), np.float64, len(visits))
    weights = np.round(np.log1p(counts) / _COUNT_UNIT) * _COUNT_UNIT
    scores: Floats = (weights @ model.weights[features].astype(np.float64)) * _WEIGHT_UNIT + model.prior
    return scores


@lru_cache(maxsize=1)
def open_model() -> Model:
    """Open the model, once per process (0.6 seconds, 80 MB)."""
    from py3langid.langid import MODEL_DIR, MODEL_FILE
    from py3langid.modelio import load_model

    weights, prior, labels, steps, rows, visited = load_model(MODEL_DIR / MODEL_FILE)
    units = weights.astype(np.float32) / np.float32(_WEIGHT_UNIT)
    return Model(labels, prior.astype(np.float64), units.astype(np.int16), steps, [row << 8 for row in rows], visited)
