"""Nouns as pictures are asked about: singular forms, what a phrase is a phrase of, and what is a kind of what.

    singular("wine glasses")        "wine glass"
    names("a big red car", "car")   True: its last word is the noun
    is_kind("truck", "vehicle")     True

The table of kinds is this project's own, and small: people, animals, vehicles, furniture and so on, as the questions
of GQA name them. Left out: synonyms beyond it, other languages, a tagger.
"""

from __future__ import annotations

import re
from typing import Final

_IRREGULAR: Final = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "feet": "foot",
    "teeth": "tooth", "geese": "goose", "knives": "knife", "leaves": "leaf", "shelves": "shelf", "loaves": "loaf",
    "wolves": "wolf", "halves": "half", "scarves": "scarf", "bookshelves": "bookshelf", "buses": "bus", "busses": "bus",
    "skis": "ski", "policemen": "policeman", "firemen": "fireman", "snowmen": "snowman", "oxen": "ox",
    "potatoes": "potato", "tomatoes": "tomato", "heroes": "hero", "mangoes": "mango", "calves": "calf", "movies": "movie",
    "cookies": "cookie", "pies": "pie", "ties": "tie", "zombies": "zombie", "shoes": "shoe", "canoes": "canoe",
    "horses": "horse", "houses": "house", "vases": "vase", "roses": "rose", "noses": "nose", "mouses": "mouse",
    "axes": "axe", "suitcases": "suitcase", "bookcases": "bookcase", "purses": "purse", "briefcases": "briefcase",
    "blouses": "blouse", "hoses": "hose", "cheeses": "cheese", "greenhouses": "greenhouse",
}  # fmt: skip
_UNCHANGED: Final = (
    "bus gas glass grass dress cross canvas cactus octopus walrus tennis christmas campus lens moss mattress compass "
    "hibiscus asparagus hummus species series sunglasses glasses scissors jeans pants shorts trousers clothes goggles "
    "eyeglasses headphones pyjamas pajamas leggings tights platypus hippopotamus citrus iris virus chess bass"
)
_SAME: Final = frozenset(_UNCHANGED.split())
_BEFORE: Final = "a an the one two three four five six seven eight nine ten some several many few"
_ARTICLES: Final = frozenset([*_BEFORE.split(), *map(str, range(1, 11))])
_FOLLOWS: Final = (
    "with in on of at that which who wearing holding riding saying reading under near behind beside from to by for next"
)
_MEASURES: Final = ("pair", "pairs", "group", "bunch", "couple", "number", "set", "row")
_AFTER: Final = frozenset(_FOLLOWS.split())
_WORD: Final = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

_KINDS: Final = {
    "person": "man woman boy girl child baby kid guy lady gentleman player skier snowboarder skateboarder skater surfer "
    "batter catcher umpire pitcher driver rider cyclist bicyclist motorcyclist jockey mother father police officer "
    "policeman fireman chef cook worker spectator fan crowd audience couple bride groom pedestrian passenger customer "
    "student teacher tourist vendor farmer soldier swimmer referee athlete coach toddler people person teenager biker",
    "animal": "dog cat horse cow sheep goat pig elephant giraffe zebra bear bird duck goose chicken rooster lion tiger "
    "monkey rabbit squirrel deer bison buffalo camel donkey fish seagull parrot pigeon swan owl eagle turtle frog mouse "
    "kitten puppy calf lamb bull panda penguin polar-bear teddy fox wolf butterfly insect snake pony ostrich",
    "vehicle": "car truck bus train van taxi cab bicycle bike motorcycle scooter airplane plane jet helicopter boat ship "
    "canoe kayak trailer tractor ambulance suv jeep wagon tram trolley minivan carriage cart sailboat ferry limousine",
    "furniture": "chair table desk couch sofa bed bench stool shelf bookshelf bookcase cabinet dresser drawer wardrobe "
    "nightstand armchair ottoman cupboard tv-stand crib recliner",
    "device": "laptop computer monitor television tv phone cellphone keyboard mouse camera printer speaker controller "
    "remote tablet radio screen microphone charger router dvd-player headphones",
    "appliance": "refrigerator fridge oven stove microwave toaster dishwasher blender freezer washer dryer kettle "
    "coffee-maker fan heater air-conditioner",
    "clothing": "shirt t-shirt jacket coat dress skirt pants jeans shorts trousers sweater hoodie vest suit blouse "
    "uniform jersey sweatshirt wetsuit swimsuit robe sock tank-top apron leggings bikini gown",
    "fruit": "apple banana orange pear grape strawberry lemon lime peach melon watermelon pineapple berry blueberry "
    "cherry mango kiwi raspberry",
    "vegetable": "carrot broccoli lettuce tomato onion potato pepper cucumber corn bean pea cabbage spinach celery "
    "mushroom cauliflower pumpkin garlic",
    "food": "bread sandwich pizza cake meat rice cheese egg soup salad pasta hamburger burger hot-dog donut cookie pie "
    "noodles sauce toast bagel chicken steak sausage fries cereal muffin cupcake pastry chips bacon",
    "dessert": "cake pie cookie donut cupcake ice-cream pastry brownie pudding candy chocolate",
    "bag": "backpack handbag purse suitcase luggage briefcase pouch",
    "sign": "traffic-sign street-sign stop-sign billboard poster banner",
    "tool": "hammer shovel rake fork knife spoon scissors screwdriver saw broom brush spatula",
    "utensil": "fork knife spoon spatula chopsticks ladle whisk",
    "tableware": "plate bowl cup mug glass saucer dish tray pitcher teapot",
    "toy": "doll teddy-bear ball kite frisbee balloon stuffed-bear stuffed-animal puzzle",
    "building": "house church tower barn hut skyscraper garage castle store shop temple",
    "place": "street road sidewalk field beach park city forest kitchen bathroom bedroom room yard garden lawn parking-lot "
    "pavement platform path plain meadow farm hill mountain river lake ocean court restaurant station shore swimming-pool",
    "she": "woman girl lady mother bride daughter grandmother",
    "he": "man boy guy gentleman father groom son grandfather",
}
_PARENTS: Final = {"fruit": "food", "vegetable": "food", "dessert": "food", "utensil": "tool"}


def singular(phrase: str) -> str:
    """The phrase in small letters with its last word in the singular."""
    return " ".join(_last_singular(phrase.lower().split()))


def _last_singular(words: list[str]) -> list[str]:
    if len(words) > 1 and words[-1] == "glasses":
        return [*words[:-1], "glass"]  # wine glasses; alone they are worn
    return [*words[:-1], _singular(words[-1])] if words else []


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _SAME or len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    if word.endswith("es") and word[:-2] in _SAME:
        return word[:-2]
    if word.endswith(("ches", "shes", "xes", "sses", "zes")):
        return word[:-2]
    return word[:-1]


_MEMBERS: Final = {
    kind: frozenset(singular(word.replace("-", " ")) for word in words.split()) for kind, words in _KINDS.items()
}


def is_kind(name: str, kind: str) -> bool:
    """Whether `name` (or its last word) is listed under `kind`, or under a kind of it."""
    kind, name = singular(kind), singular(name)
    if kind == "anything":
        return True
    kinds = {kind} | {child for child, parent in _PARENTS.items() if parent == kind}
    last = name.rpartition(" ")[2]
    return any(name in _MEMBERS.get(one, ()) or last in _MEMBERS.get(one, ()) for one in kinds)


def kinds() -> list[str]:
    """The names of the kinds."""
    return list(_MEMBERS)


def head_words(phrase: str) -> list[str]:
    """What the phrase is about, word by word: without articles and numbers, up to "with", "that", "on" and the like, in
    small letters, the last word in the singular. "two tall men in hats" is about ["tall", "man"]."""
    words = [word.lower().replace("’", "'") for word in _WORD.findall(phrase)]
    words = [word for word in words if word not in _ARTICLES]
    if len(words) > 2 and words[0] in _MEASURES and words[1] == "of":
        words = words[2:]
    end = next((place for place, word in enumerate(words) if place and word in _AFTER), len(words))
    return _last_singular(words[:end])


def names(phrase: str, noun: str) -> bool:
    """Whether a phrase is about the noun: "two big red cars" and "a car with a flag" name "car", "car door" does not."""
    said, wanted = head_words(phrase), head_words(noun)
    return bool(wanted) and said[-len(wanted) :] == wanted
