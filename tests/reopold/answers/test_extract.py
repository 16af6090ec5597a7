"""Where the answer of a response is found."""

from __future__ import annotations

import pytest

from reopold.answers.extract import boxed, closing_words, final_answer, stated


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then \boxed{2}.", "2"),
        (r"so $\boxed{\frac{1}{\sqrt{2}}}$", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),  # an escaped brace closes nothing
        (r"\boxed{\begin{pmatrix}1\\2\\\end{pmatrix}}", r"\begin{pmatrix}1\\2\\\end{pmatrix}"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\fbox{7}", "7"),
        (r"\boxed {8}", "8"),
        (r"\boxed 25", "25"),
        (r"$x=\boxed{1}$ and $x=\boxed{-2}$", "-2"),
        (r"$\boxed{1}$ and $\boxed{-2}$", "1, -2"),
        (r"\boxed{1}, \boxed{2}, or \boxed{3}", "1, 2, 3"),
        (r"$\boxed{4}$, $\boxed{4}$", "4"),
        (r"\boxed{5} is right. I checked it: \boxed{6", "5"),  # cut off within a box
        (r"\boxed{6", None),
        ("no box", None),
        ("{" * 1000 + r"\boxed{9}", "9"),
    ],
)
def test_boxes(text: str, answer: str | None) -> None:
    assert boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 5.", "5"),
        ("The final answer is $\\frac{1}{2}$. I hope it is correct.", "\\frac{1}{2}"),
        ("**Answer:** 3.5\nDone.", "3.5"),
        ("The answer is:\n\\[\n12\n\\]", "\n12\n"),
        ("The answer is $1$ and $2$ because $x>0$", "1, 2"),
        ("The answer to the problem is 7", "7"),
        ("the answer is 50\\%.", "50\\%"),
        ("The answer is $50$%.", "50\\%"),
        ("First the answer is 3. No, the answer is 4.", "4"),
        ("I have no idea: 3, 4, 5", None),
    ],
)
def test_statements(text: str, answer: str | None) -> None:
    assert stated(text) == answer


TOOL = "Let me compute.\n```python\nprint(6*7)\n```\n```output\n42\n```\n"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is 3, so \\boxed{4}. Wait, the answer is 5.", "4"),  # a box outranks words
        ("We get 3 + 4 = 7 and then 12", "We get 3 + 4 = 7 and then 12"),  # short: as it stands
        ("We add.\nWe get 3 + 4 = 7 and then 12.", None),  # no stray last number
        ("We add.\nSo:\n**12**", "12"),
        ("We add.\n$$\\frac{1}{2}$$", "$$\\frac{1}{2}$$"),
        ("We add.\n$x = 12$", None),  # one equation among others
        ("\\frac{3}{4}", "\\frac{3}{4}"),
        (TOOL, None),  # what a tool printed is no answer
        (TOOL + "So \\boxed{42}.", "42"),
        ("\\boxed{41}\n" + TOOL + "The answer is 42.", "42"),
        ("So \\boxed{42}. Check:\n" + TOOL, "42"),
        ("<code>print('\\\\boxed{1}')</code><interpreter>\\boxed{2}</interpreter>", None),
        ("<llm-code-output>\\boxed{2}</llm-code-output>It is \\boxed{3}", "3"),
        ("```output\n\\boxed{2}", None),
        ("", None),
        ("\\boxed{}", None),
        ("\\boxed{" + "9" * 1001 + "}", None),  # longer than any answer
    ],
)
def test_final_answers(response: str, answer: str | None) -> None:
    found = final_answer(response)
    assert found == answer or (found or "").strip() == answer


def test_closing_words_leave_out_code() -> None:
    assert closing_words(TOOL + "Done.").strip() == "Done."
    assert closing_words("plain") == "plain"
