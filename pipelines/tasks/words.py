"""Words: where they begin and end in a text, in scripts with spaces between them and without. It knows no task.

we sail to 東京 now      |we| |sail| |to| |東|京| |now|
"""

import re

# Chinese, Japanese, Thai, Lao, Tibetan, Burmese, Khmer and their neighbours: nothing stands between two words.
_WITHOUT_SPACES = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\u2e80-\u303f\u3040-\u312f\u31a0-\u4dbf"
    "\u4e00-\u9fff\ua980-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_WITHOUT = re.compile(f"[{_WITHOUT_SPACES}]")
_ENDS = re.compile(rf"[\s{_WITHOUT_SPACES}]")


def is_inside_word(text: str, place: int) -> bool:
    """Return whether the characters before and after a place are of one word: neither is white space, or of a script
    without spaces, where only tokens tell how far a word goes."""
    return place > 0 and not _ENDS.search(text, place - 1, place + 1)


def whole_word(text: str, token: tuple[int, int], word: tuple[int, int]) -> tuple[int, int]:
    """Return the characters of the word that a token is in. `word`: what the tokenizer takes for it.

    In a script without spaces that is a whole clause; there the word is the token, with what goes on around it of
    letters of other scripts.
    """
    first, last = word
    if text.isascii() or not _WITHOUT.search(text, first, last):
        return word
    start, stop = token
    while start > first and is_inside_word(text, start):
        start -= 1
    while stop < last and is_inside_word(text, stop):
        stop += 1
    return start, stop
