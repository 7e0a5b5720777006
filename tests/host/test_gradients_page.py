"""docs/gradients.md is what check_grad says now: its programs, what they print, and the tables of kinds."""

import re

from host.gallery import PAGE, outputs, page


def test_the_tables_and_what_the_programs_print():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "run python tests/host/gallery.py, and read what has changed"


def test_the_program_of_the_page_is_that_of_the_kinds():
    from host.kinds import LOSS, PAIR, SIGMOID

    text = re.sub(r" +#.*", "", PAGE.read_text(encoding="utf-8"))
    assert SIGMOID in text
    assert LOSS in text
    lines = [line for line in text.split("## A wrong line")[0].splitlines() if line in PAIR.splitlines()]
    assert "\n".join(dict.fromkeys(lines)) == PAIR.rstrip()


def test_a_printed_text_is_not_taken_as_it_stands():
    assert outputs("```python\nprint(6 * 7)\n```\n\n```\n41\n```\n") == "```python\nprint(6 * 7)\n```\n\n```\n42\n```\n"
