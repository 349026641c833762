"""A small grammar of English, which gives millions of original sentences."""

import zlib

import numpy as np

SPLITS = ("train", "valid", "test")

# A word in capitals is a rule, expanded anew wherever it occurs.
PHRASES = {
    "SENTENCE": (
        "WHEN the WHO PAST the QUALITY THING WHERE",
        "the QUALITY WHO PAST NUMBER THINGS WHERE",
        "my WHO and I PAST a QUALITY THING WHEN",
        "NAME PAST the QUALITY THING for the WHO WHERE",
        "why has the WHO never VERBED the THING WHERE",
        "please ask NAME to VERB the QUALITY THING WHEN",
        "could you VERB these NUMBER THINGS before NAME arrives",
        "WHEN we shall VERB every QUALITY THING WHERE",
        "if NAME calls WHEN the WHO will VERB the THING",
        "it was NAME who PAST the QUALITY THING WHEN",
        "neither the WHO nor NAME would VERB the QUALITY THING",
        "there are NUMBER QUALITY THINGS WHERE",
        "I think that NAME PAST our THING WHERE WHEN",
        "the THING WHERE belongs to the QUALITY WHO",
        "do not VERB the THING until the WHO has VERBED NUMBER THINGS",
        "NUMBER of the THINGS that NAME PAST were QUALITY",
    ),
    "WHERE": (
        "above the harbour",
        "across the field",
        "at the station",
        "behind the church",
        "below the stairs",
        "beside the river",
        "between the houses",
        "by the fire",
        "from the village",
        "in the cellar",
        "in the old theatre",
        "inside the barn",
        "near the museum",
        "next to the school",
        "on the roof",
        "on the northern road",
        "outside the palace",
        "over the hill",
        "under the oak tree",
        "with great care",
    ),
    "WHEN": (
        "after breakfast",
        "after the storm",
        "at half past eight",
        "at midnight",
        "before the meeting",
        "during the summer",
        "early on Thursday",
        "every other week",
        "in the evening",
        "last October",
        "later this month",
        "on Friday",
        "on the first of May",
        "once a year",
        "this morning",
        "while it was raining",
    ),
}

WORDS = {
    "WHO": (
        "baker captain carpenter cousin dentist doctor driver farmer gardener guard "
        "hunter judge lawyer librarian mayor mother neighbour nurse painter pilot "
        "sailor shepherd singer student tailor teacher uncle visitor waiter watchman"
    ),
    "NAME": (
        "Agnes Arthur Beatrice Caleb Dorothy Edmund Fatima George Hannah Isaac Joyce "
        "Kevin Laura Matthew Naomi Oliver Patrick Quentin Rachel Sophie Thomas Ursula "
        "Victor Wendy Xavier Yvonne Zachary"
    ),
    "PAST": (
        "admired borrowed bought carried checked chose covered described dropped "
        "examined fetched found gathered ignored kept measured mended moved noticed "
        "opened ordered packed photographed polished pushed remembered sold shared "
        "showed threw washed weighed"
    ),
    "VERB": (
        "admire borrow bring buy carry check choose clean cover describe examine "
        "fetch find follow gather hide join lift measure mend notice open order pack "
        "push remove replace return save sell share touch use watch weigh"
    ),
    "VERBED": (
        "borrowed carried checked chosen cleaned counted covered examined fetched "
        "finished measured mended noticed opened ordered packed painted returned seen "
        "shown sold used washed weighed"
    ),
    "QUALITY": (
        "ancient blue bright broken cheap clean crooked dark dusty empty famous "
        "foreign fresh gentle golden heavy hollow huge jolly large little lovely "
        "modern narrow noisy odd patient pleasant quiet rough shiny shy silver smooth "
        "strange thick thin tiny useful usual warm wooden yellow young"
    ),
    "THING": (
        "apple basket bell bicycle blanket bottle box bridge brush button candle "
        "chair clock coat curtain drum engine feather flag fork garden glove hammer "
        "jacket jar kettle key ladder lamp letter machine map mirror needle orange "
        "oven parcel pencil piano pillow plate pocket pump ring rope saddle shovel "
        "spoon statue table telescope ticket towel trumpet umbrella vase violin wagon "
        "wheel window"
    ),
    "THINGS": (
        "apples baskets bells bottles boxes brushes buttons candles chairs clocks "
        "coats drums eggs feathers flags forks gloves hammers horses jars keys "
        "ladders lamps letters maps mirrors oranges parcels pencils pillows plates "
        "pumps rings shirts shovels spoons stamps tables tickets towels wheels "
        "windows"
    ),
    "NUMBER": (
        "two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty"
    ),
}

GRAMMAR = {**PHRASES, **{rule: words.split() for rule, words in WORDS.items()}}


def draw_sentence(split: str, rng: np.random.Generator) -> str:
    """Draw a sentence that only this split may use.

    A text's checksum decides which split it belongs to, so no text is used in two
    of them.

    Arguments
    ---------
    split : str
        `train`, `valid` or `test`.
    rng : np.random.Generator
        The utterance's stream.

    Returns
    -------
    text : str
        A sentence without punctuation.

    Example
    -------
    >>> text = draw_sentence("test", np.random.default_rng(0))
    >>> split_of(text)
    'test'
    """
    while split_of(text := _expand("SENTENCE", rng)) != split:
        pass
    return text


def split_of(text: str) -> str:
    """The split that a text belongs to; each has a third of all texts.

    Example
    -------
    >>> split_of("the quiet baker bought nine candles at the station") in SPLITS
    True
    """
    return SPLITS[zlib.crc32(text.encode()) % len(SPLITS)]


def _expand(symbol: str, rng: np.random.Generator) -> str:
    if symbol not in GRAMMAR:
        return symbol
    choice = GRAMMAR[symbol][rng.integers(len(GRAMMAR[symbol]))]
    return " ".join(_expand(word, rng) for word in choice.split())
