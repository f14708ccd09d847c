"""Styles of the data set `avatars`: their attributes, how these are drawn, and how they look.

A style is one table. A picture is a pure function of its attributes, and the attributes are a pure
function of the split and the index. The random numbers of the renderer have no effect.

To add a style, write an `AvatarStyle`, its `Grammar` in `avatar_captions`, and a line in `STYLES`.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from random import Random
from typing import NamedTuple

from utils import derive_seed, pick

NONE = "none"  # the value of an attribute that the picture does not have
HELD_OUT_SHARE = 10  # one of 10 pairs of values is held out of training


class Variant(NamedTuple):
    """One look of a part."""

    name: str  # in the definition of the style
    colours: tuple[str, ...] = ()  # its palettes, one for each colour


class Part(NamedTuple):
    """A part of an avatar, such as its glasses. The part and its colours are attributes."""

    component: str  # in the definition of the style
    variants: Mapping[str, Variant]  # by the values of the attribute
    absent: float = 0  # probability of "none"
    colours: tuple[str, ...] = ()  # attributes, in the order of `Variant.colours`
    hidden_by: Mapping[str, Sequence[str]] = {}  # the values of earlier parts that cover this one
    covered: str = ""  # drawn where the part is hidden or absent; empty to draw nothing


class AvatarStyle(NamedTuple):
    """A style of DiceBear, with the looks of it that this data set draws."""

    definition: str  # name of the file in the package dicebear_styles
    parts: Mapping[str, Part]  # by the name of the attribute; drawn in this order
    colours: Mapping[str, str]  # palettes of the attributes that are a colour and no part
    palettes: Mapping[str, Mapping[str, str]]  # colours by name; a palette is a colour of the file
    pairs: Sequence[tuple[str, str]]  # attributes of which combinations are held out
    fixed: Mapping[str, object] = {}  # further options of the renderer

    def values(self) -> dict[str, list[str]]:
        """The possible values of each attribute, in the order of the attributes."""
        found = {}
        for name, part in self.parts.items():
            none = [NONE] if part.absent or part.hidden_by else []
            found[name] = [*none, *part.variants]
            for i, colour in enumerate(part.colours):
                palettes = [variant.colours[i : i + 1] for variant in part.variants.values()]
                names = dict.fromkeys(name for p in palettes for name in self.names(*p))
                found[colour] = [*([] if all(palettes) and not none else [NONE]), *names]
        return found | {name: self.names(palette) for name, palette in self.colours.items()}

    def names(self, palette: str = "") -> list[str]:
        """The names of the colours of a palette; none without a palette."""
        return list(self.palettes[palette]) if palette else []


def held_out_pairs(style: AvatarStyle) -> dict[tuple[str, str], set[tuple[str, str]]]:
    """The combinations that only the test split has: {attributes: {values}}.

    They are a tenth of the combinations of two attributes, chosen by a fixed seed. "none" counts
    as no value here: it would be missing from most of the training split.
    """
    values, found = style.values(), {}
    for pair in style.pairs:
        first, second = ([v for v in values[name] if v != NONE] for name in pair)
        every = sorted(product(first, second), key=lambda both: derive_seed("held out", *both))
        found[pair] = set(every[: len(every) // HELD_OUT_SHARE])
    return found


def draw_avatar(
    style: AvatarStyle, held_out: Mapping[tuple[str, str], set], split: str, index: int
) -> dict[str, str]:
    """The attributes of an avatar: a pure function of its split and index.

    An avatar of the training split has none of the pairs in `held_out`, one of the test split has
    at least one of them: other combinations are drawn again.
    """
    random = Random(derive_seed("avatar", style.definition, split, index))
    while True:
        drawn = draw_values(style, random)
        pairs = any((drawn[a], drawn[b]) in values for (a, b), values in held_out.items())
        if pairs == (split == "test"):
            return drawn


def draw_values(style: AvatarStyle, random: Random) -> dict[str, str]:
    """Attributes at random, each value as probable as the others, except for "none"."""
    drawn, colours = {}, {}  # colours: of each palette that is in use
    for name, part in style.parts.items():
        hidden = any(drawn[other] in values for other, values in part.hidden_by.items())
        absent = random.random() < part.absent
        drawn[name] = NONE if hidden or absent else choose(list(part.variants), random)
        own = () if drawn[name] == NONE else part.variants[drawn[name]].colours
        for palette in own:
            if palette not in colours:  # the colours of a part differ from each other
                taken = [colours[other] for other in own if other in colours]
                names = [name for name in style.palettes[palette] if name not in taken]
                colours[palette] = choose(names, random)
        for i, colour in enumerate(part.colours):
            drawn[colour] = colours[own[i]] if i < len(own) else NONE
    for name, palette in style.colours.items():
        drawn[name] = colours.get(palette) or choose(style.names(palette), random)
    return drawn


def choose(values: Sequence[str], random: Random) -> str:
    """One of the values. `random.choice` may change with the version of Python; this does not."""
    return values[int(random.random() * len(values))]


def options(style: AvatarStyle, drawn: Mapping[str, str]) -> dict:
    """The options with which DiceBear renders these attributes; no option is left to chance."""
    chosen = {"seed": "", "flip": "none", "rotate": 0, "scale": 1, "translateX": 0, "translateY": 0}
    used = {palette: next(iter(names)) for palette, names in style.palettes.items()}
    for name, part in style.parts.items():
        variant = part.variants.get(drawn[name], Variant(part.covered))
        chosen[f"{part.component}Probability"] = 100 if variant.name else 0
        if variant.name:
            chosen[f"{part.component}Variant"] = [variant.name]
        used |= zip(variant.colours, (drawn[colour] for colour in part.colours), strict=False)
    used |= {palette: drawn[name] for name, palette in style.colours.items()}
    for palette, name in used.items():
        chosen[f"{palette}Color"] = [style.palettes[palette][name]]
        chosen[f"{palette}ColorFill"] = ["solid"]
    return chosen | style.fixed


# Colours that look alike share one name and one value, because captions must be checkable.
HAIR = {
    "black": "#2c222b",
    "brown": "#6b4226",
    "ginger": "#cf6a2c",
    "blond": "#e8c872",
    "grey": "#9a9ca3",
    "white": "#f4f1ec",
    "red": "#cc2936",
    "pink": "#f08cba",
    "purple": "#6d4fc4",
    "blue": "#2f7fd6",
    "green": "#3fb27f",
}
CLOTHES = {
    "white": "#f4f5f7",
    "black": "#2f3338",
    "red": "#d02c3c",
    "orange": "#f77f17",
    "yellow": "#fbd02d",
    "green": "#40b057",
    "blue": "#2b79d8",
    "purple": "#7a4fd6",
    "pink": "#f08cba",
    "brown": "#7a5236",
}
# No white, on which stripes do not show. The first colour is that of the shirt under a blazer: the
# style lightens it to white.
SHIRTS = {"yellow": CLOTHES["yellow"]} | {n: c for n, c in CLOTHES.items() if n != "white"}
SKIN = {"pale": "#fae0cd", "tan": "#dda878", "brown": "#a9683e", "dark brown": "#6f4428"}
BACKGROUNDS = {
    "blue": "#b6e3f4",
    "purple": "#cdbcf0",
    "pink": "#ffd0dc",
    "yellow": "#fff0b3",
    "green": "#c5ecc8",
}

# Values are named by what the picture shows: DiceBear's ponytail is a knot on the top of the head,
# its square glasses are large and round, and its suit is a jacket over a white shirt.
VOXEL_ART = AvatarStyle(
    definition="voxel-art",
    parts={
        "top": Part(
            "top",
            {
                "short hair": Variant("short", ("hair",)),
                "spiky hair": Variant("spiky", ("hair",)),
                "bowl cut": Variant("bowl", ("hair",)),
                "side-swept hair": Variant("sideSwept", ("hair",)),
                "curly hair": Variant("curly", ("hair",)),
                "mohawk": Variant("mohawk", ("hair",)),
                "two buns": Variant("buns", ("hair",)),
                "topknot": Variant("ponytail", ("hair",)),
                "bob": Variant("bob", ("hair",)),
                "shoulder-length hair": Variant("shoulderLength", ("hair",)),
                "long straight hair": Variant("longStraight", ("hair",)),
                "long wavy hair": Variant("longWavy", ("hair",)),
                "long parted hair": Variant("partedLong", ("hair",)),
                "braids": Variant("braids", ("hair",)),
                "pigtails": Variant("twinTails", ("hair",)),
                "afro": Variant("afro", ("hair",)),
                "half-shaved hair": Variant("halfShaved", ("hair",)),
                "cap": Variant("cap", ("hat",)),
                "beanie": Variant("beanie", ("hat",)),
                "animal hat": Variant("animalEars", ("hat",)),
                "bunny hat": Variant("bunnyEars", ("hat",)),
                "bald": Variant(""),
            },
            colours=("top colour",),
        ),
        "outfit": Part(
            "outfit",
            {
                "plain shirt": Variant("plain", ("shirt",)),
                "striped shirt": Variant("stripes", ("shirt",)),
                "jacket": Variant("jacket", ("jacket", "shirt")),
                "checkered jacket": Variant("checker", ("shirt",)),
                "overalls": Variant("overalls", ("pants", "shirt")),
                "hoodie": Variant("hoodie", ("shirt",)),
                "shirt and tie": Variant("tie", ("shirt", "jacket")),
                "coat": Variant("coat", ("jacket",)),
                "dress": Variant("dress", ("jacket",)),
                "blazer": Variant("suit", ("jacket",)),
            },
            colours=("outfit colour", "second outfit colour"),
        ),
        "glasses": Part(
            "glasses",
            {
                "small glasses": Variant("round"),
                "big glasses": Variant("square"),
                "sunglasses": Variant("shades"),
                "cat-eye glasses": Variant("cat"),
                "visor": Variant("visor"),
            },
            absent=0.5,
        ),
        "beard": Part(
            "beard",
            {
                "full beard": Variant("full", ("hair",)),
                "moustache": Variant("mustache", ("hair",)),
                "goatee": Variant("goatee", ("hair",)),
                "stubble": Variant("stubble"),
            },
            absent=0.65,
            colours=("beard colour",),
        ),
        "mouth": Part(
            "mouth",
            {
                "straight": Variant("flat"),
                "smile": Variant("wideSmile"),
                "smirk": Variant("smirk"),
                "grin": Variant("grin"),
                "laugh": Variant("laugh"),
                "frown": Variant("frown"),
                "open": Variant("ooh"),
                "tongue": Variant("tongue"),
            },
            hidden_by={"beard": ["full beard"]},
            covered="flat",
        ),
        "eyes": Part(
            "eyes",
            {
                "open": Variant("open"),
                "looking down": Variant("soft"),
                "happy": Variant("happy"),
                "sleepy": Variant("sleepy"),
                "looking sideways": Variant("side"),
                "closed": Variant("closed"),
                "sparkling": Variant("star"),
            },
            hidden_by={"glasses": ["sunglasses"]},
            covered="open",
        ),
        "eyebrows": Part(
            "eyebrows",
            {
                "flat": Variant("flat"),
                "one raised": Variant("raised"),
                "angry": Variant("angry"),
                "worried": Variant("soft"),
            },
            absent=0.3,
        ),
        "cheeks": Part(
            "cheeks",
            {"rosy": Variant("pixel"), "freckled": Variant("freckles")},
            absent=0.6,
        ),
        "nose": Part("nose", {"narrow": Variant("block"), "wide": Variant("wide")}),
    },
    colours={"trousers": "pants", "shoes": "shoes", "skin": "skin", "background": "background"},
    palettes={
        "hair": HAIR,
        "hat": CLOTHES,
        "shirt": SHIRTS,
        "jacket": CLOTHES,
        "pants": CLOTHES,
        "shoes": CLOTHES,
        "skin": SKIN,
        "background": BACKGROUNDS,
    },
    pairs=[("top", "outfit"), ("glasses", "top")],
    fixed={"animationVariant": ["none"], "animationProbability": 100},
)

# Most hair is drawn in ink, which is black here. Beards, masks and dark glasses hide the face.
OPEN_PEEPS = AvatarStyle(
    definition="open-peeps",
    parts={
        "top": Part(
            "head",
            {
                "afro": Variant("afro", ("ink",)),
                "big afro": Variant("longAfro", ("ink",)),
                "bob": Variant("bangs2", ("ink",)),
                "hair with a fringe": Variant("bangs", ("headContrast",)),
                "Bantu knots": Variant("bantuKnots", ("ink",)),
                "cornrows": Variant("cornrows", ("headContrast",)),
                "dreadlocks": Variant("dreads1", ("ink",)),
                "flat top": Variant("flatTopLong", ("ink",)),
                "bun": Variant("grayBun", ("headContrast",)),
                "low bun": Variant("grayMedium", ("headContrast",)),
                "short hair": Variant("grayShort", ("headContrast",)),
                "long hair": Variant("long", ("ink",)),
                "long curly hair": Variant("longCurly", ("ink",)),
                "curly hair": Variant("mediumBangs2", ("headContrast",)),
                "straight hair": Variant("mediumStraight", ("ink",)),
                "mohawk": Variant("mohawk", ("headContrast",)),
                "spiky mohawk": Variant("mohawk2", ("headContrast",)),
                "quiff": Variant("short4", ("headContrast",)),
                "twists": Variant("twists", ("ink",)),
                "beanie": Variant("hatBeanie", ("clothing",)),
                "turban": Variant("turban", ("clothing",)),
                "wide hat": Variant("hatHip", ("ink",)),
                "hijab": Variant("hijab", ("ink",)),
                "bald": Variant("noHair1"),
            },
            colours=("top colour",),
        ),
        "glasses": Part(
            "accessories",
            {
                "round glasses": Variant("glasses2"),
                "dark-rimmed glasses": Variant("glasses3"),
                "white glasses": Variant("glasses4"),
                "sunglasses": Variant("sunglasses"),
                "eyepatch": Variant("eyepatch"),
            },
            absent=0.5,
        ),
        "mask": Part(
            "mask",
            {"white mask": Variant("medicalMask"), "blue mask": Variant("respirator")},
            absent=0.9,
        ),
        "beard": Part(
            "facialHair",
            {
                "full beard": Variant("full4", ("headContrast",)),
                "long beard": Variant("full3", ("ink",)),
                "goatee": Variant("goatee2", ("ink",)),
                "moustache": Variant("moustache9", ("headContrast",)),
                "curled moustache": Variant("moustache3", ("ink",)),
                "chin beard": Variant("chin", ("ink",)),
            },
            absent=0.7,
            colours=("beard colour",),
            hidden_by={"mask": ["white mask", "blue mask"]},
        ),
        "expression": Part(
            "expression",
            {
                "smile": Variant("calm"),
                "grin": Variant("smileBig"),
                "tears of laughter": Variant("smileLOL"),
                "heart eyes": Variant("lovingGrin1"),
                "amazed": Variant("awe"),
                "worried": Variant("concerned"),
                "afraid": Variant("fear"),
                "sad": Variant("solemn"),
                "suspicious": Variant("suspicious"),
                "tired": Variant("tired"),
                "angry": Variant("veryAngry"),
                "one-eyed": Variant("cyclops"),
            },
            hidden_by={
                "glasses": ["sunglasses", "eyepatch"],
                "mask": ["white mask", "blue mask"],
                "beard": ["full beard", "long beard", "goatee", "moustache", "curled moustache"],
            },
            covered="calm",
        ),
    },
    colours={"shirt": "clothing", "skin": "skin", "background": "background"},
    palettes={
        "ink": {"black": "#000000"},
        "headContrast": HAIR,
        "clothing": CLOTHES,
        "skin": SKIN,
        "background": BACKGROUNDS,
    },
    pairs=[("top", "shirt"), ("glasses", "top")],
)

STYLES: dict[str, AvatarStyle] = {
    "voxel-art": VOXEL_ART,
    "open-peeps": OPEN_PEEPS,
}
DEFAULT_STYLE = "voxel-art"


def style_of(name: str) -> AvatarStyle:
    """A style by its name. Raises ValueError for an unknown one."""
    return pick(STYLES, name, "avatar style")
