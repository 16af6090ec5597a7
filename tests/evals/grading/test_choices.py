"""The letter that a response chooses, and that words are no letters."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.grading.choices import chosen_letter, letter_set, listed_options, options_by_letter
from evals.grading.statements import stated_number

CM = {"A": "3 cm", "B": "5 cm", "C": "7 cm", "D": "none of these"}
BARE = dict.fromkeys("ABCDEFGHIJ", "")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" (b) ", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("Option B", "B"),
        ("5 cm", "B"),
        ("5", "B"),  # the unit may be left out
        ("5.0", "B"),
        (r"\boxed{C}", "C"),
        (r"\boxed{\text{C}}", "C"),
        (r"\boxed{7 cm}", "C"),
        (r"\boxed{A} no, wait: \boxed{B}", "B"),
        ("So the answer is 7 cm.", "C"),
        ("The answer is (C), since A is wrong.", "C"),
        ("The correct option is C.", "C"),
        ("The correct answer is B, not A.", "B"),
        ("**Answer:** B", "B"),
        ("Answer:\nC", "C"),
        ("<Answer>: B", "B"),
        ('The answer to the question "what?" is **(D)**.', "D"),
        ("The answer is A. On reflection the answer is B.", "B"),
        ("B. 5 cm", "B"),
        ("B) because of the angle", "B"),
        ("It must be longer. Hence, (C).", "C"),
        ("We get x = 5.\nThe rod is 5 cm long. I hope this helps!", "B"),
        ("I choose (B)", "B"),
        ("The conclusion is option (C): some.", "C"),
    ],
)
def test_chosen(text: str, letter: str) -> None:
    assert chosen_letter(text, CM) == letter


@pytest.mark.parametrize(
    "text",
    [
        "",
        "E",  # no such option
        "The answer is E.",
        "The answer is A or B",
        "both (A) and (B)",
        "The answer is not A.",
        "Point A is on the line.",
        "(A) 3 cm\n(B) 5 cm\n(C) 7 cm",  # the options said again
        "It is 3 cm or 5 cm.",
        "It is 8 cm long.",
        "Cannot be determined",
        "It is 13 cm.",  # not 3 cm
    ],
)
def test_nothing_chosen(text: str) -> None:
    assert chosen_letter(text, CM) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("I'm sorry, I cannot see the image.", None),
        ("I think so", None),
        ("A dramatic scene unfolds.", None),
        ("The answer is A dramatic scene", None),
        ("J. A dramatic scene", "J"),
        ("The answer is A because of the light.", "A"),
        ("The answer is I.", "I"),
        ("I", "I"),
        ("A", "A"),
    ],
)
def test_words_are_no_letters(text: str, letter: str | None) -> None:
    assert chosen_letter(text, BARE) == letter


def test_an_options_text_counts_before_a_letter_within_it() -> None:
    options = options_by_letter(["(c)", "(a)", "(e)", "(d)", "(b)"])
    assert chosen_letter("(b)", options) == "E"
    assert chosen_letter("b", options) == "B"


def test_yes_and_no_as_options() -> None:
    options = {"A": "Yes", "B": "No"}
    assert chosen_letter("Yes, the line is red.", options) == "A"
    assert chosen_letter("no", options) == "B"
    assert chosen_letter("Nothing is red here", options) is None


def test_the_longer_of_two_options_that_fit() -> None:
    options = {"A": "quarter to", "B": "quarter"}
    assert chosen_letter("Therefore it is quarter to eight.", options) == "A"


def test_a_number_is_no_longer_number() -> None:
    options = {"A": "1", "B": "2", "C": "28"}
    assert chosen_letter("2.828427", options) is None
    assert chosen_letter("It is 2.5", options) is None


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("A, C", "AC"),
        ("C and A", "AC"),
        ("(A) and (C)", "AC"),
        ("a, c", "AC"),
        ("a", "A"),
        ("A C", "AC"),
        ("answer : c", "C"),
        (r"\boxed{A, C}", "AC"),
        ("The correct answers are B and D.", "BD"),
        ("Proposals A and B complete the diagrams", "AB"),
        ("The right choice to replace the question mark would be B.", "B"),
        ("I don't know", ""),
        ("A good one", ""),
        ("", ""),
        ("Z", ""),
    ],
)
def test_letter_sets(text: str, letters: str) -> None:
    assert letter_set(text, "ABCDEFGHIJ") == frozenset(letters)


def test_listed_options() -> None:
    assert listed_options("Which? (A) yes (B) no") == {"A": "yes", "B": "no"}
    assert listed_options("Is (A) right?") == {}
    assert listed_options("(B) no (A) yes") == {}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("31", "31"),
        ("-3", "-3"),
        ("1,234", "1234"),
        ("$5", "5"),
        ("5 meters", "5"),
        ("So the answer is 31", "31"),
        ("Therefore, there are 3 objects left on the table.", "3"),
        (r"\boxed{12}", "12"),
        (r"x = 7, so \boxed{x = 7.50}", "7.50"),
        ("In total, 7 + 14 + 10 = **31** players scored.", "31"),
        ("The rate of change = $7 - $2 = $5 per day.", "5"),
        ("Answer: 0.21", "0.21"),
        ("The value is 3. Let me know if you have any other questions.", "3"),
        ("between 3 and 4", None),
        ("no number", None),
        ("", None),
        ("vitamin B12", None),
    ],
)
def test_stated_numbers(text: str, number: str | None) -> None:
    assert stated_number(text) == number


@pytest.mark.parametrize(
    "piece",
    ["the answer is ", "answer: ", "A, ", "(A) ", "I choose ", "5 cm ", r"\boxed{", "1,", "A."],
)
def test_long_responses_end_soon(piece: str) -> None:
    start = time.monotonic()
    text = piece * 10_000
    chosen_letter(text, CM)
    letter_set(text, "ABCD")
    stated_number(text)
    assert time.monotonic() - start < 5


@given(st.text(max_size=80))
def test_any_text_chooses_an_option_or_none(text: str) -> None:
    assert chosen_letter(text, CM) in (*CM, None)
    assert letter_set(text, "ABCD") <= set("ABCD")


@given(
    st.sampled_from("ABCD"), st.sampled_from(["{}", "The answer is {}.", r"\boxed{{{}}}", "({})"])
)
def test_every_letter_in_every_form(letter: str, form: str) -> None:
    assert chosen_letter(form.format(letter), CM) == letter
