"""Write curate-*.jsonl: a pool of five sources, a target and an evaluation set, with planted faults that are on record.

`python data/samples/make_curate_samples.py` rewrites the files byte for byte, in the environment of the project;
README.md beside it states the counts. What is planted in a row, its column `planted` says, and no stage looks at it.
The sentences are in texts/*.yaml, and forms.py makes rows of them.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

from data.samples.forms import Form, Row, Values, capitalised, chosen, filled, pick, read, words_in, written
from data.samples.make_samples import as_line, below, shuffled

SEED = 20261124
PARTS = ("prompt", "completion")
FRAMED = 70  # rows of `sums` that begin with the frame of the evaluation set
EQUAL, NEAR = 40, 60  # rows that are posted again
LONG_ENOUGH = 36  # words of a row whose near-duplicate is planted: five more words leave a similarity of .86
EACH = 10  # rows of each way to be broken
PRIVATE = 6  # rows of each form with personal data
PASTED = 4  # over-long rows
PASTED_CHARACTERS = 4500
LEAKS = {"one word changed": 7, "verbatim": 10, "with another answer": 6, "inside a longer text": 7}
BROKEN_LINES = ('{"prompt": "Where do I find the', "<html><body>502 Bad Gateway</body></html>", "null")
BEFORE = ("Hello everybody.", "Quick question.", "Hi there.", "Good evening.")
AFTER = ("Hope that helps.", "Hope this helps!", "Best of luck.", "Just my opinion.")

# What belongs to nobody: a top-level domain that will never be given out (ICANN, 2024), telephone numbers kept for
# drama (Ofcom, NANP), the card numbers that shops test with, a bank that does not exist, numbers withdrawn for ever.
MAIL = "{name}.{surname}@{host}.internal"
HOSTS = ("harbourpost", "lindenmail", "brookside-club", "oldmill", "ferrymen", "northbank-choir")
PHONES = ("+44 20 7946 0{n:03}", "+44 (0)20 7946 0{n:03}", "+1 212 555 01{m:02}", "+1-415-555-01{m:02}")
CARDS = ("4111 1111 1111 1111", "5555 5555 5555 4444", "3782 822463 10005", "6011-1111-1111-1117")
SOCIAL_SECURITY = ("078-05-1120", "219-09-9999")


def main() -> None:
    """Write the files beside this script."""
    for name, lines in files(Random(SEED)).items():  # noqa: S311 - sample data, no secret
        path = Path(__file__).with_name(f"curate-{name}.jsonl")
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def files(rng: Random) -> dict[str, list[str]]:
    """Make the lines of all files, by name."""
    shared, evaluation = read("shared"), read("evaluation")
    pool = {name: shuffled(rng, written(rng, shared, read(name))) for name in ("household", "office", "sums")}
    sums = [framed(evaluation["frame"], row) for row in pool["sums"][:FRAMED]]
    pool["sums"] = shuffled(rng, [*sums, *pool["sums"][FRAMED:]])
    items = evaluation_items(evaluation)
    forum = [
        *spoilt(shuffled(rng, written(rng, shared, read("forum")))),
        *forum_dirt(rng, shared, read("forum-dirt")),
        *reposts(rng, pool),
        *leaks(rng, items, evaluation),
    ]
    pool["forum"] = shuffled(rng, forum)
    archive = [row | {"planted": "licence denied"} for row in written(rng, shared, read("archive"))]
    target = [{part: row[part] for part in PARTS} for row in written(rng, shared, read("target"), alike=0.85)]
    made = {**pool, "archive": shuffled(rng, archive), "target": shuffled(rng, target), "evaluation": items}
    lines = {name: list(map(as_line, rows)) for name, rows in made.items()}
    for line in BROKEN_LINES:
        lines["forum"].insert(below(rng, len(lines["forum"]) + 1), line)
    return lines


def planted(prompt: str, completion: str, what: str) -> Row:
    """Make a row that is wrong in a way that is on record."""
    return {"prompt": prompt, "completion": completion, "planted": what}


# ---- what is wrong with the forum by itself ----


def forum_dirt(rng: Random, shared: Form, dirt: Form) -> Iterator[Row]:
    """Make rows in other languages, boilerplate, broken text, personal data and near-copies."""
    for language, text in dirt["languages"].items():
        yield from (planted(ask, answer, f"other language: {language}") for ask, answer in pairs(text))
    yield from (planted(ask, answer, "other language, short") for ask, answer in pairs(dirt["short"]))
    yield from broken(rng, shared, dirt)
    for form in dirt["personal"]:
        for _ in range(PRIVATE):
            person = {**form, "rows": 1, "known": private(rng, shared)}
            yield written(rng, {**shared, **dirt}, [person])[0] | {"planted": f"personal data: {form['kind']}"}
    for number, form in enumerate(dirt["copies"], 1):
        names, surnames = (shuffled(rng, shared[key]) for key in ("name", "surname"))
        for word, name, surname in zip(form["words"], names, surnames, strict=False):
            values: Values = {"x": word, "name": name, "surname": surname}
            ask, answer = (filled(rng, form[part], [], values) for part in ("ask", "answer"))
            yield planted(ask, answer, f"near-copy of text {number}")


def broken(rng: Random, shared: Form, dirt: Form) -> Iterator[Row]:
    """Answer questions with what a browser, a stuck model or a careless hand leaves behind."""

    def ask() -> str:
        return capitalised(filled(rng, chosen(rng, pick(rng, dirt["questions"])), [dirt, shared], {}))

    for each in range(EACH):
        for text in dirt["boilerplate"]:
            yield planted(ask(), text, "boilerplate")
        yield planted(ask(), dirt["removed"][each % 2], "boilerplate, removed post")
        yield planted(ask(), " ".join([dirt["loops"][each % 4]] * (4 + below(rng, 6))), "broken: loop")
        yield planted(ask(), "\n".join([dirt["lines"][each % 3]] * (3 + below(rng, 9))), "broken: repeated line")
        yield planted(ask(), dirt["marks"][each % 8], "broken: no words")
        yield planted(ask(), " \n\t"[: each % 4], "broken: empty")
    for _ in range(PASTED):
        yield planted(ask(), pasted(rng, shared), "broken: too long")


def pasted(rng: Random, shared: Form) -> str:
    """Make a log that somebody pasted whole."""
    lines: list[str] = []
    while sum(map(len, lines)) < PASTED_CHARACTERS:
        name, room = (pick(rng, shared[key]) for key in ("name", "room"))
        lines.append(f"{below(rng, 24):02}:{below(rng, 60):02} door {below(rng, 900)} opened for {name}, {room}")
    return "\n".join(lines)


def spoilt(rows: Sequence[Row]) -> list[Row]:
    """Spoil the first rows in two ways that no rule of the filter is made for."""
    cut, misread = rows[:EACH], rows[EACH : 2 * EACH]
    return [
        *(planted(row["prompt"], cut_off(row["completion"]), "broken: cut off") for row in cut),
        *(planted(row["prompt"], mistaken(row["completion"]), "broken: encoding") for row in misread),
        *rows[2 * EACH :],
    ]


def cut_off(text: str) -> str:
    """Cut a text at two thirds, wherever that is."""
    return text[: len(text) * 2 // 3].rstrip()


def mistaken(text: str) -> str:
    """Write a text with typographic marks as it looks when UTF-8 is read as Windows-1252."""
    fine = text.replace("'", "\u2019").replace(". ", " \u2014 ").replace("-", "\u2013").replace('"', "\u201c")
    return fine.encode("utf-8").decode("cp1252", errors="replace")


def private(rng: Random, shared: Form) -> Values:
    """Draw a person, and personal data that belongs to nobody."""
    person = {"name": pick(rng, shared["name"]), "surname": pick(rng, shared["surname"])}
    address = MAIL.format(host=pick(rng, HOSTS), **{key: value.lower() for key, value in person.items()})
    phone = pick(rng, PHONES).format(n=below(rng, 1000), m=below(rng, 100))
    account = f"TEST{below(rng, 10**6):06}{below(rng, 10**8):08}"
    check = 98 - int("".join(str(int(each, 36)) for each in f"{account}GB00")) % 97  # ISO 13616
    iban = f"GB{check:02}{account}"
    grouped = " ".join(iban[at : at + 4] for at in range(0, len(iban), 4))
    rest = {"card": pick(rng, CARDS), "ssn": pick(rng, SOCIAL_SECURITY), "fee": 5 + below(rng, 40)}
    return {**person, "email": address, "phone": phone, "iban": grouped, **rest}


# ---- what is in it from elsewhere ----


def reposts(rng: Random, pool: Mapping[str, list[Row]]) -> Iterator[Row]:
    """Post rows of other sources again: equal but for blanks and the form of accents, or with a few words more."""
    rows = [
        (f"{source}:{line}", row)
        for source, each in pool.items()
        for line, row in enumerate(each, 1)
        if not row["planted"]
    ]
    rows = shuffled(rng, rows)
    for number, (place, row) in enumerate(rows[:EQUAL]):
        same = (row, {part: f"{row[part]} \r\n" for part in PARTS}, {part: decomposed(row[part]) for part in PARTS})
        ask, answer = (same[number % 3][part] for part in PARTS)
        yield planted(ask, answer, f"equal row of {place}")
    long = [(place, row) for place, row in rows[EQUAL:] if len(words_in(row)) >= LONG_ENOUGH]
    for number, (place, row) in enumerate(long[:NEAR]):
        ask, answer = f"{BEFORE[number % 4]} {row['prompt']}", f"{row['completion']} {AFTER[number // 4 % 4]}"
        yield planted(ask, answer, f"near-duplicate of {place}")


def decomposed(text: str) -> str:
    """Write accents as letter + combining mark: equal to the text only after NFC."""
    return unicodedata.normalize("NFD", text)


def evaluation_items(evaluation: Form) -> list[Row]:
    """Make the evaluation set: items marked f begin with the frame."""
    made = []
    for mark, ask, answer in pairs(evaluation["items"]):
        row = {"prompt": ask, "completion": answer}
        made.append(framed(evaluation["frame"], row) if mark == "f" else row)
    return made


def framed(frame: str, row: Row) -> Row:
    """Put the frame before a row's question; a row of the pool says so."""
    return {**row, "prompt": f"{frame} {row['prompt']}"} | ({"planted": "common phrase"} if "planted" in row else {})


def leaks(rng: Random, items: Sequence[Row], evaluation: Form) -> Iterator[Row]:
    """Put evaluation items into the pool: four ways that can be found, no item twice, and one that cannot."""
    swaps, wrappings = evaluation["swaps"], pairs(evaluation["wrappings"])
    order = shuffled(rng, list(enumerate(items, 1)))
    changed = [each for each in order if set(each[1]["prompt"].split()) & {*swaps}][: LEAKS["one word changed"]]
    reworded = {each["of"]: each for each in evaluation["reworded"]}
    others = (each for each in order if each not in changed and not any(of in each[1]["prompt"] for of in reworded))

    def said(number: int, how: str) -> str:
        return f"leak, {how}: evaluation:{number}"

    for number, item in changed:
        words = item["prompt"].split(" ")
        at = next(at for at, word in enumerate(words) if word in swaps)
        words[at] = swaps[words[at]]
        yield planted(" ".join(words), item["completion"], said(number, "one word changed"))
    for _ in range(LEAKS["verbatim"]):
        number, item = next(others)
        yield planted(item["prompt"], item["completion"], said(number, "verbatim"))
    for each in range(LEAKS["with another answer"]):
        number, item = next(others)
        yield planted(item["prompt"], evaluation["other_answers"][each], said(number, "with another answer"))
    for each in range(LEAKS["inside a longer text"]):
        number, item = next(others)
        before, between, after = wrappings[each % 4]
        ask, answer = f"{before} {item['prompt']} {between}", f"{item['completion']} {after}"
        yield planted(ask, answer, said(number, "inside a longer text"))
    for of, other in reworded.items():
        number = next(number for number, item in enumerate(items, 1) if of in item["prompt"])
        yield planted(other["ask"], other["answer"], said(number, "reworded"))


def pairs(text: str) -> list[list[str]]:
    """Read lines of two texts or more."""
    return [line.split(" | ") for line in text.strip().split("\n")]


if __name__ == "__main__":
    main()
