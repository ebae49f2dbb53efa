"""Cut a paragraph into sentences.

Next-sentence prediction needs sentence boundaries, and real prose hides them: "Mr. Darcy",
"J. K. Jerome", "e.g.", ellipses, and dialogue, where "“Stop!” he cried." is one sentence. One
regular expression finds every run of stops; a few rules on the words before and after it decide.
Nothing is added, removed or reordered: the sentences hold the text, but for the whitespace
between them.

Length is not judged here: `pretrain.corpus` cuts what is too long to train on, in tokens.
"""

import re

_QUOTES = "\"'”’»"
_FULL_WIDTH_STOPS = "。！？｡"
_OPENERS = r"\"'“‘«„(\[{_*—–-"

_CANDIDATE = re.compile(
    # ". . ." is one stop, as "..." and "?!" are. What closes after it belongs to its sentence.
    rf"(?P<stop>[.!?…؟۔।॥{_FULL_WIDTH_STOPS}]+(?:[ \xa0]\.)*)"
    rf"(?P<closers>[{_QUOTES})\]}}_*」』）】》〉]*)"
)
# The start of a sentence whose space is missing: "he left.She stayed".
_GLUED = re.compile(r"[“‘«(]?(?:[A-Z][a-z]+|[IA])(?:[.!?](?!\w)|(?![^\s,;’]))")
_UP_TO_NEXT_WORD = re.compile(rf"[\s{_OPENERS}]*")
_NEXT_WORD = re.compile(r"[^\W\d_]*")
_LAST_WORD = re.compile(r"[^\W\d_]+(?:[.'’][^\W\d_]+)*\Z")
_LABEL = re.compile(r"\W*(?:\d{1,3}|[IVXLC]{1,6}|[A-Za-z])\W*\Z")
_ADDRESS = re.compile(r"://|www\.|@")

# What a quotation's speaker does: “…!” I cried; “…?” asked Mr. Holmes.
_SPEAKS = re.compile(
    r"(?!(?:He|She|It|We|You|They|Who|What|Then|So)\b)"
    r"(?:I|(?:(?:Mr|Mrs|Ms|Dr|St)\. )?[A-Z][\w'’-]+(?: [A-Z][\w'’-]+)?)(?: \w+ly)? "
    r"(?:said|says|asked|asks|cried|cries|exclaimed|whispered|answered|replied|repeated|inquired|"
    r"enquired|demanded|ejaculated|suggested|persisted|queried|urged|gasped|murmured|muttered|"
    r"groaned|shouted|called|remonstrated|thought|returned|began|screamed|sobbed|roared|growled|"
    r"sneered|interrupted|observed|remarked|responded|retorted|yelled|continued)\b"
)
_SPEAKS_FULL_WIDTH = re.compile(r"と|[^\s。！？“”「」]{0,6}[说說道问問喊叫答]")

# A name follows these: they end no sentence.
_TITLES = frozenset(
    "mr mrs ms dr prof rev hon capt col gen lt lieut sgt maj cpl pvt adm cmdr brig supt insp "
    "messrs mme mlle mm ste sen rep gov pres fr mgr msgr mt thos wm chas geo jas jos benj robt "
    "edw vs cf viz approx i.e e.g ie eg".split()
)
# A number may follow these: "No. 5", but "No. He stayed."
_BEFORE_NUMBERS = frozenset(
    "no nos p pp vol vols fig figs ch chap sec sect art par v vv c ca al ver lib cap bk pt pl op "
    "lat jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
# Abbreviations of words that may stand last, as initials and "U.S." may.
_MAY_END = frozenset(
    "st co inc ltd jr sr esq bros corp ave blvd rd dept univ assn al jan feb aug sept oct nov "
    "dec".split()
)
_MOSTLY_END = frozenset("etc a.m p.m b.c a.d ibid".split())
_NAMES_A_DAY = frozenset(
    "monday tuesday wednesday thursday friday saturday sunday january february march april june "
    "july august september october november december est gmt greenwich".split()
)
# After an abbreviation that may stand last, these words open a sentence: they are seldom names.
_STARTERS = frozenset(
    "a after all also although among an and another any are as at because before both but by "
    "can could did do does during each even every everything for from had has have he her here "
    "hers his how however i if in indeed is it its just let many meanwhile more most my never "
    "next no nobody none nor not nothing now of often on once one only or others our perhaps "
    "several shall she should since so some soon still such than that the their them then there "
    "these they this those though thus to today together too two under until upon was we well "
    "were what when where whether which while who whose why will with within without would yes "
    "yet you your".split()
)


def split_sentences(text: str) -> list[str]:
    """Cut a paragraph into its sentences.

    A paragraph without a single capital (a lower-cased corpus) is cut before small letters too.

    Returns:
        The sentences in order, stripped, none empty. Joined, they are the text but for whitespace.
    """
    text = text.strip()
    sentences = []
    begin = 0
    has_capitals = text != text.lower()
    for candidate in _CANDIDATE.finditer(text):
        end = _sentence_end(text, begin, candidate, has_capitals)
        if end is not None:
            sentences.append(text[begin:end].strip())
            begin = end
    rest = text[begin:].strip()
    return [*sentences, rest] if rest else sentences


def _sentence_end(
    text: str, begin: int, candidate: re.Match[str], has_capitals: bool
) -> int | None:
    """Return where the sentence that opened at `begin` ends, or None where it goes on."""
    end = candidate.end()
    if end == len(text):
        return None  # the last sentence needs no cut
    stop, closers = candidate["stop"], candidate["closers"]
    if not text[end].isspace():
        # Chinese and Japanese put no whitespace after a stop.
        if stop[-1] in _FULL_WIDTH_STOPS:
            says = closers and _SPEAKS_FULL_WIDTH.match(text, end)
            return None if says or text[end] in "，、；：,;" else end
        if not _is_glued(text, begin, candidate):
            return None
    between = _UP_TO_NEXT_WORD.match(text, end)
    assert between is not None  # it matches the empty string too
    word_at = between.end()
    if word_at == len(text):
        return None  # the last sentence needs no cut
    openers = between.group().strip()
    # Tokenised text sets its quotes apart, `it was . " He left`: that one closes if one is open.
    if openers[:1] == '"' and text[text.index('"', end) + 1].isspace():
        if text.count('"', begin, end) % 2:
            end = text.index('"', end) + 1
            closers, openers = '"', openers[1:].strip()
    following = text[word_at]
    if following in ",;:)]}.!?…":
        return None
    opens_quotation = openers[:1] in ('"', "“", "«", "„")
    if has_capitals and following.islower() and not (stop == "." and opens_quotation):
        return None
    closes_quotation = bool(closers) and any(closer in _QUOTES for closer in closers)
    if stop != ".":
        return None if closes_quotation and _SPEAKS.match(text, word_at) else end
    if closes_quotation:
        return end
    if _is_abbreviation(text, begin, candidate.start(), word_at, opens_quotation):
        return None
    return end


def _is_glued(text: str, begin: int, candidate: re.Match[str]) -> bool:
    """Tell a missing space after a stop from a stop inside a word, a number or an address."""
    if not _GLUED.match(text, candidate.end()):
        return False
    words = text[max(begin, candidate.start() - 64) : candidate.start()].split()
    if not words or _ADDRESS.search(words[-1]):
        return False
    letters = words[-1][-2:]
    return len(letters) == 2 and letters.isalpha() and letters[1].islower()


def _is_abbreviation(
    text: str, begin: int, stop_at: int, word_at: int, opens_quotation: bool
) -> bool:
    """Tell an abbreviation's full stop, or a label's, from one that ends a sentence."""
    if stop_at - begin <= 12 and _LABEL.match(text[begin:stop_at]):
        return True  # "1. The", "IV. The", "(a) The" stay with what they number
    before = text[max(begin, stop_at - 32) : stop_at].split()
    found = _LAST_WORD.search(before[-1]) if before else None
    if found is None:
        return False
    word = found.group()
    lower = word.lower()
    if text[word_at].isdigit():
        return lower in _BEFORE_NUMBERS
    if lower in _TITLES:
        return True
    next_word = _NEXT_WORD.match(text, word_at)
    following = next_word.group().lower() if next_word else ""
    if lower in _MOSTLY_END:
        return following in _NAMES_A_DAY
    is_initial = len(word) == 1
    if not (is_initial or "." in word or lower in _MAY_END):
        return False
    if word == "I" and len(before) > 1 and before[-2].islower():
        return False  # the pronoun: "better than I. Mary went"
    if opens_quotation and not is_initial:
        return False
    is_followed_by_initial = len(following) == 1 and text.startswith(".", word_at + 1)
    return following not in _STARTERS or is_followed_by_initial
