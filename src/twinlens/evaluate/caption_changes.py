"""Makes a real caption wrong by a small change: "a horse on a man".

A picture must prefer its caption to the changed one. The kinds follow Yuksekgonul et al. 2023
(ARO), arXiv:2210.01936, section 2: relations, attributes, order; and a changed number. They cut
captions with a parser and taggers; here closed lists of English words find what can be
exchanged, so that no package is needed, a caption that fits no pattern is left out, and some
changed captions are odd English. Hence the tasks that use them also ask what can be told
without the picture.

On purpose not the exchange that training may use (`swapped_words`, any two words): a model
must not be measured on the very trick it was trained against.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Random = np.random.Generator
CaptionChange = Callable[[str, Random], str | None]

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_DETERMINERS = frozenset("a an the his her its their another one".split())
_FUNCTION_WORDS = _DETERMINERS | frozenset(
    """
    about above across after against along among and are around as at away be before behind below
    beneath beside between by down for from has have he holds in inside into is it near next of
    off on onto or out outside over past she some that them they this through to toward towards
    under underneath up wears was were where which while who with without
    """.split()
)
# "A dog next to a cat" says the same the other way round.
_SYMMETRIC = frozenset("and or with next to beside near by alongside between together".split())
_IRREGULAR_PLURALS = frozenset("men women people children feet geese sheep".split())

_ATTRIBUTES = (
    frozenset(
        "black white red blue green yellow brown orange pink purple grey gray tan blonde".split()
    ),
    frozenset("big small large little tiny tall short long huge".split()),
    frozenset("old young".split()),
    frozenset("wooden metal plastic stone brick glass grassy sandy snowy rocky wet dry".split()),
)
_NUMBERS = tuple("two three four five six".split())


@dataclass(frozen=True)
class _Phrase:
    """`a black dog`: where the determiner and the rest are."""

    determiner: re.Match[str]
    start: int
    end: int
    plural: bool


def exchanged_phrases(caption: str, random: Random) -> str | None:
    """Two things in each other's place: "a man on a horse" to "a horse on a man".

    None where there are no two, or where the exchange would say the same ("a man and a woman").
    """
    phrases = _phrases(caption)
    pairs = [
        (first, second)
        for first, second in itertools.combinations(phrases, 2)
        if first.plural == second.plural
        and caption[first.start : first.end].lower() != caption[second.start : second.end].lower()
        and not _all_of(caption[first.end : second.determiner.start()], _SYMMETRIC)
    ]
    if not pairs:
        return None
    first, second = pairs[int(random.integers(len(pairs)))]
    here, there = caption[first.start : first.end], caption[second.start : second.end]
    return "".join(
        (
            caption[: first.determiner.start()],
            _article(first.determiner[0], there),
            caption[first.determiner.end() : first.start],
            there,
            caption[first.end : second.determiner.start()],
            _article(second.determiner[0], here),
            caption[second.determiner.end() : second.start],
            here,
            caption[second.end :],
        )
    )


def exchanged_attributes(caption: str, random: Random) -> str | None:
    """Two colours, sizes, ages or materials in each other's place.

    None where there are no two, where both may belong to one thing ("black and white"), and
    where the exchange would say the same ("a black dog and a brown dog").
    """
    pairs = []
    for kind in _ATTRIBUTES:
        found = [word for word in _WORD.finditer(caption) if word[0].lower() in kind]
        pairs += [
            (first, second)
            for first, second in itertools.combinations(found, 2)
            if first[0].lower() != second[0].lower()
            and not _says_the_same(caption, first, second, kind)
        ]
    if not pairs:
        return None
    first, second = pairs[int(random.integers(len(pairs)))]
    here, there = second[0], first[0]
    if there[0].isupper() and not here[0].isupper():  # the caption's first word
        here, there = here.capitalize(), there.lower()
    between = caption[first.end() : second.start()]
    changed = f"{caption[: first.start()]}{here}{between}{there}{caption[second.end() :]}"
    return re.sub(r"\b([Aa])n?(?= (\w))", lambda match: _article(match[1], match[2]), changed)


def changed_number(caption: str, random: Random) -> str | None:
    """Another number of things: "two dogs" to "five dogs"; None without a number from 2 to 6."""
    found = [word for word in _WORD.finditer(caption) if word[0].lower() in _NUMBERS]
    if not found:
        return None
    word = found[int(random.integers(len(found)))]
    others = [number for number in _NUMBERS if number != word[0].lower()]
    number = others[int(random.integers(len(others)))]
    if word[0][0].isupper():
        number = number.capitalize()
    return caption[: word.start()] + number + caption[word.end() :]


def shuffled_trigrams(caption: str, random: Random) -> str | None:
    """The caption in runs of three words, the runs in another order; None below four words."""
    words = caption.split()
    runs = [words[start : start + 3] for start in range(0, len(words), 3)]
    orders = list(itertools.islice(_orders(runs, random), 1))
    if not orders:
        return None
    return " ".join(word for run in orders[0] for word in run)


CHANGES: dict[str, CaptionChange] = {
    "things exchanged": exchanged_phrases,
    "attributes exchanged": exchanged_attributes,
    "number changed": changed_number,
    "order of words": shuffled_trigrams,
}


def _orders(runs: list[list[str]], random: Random) -> "itertools.chain[list[list[str]]]":
    """Random orders that differ from the one given; none where all runs are equal."""
    if all(run == runs[0] for run in runs):
        return itertools.chain()
    drawn = ([runs[i] for i in random.permutation(len(runs))] for _ in itertools.count())
    return itertools.chain(order for order in drawn if order != runs)


def _phrases(caption: str) -> list[_Phrase]:
    """Determiners with what follows them, up to a function word, a mark or a likely verb."""
    words = list(_WORD.finditer(caption))
    phrases = []
    for place, determiner in enumerate(words):
        if determiner[0].lower() not in _DETERMINERS:
            continue
        rest: list[re.Match[str]] = []
        previous = determiner
        for word in words[place + 1 :]:
            if caption[previous.end() : word.start()].strip() or _ends_phrase(
                word[0].lower(), bool(rest), determiner[0].lower()
            ):
                break
            rest.append(word)
            previous = word
        if rest:
            plural = _is_plural(rest[-1][0].lower())
            phrases.append(_Phrase(determiner, rest[0].start(), rest[-1].end(), plural))
    return phrases


def _ends_phrase(word: str, has_words: bool, determiner: str) -> bool:
    if word in _FUNCTION_WORDS:
        return True
    # After an adjective or a noun: "a man running", "a dog dressed", "a girl plays".
    verb = word.endswith("ing") or (word.endswith("ed") and len(word) > 4)
    return has_words and (verb or (determiner in ("a", "an", "one") and _is_plural(word)))


def _is_plural(word: str) -> bool:
    return word in _IRREGULAR_PLURALS or (word.endswith("s") and not word.endswith("ss"))


def _says_the_same(
    caption: str, first: re.Match[str], second: re.Match[str], kind: frozenset[str]
) -> bool:
    between = caption[first.end() : second.start()]
    described = [_WORD.search(caption, word.end()) for word in (first, second)]
    names = {word[0].lower() for word in described if word is not None}
    same = names if len(names) == 1 else set()
    return _all_of(between, _SYMMETRIC | kind | same)


def _article(determiner: str, following: str) -> str:
    """`a` or `an` as the following word wants it; other determiners as they are."""
    if determiner.lower() not in ("a", "an"):
        return determiner
    return determiner[0] + ("n" if following[:1].lower() in "aeiou" else "")


def _all_of(text: str, words: frozenset[str]) -> bool:
    return all(word.lower() in words | _DETERMINERS for word in _WORD.findall(text))
