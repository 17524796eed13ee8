"""What must be equal in two prompts before their meaning is compared at all.

Embeddings, above all of bags of tokens, hardly see a digit, a name, a negation or the order of two words, and these
decide an answer. So the semantic tier compares only prompts whose fingerprints are equal: numbers, quotations, code,
links, names, words of other scripts, negations and opposites, each as a sequence in its order. Prompts made of the same
words in another order are told apart too. This also blunts crafted collisions: an attacker cannot move an answer to a
prompt with other facts in it.
"""

import re
from collections.abc import Iterator
from hashlib import blake2b

from trimtab.sidecar.cache.decisive_words import DECISIVE, OPENERS

_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
_LINK = re.compile(
    r"\b(?:https?://|www\.)\S+|\b[\w.+-]+@[\w-]+\.\w[\w.-]*|(?:[~.]{0,2}/[\w.@-]+){2,}|\b\w:\\\S+", re.ASCII
)
_QUOTED = re.compile(
    r"\"([^\"\n]+)\"|“([^”\n]+)”|„([^“”\n]+)[“”]|«([^»\n]+)»|(?<!\w)'([^'\n]+)'(?!\w)|‘([^’\n]+)’(?!\w)"
)
_NUMBER = re.compile(r"[+-]?\d[\d.,:/ \u00a0_-]*\d|[+-]?\d")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SYMBOL = re.compile(r"[<>=≤≥≠+*%$€£¥°#&|^~§]")

_DECISIVE = frozenset(DECISIVE.split())
_OPENERS = frozenset(OPENERS.split())


def fingerprint(text: str) -> bytes:
    """16 bytes, equal for two texts exactly when everything decisive in them is equal, in order (see the module)."""
    digest = blake2b(digest_size=16)
    for part in decisive_parts(text):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(4, "big") + data)
    return digest.digest()


def decisive_parts(text: str) -> Iterator[str]:
    """The parts of a text that must be equal, each with its kind in front."""
    rest = text
    for kind, pattern in (("code", _CODE), ("link", _LINK), ("quoted", _QUOTED), ("number", _NUMBER)):
        for match in pattern.finditer(rest):
            yield f"{kind}:{match.group().strip()}"
        rest = pattern.sub(" \x00 ", rest)
    yield from (f"symbol:{found}" for found in _SYMBOL.findall(rest))
    for word in _WORD.findall(rest):
        low = word.lower().replace("’", "'")
        if not word.isascii():
            yield f"word:{low}"
        elif low in _DECISIVE:
            yield f"decisive:{low}"
        elif word != low and low not in _OPENERS:
            yield f"name:{word}"


def same_words_in_another_order(one: str, two: str) -> bool:
    """Whether two texts say different things with the same words ("dog bites man")."""
    first, second = (_WORD.findall(text.lower()) for text in (one, two))
    return first != second and sorted(first) == sorted(second)
