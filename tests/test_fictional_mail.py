"""The fictional mail of data/notes, which teaches to follow notes: its form, and that it is new."""

import itertools
import re

import pytest
from conftest import ROOT

import prepare_data


@pytest.fixture(scope="module")
def rows():
    return prepare_data.read_replies(str(ROOT / "data/notes/replies_624.csv")).to_dict("records")


def test_the_rows_are_of_many_writers_and_most_have_notes(rows):
    assert len(rows) == 624 and [row["id"] for row in rows] == [str(n) for n in range(1, 625)]
    assert len({row["From"] for row in rows}) == 48
    noted = [row for row in rows if row["notes"]]
    assert 0.85 < len(noted) / len(rows) < 0.95
    assert sum(len(row["notes"].split()) < 4 for row in noted) > len(noted) / 4
    for row in rows:
        assert row["response"] == row["body"] and int(row["length"]) == len(row["body"])
        assert row["mail"].strip() and prepare_data.sent_at(row) > prepare_data.NO_DATE
        assert row["notes"] == " ".join(row["notes"].split())


def test_no_row_repeats_another(rows):
    for column in "mail", "response":
        texts = [prepare_data.normalise(row[column]) for row in rows]
        assert len(set(texts)) == len(texts)
        windows = [
            {tuple(words[i : i + 12]) for i in range(len(words) - 11)}
            for words in (re.findall(r"\w+", row[column].casefold()) for row in rows)
        ]
        for (a, first), (b, second) in itertools.combinations(enumerate(windows), 2):
            assert not first & second, (a, b, first & second)


def test_all_of_it_is_fiction_and_none_of_it_is_of_the_sample(rows):
    for row in rows:
        for address in re.findall(r"[\w.+-]+@[\w.-]+", " ".join(row.values())):
            assert address.rstrip(".").endswith(".example"), address
        assert not re.search(r"https?:|www\.", row["mail"] + row["response"])
    for path in (ROOT / "data/sample").glob("*.csv"):
        sample = prepare_data.read_replies(str(path))
        assert not {row["From"] for row in rows} & set(sample["From"])
        mails = set(sample["mail"].map(prepare_data.normalise))
        assert not {prepare_data.normalise(row["mail"]) for row in rows} & mails
