"""Captions made wrong by exchanging two of their words: "the grass eats the horse".

A picture that must tell them from its own caption has to mind who does what to whom, which
a bag of words does not say. Source: Yuksekgonul et al. 2023 (NegCLIP), arXiv:2210.01936,
section 4. They exchange words of one part of speech, found by a tagger; here any two that
are no function words of English, so that no package is needed and other languages work,
with more captions that are not only wrong but odd.
"""

import itertools
import re

import numpy as np

# Words with apostrophes and hyphens in them are one; numbers are left where they are.
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_BREAK = re.compile(r"[,;]|\b(?:and|or|nor)\b", re.IGNORECASE)
_JOINING = frozenset("a an and nor or the".split())
_FUNCTION_WORDS = _JOINING | frozenset(
    """
    about above across after against along among around as at away back be been before behind
    being below beneath beside between beyond both but by can could did do does down during each
    either every for from had has have having he her here hers him his how i if in inside into is
    it its it's just may me might more most my near no not of off on once one onto other our out
    outside over own she should so some such than that their them then there these they this those
    through to toward towards under until up upon us very was we were what when where which while
    who whose will with within without would you your are am any all there's
    """.split()
)


def swapped_words(caption: str, random: np.random.Generator) -> str | None:
    """`caption` with two of its words in each other's place; None where there are no such two.

    The words are different ones, and the exchange must be able to change what is said: it
    does not in "a dog and a cat", nor between keywords ("dog, sea, sand").
    """
    words = [
        match for match in _WORD.finditer(caption) if match[0].casefold() not in _FUNCTION_WORDS
    ]
    pairs = [
        (first, second)
        for first, second in itertools.combinations(words, 2)
        if first[0].casefold() != second[0].casefold()
        and not _interchangeable(caption, words, first, second)
    ]
    if not pairs:
        return None
    first, second = pairs[int(random.integers(len(pairs)))]
    between = caption[first.end() : second.start()]
    head, tail = caption[: first.start()], caption[second.end() :]
    here, there = second[0], first[0]
    # A capital letter in the middle would give the wrong caption away.
    if not head.strip() and there.istitle() and here.islower():
        here, there = here.capitalize(), there.lower()
    return f"{head}{here}{between}{there}{tail}"


def _interchangeable(
    caption: str, words: list[re.Match[str]], first: re.Match[str], second: re.Match[str]
) -> bool:
    """Whether both are members of one enumeration."""
    between = caption[first.end() : second.start()]
    if not _BREAK.search(between):
        return False
    if all(word.casefold() in _JOINING for word in _WORD.findall(between)):
        return True
    return _alone(caption, words, first) and _alone(caption, words, second)


def _alone(caption: str, words: list[re.Match[str]], word: re.Match[str]) -> bool:
    """Whether nothing else that could be exchanged stands with `word` between two breaks."""
    breaks = [match.span() for match in _BREAK.finditer(caption)]
    start = max((end for _, end in breaks if end <= word.start()), default=0)
    stop = min((begin for begin, _ in breaks if begin >= word.end()), default=len(caption))
    return [other for other in words if start <= other.start() < stop] == [word]
