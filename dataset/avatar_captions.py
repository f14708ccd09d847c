"""Captions of the data set `avatars`: phrases for each attribute, and sentences made of phrases.

A caption is a pure function of the split and the index. Everything that it says is true of the
picture. The tables that write captions also read from a caption which attributes it mentions.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from random import Random
from typing import NamedTuple

from dataset.avatar_styles import STYLES, AvatarStyle, choose, style_of
from utils import derive_seed

MAX_WORDS = 25
ARTICLE = re.compile(r"\ba (?=[aeiou])")  # before a vowel
ANY = "any value"  # key of phrases that suit every value: for attributes that are colours

Phrases = Mapping[str, Mapping[str, Sequence[str]]]  # {attribute: {value: phrases}}


class Grammar(NamedTuple):
    """The phrases of a style. {0} and {1} stand for a part's colours, {0} for a colour itself."""

    nouns: Sequence[str]
    has: Phrases  # what follows "with"
    wears: Phrases  # what follows "in" or "wearing"
    is_: Phrases  # what follows a comma
    where: Phrases  # the end of a caption
    chance: Mapping[str, float]  # probability of a mention; 1 where it is not listed

    def phrases(self) -> dict[str, Mapping[str, Sequence[str]]]:
        """All phrases by attribute and value."""
        found = {}
        for table in (self.has, self.wears, self.is_, self.where):
            for attribute, values in table.items():
                known = found.setdefault(attribute, {})
                for value, phrases in values.items():
                    known[value] = [*known.get(value, []), *phrases]
        return found


SENTENCES = [
    "{noun} with {has}{aside}{comma} in {wears}",
    "{noun} with {both}{aside}",
    "{noun} in {wears}, with {has}{aside}",
    "{noun} wearing {wears}, with {has}{aside}",
    "{has}{aside}, in {wears}",
    "{noun}{aside}{comma} with {has}, in {wears}",
]
BACKGROUND = {
    "background": {
        ANY: ["on a {0} background", "against a {0} background", "in front of a {0} background"]
    }
}
NOUNS = ["a person", "someone", "a character", "an avatar", "a figure"]

VOXEL_ART = Grammar(
    nouns=NOUNS,
    has={
        "top": {
            "short hair": ["short {0} hair", "{0} short hair"],
            "spiky hair": ["spiky {0} hair", "{0} spikes of hair"],
            "bowl cut": ["a {0} bowl cut", "{0} hair in a bowl cut"],
            "side-swept hair": ["side-swept {0} hair", "{0} hair swept to the side"],
            "curly hair": ["curly {0} hair", "{0} curls"],
            "mohawk": ["a {0} mohawk", "{0} hair in a mohawk"],
            "two buns": ["two {0} buns", "{0} hair in two buns"],
            "topknot": ["a {0} topknot", "{0} hair in a topknot"],
            "bob": ["a {0} bob", "{0} hair in a bob"],
            "shoulder-length hair": ["shoulder-length {0} hair", "{0} hair to the shoulders"],
            "long straight hair": ["long straight {0} hair", "straight long {0} hair"],
            "long wavy hair": ["long wavy {0} hair", "wavy long {0} hair"],
            "long parted hair": ["long parted {0} hair", "long {0} hair with a parting"],
            "braids": ["{0} braids", "{0} hair in braids"],
            "pigtails": ["{0} pigtails", "{0} hair in pigtails"],
            "afro": ["a {0} afro", "{0} hair in an afro"],
            "half-shaved hair": ["half-shaved {0} hair", "{0} hair that is shaved on one side"],
            "cap": ["a {0} cap"],
            "beanie": ["a {0} beanie", "a {0} knit cap with a bobble"],
            "animal hat": ["a {0} animal hat", "a {0} hat with animal ears"],
            "bunny hat": ["a {0} bunny hat", "a {0} hat with bunny ears"],
            "bald": ["a bald head", "no hair"],
        },
        "glasses": {
            "small glasses": ["small glasses", "little glasses"],
            "big glasses": ["big glasses", "large glasses"],
            "sunglasses": ["sunglasses", "dark glasses", "shades"],
            "cat-eye glasses": ["cat-eye glasses", "pointed glasses"],
            "visor": ["a visor", "a tinted visor"],
        },
        "beard": {
            "full beard": ["a full {0} beard", "a big {0} beard"],
            "moustache": ["a {0} moustache"],
            "goatee": ["a {0} goatee", "a {0} chin beard"],
            "stubble": ["stubble", "a stubbly chin"],
        },
        "mouth": {
            "smile": ["a smile"],
            "smirk": ["a smirk"],
            "grin": ["a toothy grin", "a grin"],
            "frown": ["a frown"],
            "open": ["an open mouth"],
            "straight": ["a straight face"],
        },
        "eyes": {
            "happy": ["happy eyes"],
            "sleepy": ["sleepy eyes", "half-closed eyes"],
            "closed": ["closed eyes"],
            "sparkling": ["sparkling eyes", "stars in the eyes"],
        },
        "eyebrows": {
            "one raised": ["a raised eyebrow"],
            "angry": ["angry eyebrows"],
            "worried": ["worried eyebrows"],
        },
        "cheeks": {
            "rosy": ["rosy cheeks", "pink cheeks"],
            "freckled": ["freckles", "freckled cheeks"],
        },
        "nose": {"wide": ["a wide nose"]},
        "skin": {ANY: ["{0} skin"]},
    },
    wears={
        "outfit": {
            "plain shirt": ["a {0} shirt", "a plain {0} shirt", "a {0} T-shirt"],
            "striped shirt": ["a striped {0} shirt", "a {0} shirt with stripes"],
            "jacket": ["a {0} jacket", "a {0} jacket over a {1} shirt"],
            "checkered jacket": ["a checkered jacket over a {0} shirt"],
            "overalls": ["{0} overalls", "{0} overalls over a {1} shirt", "{0} dungarees"],
            "hoodie": ["a {0} hoodie", "a {0} hooded sweatshirt"],
            "shirt and tie": ["a {0} shirt with a {1} tie", "a {1} tie on a {0} shirt"],
            "coat": ["a {0} coat", "a buttoned {0} coat"],
            "dress": ["a {0} dress"],
            "blazer": ["a {0} blazer", "a {0} blazer over a white shirt"],
        },
        "trousers": {ANY: ["{0} trousers", "{0} pants"]},
        "shoes": {ANY: ["{0} shoes"]},
    },
    is_={
        "mouth": {
            "smile": ["smiling"],
            "smirk": ["smirking"],
            "grin": ["grinning", "showing the teeth"],
            "laugh": ["laughing"],
            "frown": ["frowning"],
            "tongue": ["sticking out the tongue"],
        },
        "eyes": {
            "looking down": ["looking down"],
            "looking sideways": ["looking sideways", "looking to the side"],
        },
    },
    where=BACKGROUND,
    chance={
        "beard": 0.85,
        "mouth": 0.6,
        "eyes": 0.4,
        "eyebrows": 0.2,
        "cheeks": 0.4,
        "nose": 0.1,
        "skin": 0.15,
        "trousers": 0.2,
        "shoes": 0.15,
        "background": 0.4,
    },
)

OPEN_PEEPS = Grammar(
    nouns=NOUNS,
    has={
        "top": {
            "afro": ["a {0} afro"],
            "big afro": ["a big {0} afro", "a huge {0} afro"],
            "bob": ["a {0} bob", "{0} hair in a bob"],
            "hair with a fringe": ["{0} hair with a fringe", "{0} hair with bangs"],
            "Bantu knots": ["{0} Bantu knots"],
            "cornrows": ["{0} cornrows", "{0} hair in cornrows"],
            "dreadlocks": ["{0} dreadlocks", "{0} dreads"],
            "flat top": ["a {0} flat top"],
            "bun": ["a {0} bun", "{0} hair in a bun"],
            "low bun": ["a low {0} bun", "{0} hair in a low bun"],
            "short hair": ["short {0} hair"],
            "long hair": ["long {0} hair"],
            "long curly hair": ["long curly {0} hair", "long {0} curls"],
            "curly hair": ["curly {0} hair", "{0} curls"],
            "straight hair": ["straight {0} hair"],
            "mohawk": ["a {0} mohawk"],
            "spiky mohawk": ["a spiky {0} mohawk"],
            "quiff": ["a {0} quiff"],
            "twists": ["{0} twists", "short {0} twists"],
            "beanie": ["a {0} beanie", "a {0} knit cap"],
            "turban": ["a {0} turban"],
            "wide hat": ["a wide {0} hat", "a {0} hat"],
            "hijab": ["a {0} hijab", "a {0} headscarf"],
            "bald": ["a bald head", "no hair"],
        },
        "glasses": {
            "round glasses": ["round glasses", "thin round glasses"],
            "dark-rimmed glasses": ["dark-rimmed glasses", "glasses with dark rims"],
            "white glasses": ["white glasses", "glasses with white rims"],
            "sunglasses": ["sunglasses", "dark glasses", "shades"],
            "eyepatch": ["an eyepatch", "a patch over one eye"],
        },
        "mask": {
            "white mask": ["a white mask", "a white medical mask"],
            "blue mask": ["a blue mask", "a blue respirator"],
        },
        "beard": {
            "full beard": ["a full {0} beard", "a {0} beard"],
            "long beard": ["a long {0} beard", "a thick {0} beard"],
            "goatee": ["a {0} goatee"],
            "moustache": ["a {0} moustache"],
            "curled moustache": ["a curled {0} moustache", "a big {0} handlebar moustache"],
            "chin beard": ["a {0} chin beard", "a {0} chinstrap beard"],
        },
        "expression": {
            "smile": ["a smile"],
            "grin": ["a toothy grin", "a wide grin"],
            "tears of laughter": ["tears of laughter"],
            "heart eyes": ["heart-shaped eyes", "hearts for eyes"],
            "one-eyed": ["one big eye", "a single eye"],
            "tired": ["tired eyes"],
            "suspicious": ["a suspicious look"],
        },
        "skin": {ANY: ["{0} skin"]},
    },
    wears={"shirt": {ANY: ["a {0} shirt", "a {0} T-shirt", "a {0} top"]}},
    is_={
        "expression": {
            "smile": ["smiling"],
            "grin": ["grinning"],
            "tears of laughter": ["laughing", "crying with laughter"],
            "amazed": ["looking amazed"],
            "worried": ["looking worried"],
            "afraid": ["looking afraid", "looking scared"],
            "sad": ["looking sad"],
            "suspicious": ["looking suspicious"],
            "tired": ["looking tired"],
            "angry": ["looking angry", "scowling"],
        },
    },
    where=BACKGROUND,
    chance={"beard": 0.85, "expression": 0.7, "skin": 0.2, "background": 0.4},
)

GRAMMARS: dict[str, Grammar] = {
    "voxel-art": VOXEL_ART,
    "open-peeps": OPEN_PEEPS,
}


# --- from attributes to a caption ----------------------------------------------------------------


def write_caption(
    style: AvatarStyle, grammar: Grammar, drawn: Mapping[str, str], split: str, index: int
) -> str:
    """The caption of an avatar: a pure function of its attributes, split and index."""
    random = Random(derive_seed("caption", style.definition, split, index))
    said = [name for name in drawn if random.random() < grammar.chance.get(name, 1)]
    while True:
        text = sentence(style, grammar, drawn, said, random)
        if len(text.split()) <= MAX_WORDS:
            return text
        optional = [name for name in said if name in grammar.chance]
        said = [name for name in said if name != choose(optional, random)]


def sentence(
    style: AvatarStyle,
    grammar: Grammar,
    drawn: Mapping[str, str],
    said: Sequence[str],
    random: Random,
) -> str:
    """A sentence that mentions the attributes in `said`, as far as their values have phrases."""
    parts = {"has": [], "wears": [], "is_": [], "where": []}
    for name in said:
        kinds = [kind for kind in parts if phrases_for(drawn, name, getattr(grammar, kind))]
        if kinds:
            kind = choose(kinds, random)
            phrase = choose(phrases_for(drawn, name, getattr(grammar, kind)), random)
            parts[kind].append(coloured(phrase, colours_of(style, drawn, name)))
    has, wears, is_ = shuffled(parts["has"], random), parts["wears"], shuffled(parts["is_"], random)
    words = {"noun": choose(grammar.nouns, random), "aside": "".join(f", {each}" for each in is_)}
    words |= {"has": listed(has), "wears": listed(wears), "both": listed([*has, *wears])}
    text = choose(SENTENCES, random).format(comma="," if is_ else "", **words)
    return " ".join([text, *parts["where"]])


def phrases_for(drawn: Mapping[str, str], name: str, table: Phrases) -> Sequence[str]:
    """The phrases of a table for the value of an attribute; empty if the table has none."""
    values = table.get(name, {})
    return values.get(ANY) or values.get(drawn[name], ())


def colours_of(style: AvatarStyle, drawn: Mapping[str, str], name: str) -> list[str]:
    """The colours that the phrases of an attribute may mention."""
    if name in style.colours:
        return [drawn[name]]
    return [drawn[colour] for colour in style.parts[name].colours]


def coloured(phrase: str, colours: Sequence[str]) -> str:
    """A phrase with its colours, and "an" instead of "a" before vowels."""
    return ARTICLE.sub("an ", phrase.format(*colours))


def listed(phrases: Sequence[str]) -> str:
    """Phrases in a row: "a", "a and b", or "a, b and c"."""
    return " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


def shuffled(phrases: Sequence[str], random: Random) -> list[str]:
    """Phrases in a random order."""
    return [phrase for _, phrase in sorted((random.random(), phrase) for phrase in phrases)]


# --- from a caption to attributes ----------------------------------------------------------------


def mentioned(caption: str, style: str = "voxel-art") -> dict[str, str]:
    """The attributes that a caption mentions, with their values; longer phrases come first."""
    known, words, found = all_phrases(style_of(style).definition), words_of(caption), {}
    longest, i = max(map(len, known)), 0
    while i < len(words):
        spans = (words[i : i + n] for n in range(longest, 0, -1))
        span = next((span for span in spans if span in known), words[i : i + 1])
        found |= known.get(span, {})
        i += len(span)
    return found


@cache
def all_phrases(style: str) -> dict[tuple[str, ...], dict[str, str]]:
    """The attributes and values that each phrase of a style states: {words: {attribute: value}}."""
    found = {}
    for name, values in GRAMMARS[style].phrases().items():
        for value, phrases in values.items():
            for phrase in phrases:
                for colours in possible_colours(STYLES[style], name, value):
                    said = {} if value == ANY else {name: value}
                    for i, (attribute, colour) in enumerate(colours.items()):
                        if f"{{{i}}}" in phrase:
                            said[attribute] = colour
                    found[words_of(coloured(phrase, list(colours.values())))] = said
    return found


def possible_colours(style: AvatarStyle, name: str, value: str) -> Iterator[dict[str, str]]:
    """The colours with which a value may occur: {attribute: name of the colour}."""
    if value == ANY:
        yield from ({name: colour} for colour in style.names(style.colours[name]))
        return
    part = style.parts[name]
    palettes = map(style.names, part.variants[value].colours)
    for colours in product(*palettes):
        yield dict(zip(part.colours, colours, strict=False))


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, without punctuation and capitals."""
    return tuple(re.findall(r"[\w-]+", text.lower()))
