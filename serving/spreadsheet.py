"""Texts in CSV files that people open in a spreadsheet: none of them runs as a formula.

OWASP's advice against "CSV injection": an apostrophe in front.  Never imports pandas.
"""

import re

# The full-width signs begin formulas in some languages; white space in front is trimmed by some
# programs.  Apostrophes that are there already count, so that `restored` gives every text back.
_FORMULA = re.compile("'*[=+\\-@\uff1d\uff0b\uff0d\uff20\t\r\n]")


def neutralized(text: str) -> str:
    """Return what a spreadsheet shows as text and does not run; not meant for numbers."""
    return f"'{text}" if _FORMULA.match(text) else text


def restored(cell: str) -> str:
    """Return the text that `neutralized` made `cell` of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
