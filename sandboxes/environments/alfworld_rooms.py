"""What stands in the authored rooms of ALFWorld, and what can be done with it: the generator's tables.

Furniture and things carry ALFWorld's names, so that a model that learns here knows the words of the official games;
which thing may lie where is this project's own, coarser choice. Left out: sliced things, and things inside things.
"""

from __future__ import annotations

from typing import Final


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


TASK_TYPES: Final = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
"""ALFWorld's six, in its order."""

OPENABLE: Final = frozenset({"Cabinet", "Drawer", "Fridge", "Microwave", "Safe"})

FURNITURE: Final = {
    "kitchen": {
        "CounterTop": 2, "Cabinet": 3, "Drawer": 3, "Fridge": 1, "Microwave": 1, "SinkBasin": 1, "StoveBurner": 2,
        "DiningTable": 1, "CoffeeMachine": 1, "GarbageCan": 1, "Shelf": 2, "SideTable": 1,
    },
    "bedroom": {
        "Bed": 1, "Desk": 1, "Drawer": 3, "Dresser": 1, "SideTable": 2, "Shelf": 3, "GarbageCan": 1, "ArmChair": 1,
        "LaundryHamper": 1, "Safe": 1, "DiningTable": 1,
    },
    "living room": {
        "Sofa": 1, "ArmChair": 2, "CoffeeTable": 1, "SideTable": 2, "TVStand": 1, "Shelf": 2, "Drawer": 2, "Ottoman": 1,
        "Dresser": 1, "GarbageCan": 1, "Cabinet": 2, "Desk": 1,
    },
    "bathroom": {
        "CounterTop": 1, "SinkBasin": 1, "Cabinet": 3, "Drawer": 2, "Toilet": 1, "BathtubBasin": 1, "GarbageCan": 1,
        "ToiletPaperHanger": 1, "HandTowelHolder": 1, "Shelf": 2, "SideTable": 1,
    },
}  # fmt: skip
"""Kind of room → kind of receptacle → how many there may be at most."""

_TOPS: Final = "CounterTop DiningTable SideTable Shelf Desk Dresser CoffeeTable TVStand"
_STORES: Final = "Cabinet Drawer"
_SEATS: Final = "Bed Sofa ArmChair Ottoman"

_GROUPS: Final = (
    # things, where they may lie, in which rooms one comes across them
    ("Apple Tomato Potato Egg Bread", "Fridge Microwave CounterTop DiningTable SideTable SinkBasin GarbageCan", "kitchen"),
    ("Lettuce WineBottle", "Fridge CounterTop DiningTable SideTable SinkBasin GarbageCan", "kitchen"),
    ("Mug", f"{_TOPS} Cabinet SinkBasin Fridge Microwave CoffeeMachine", "kitchen,bedroom,living room"),
    ("Cup Plate Bowl", f"{_TOPS} Cabinet SinkBasin Fridge Microwave", "kitchen"),
    ("Pot Pan", "StoveBurner CounterTop DiningTable Cabinet SinkBasin Fridge", "kitchen"),
    ("Kettle", "StoveBurner CounterTop DiningTable Cabinet SinkBasin Shelf", "kitchen"),
    ("Fork Spoon Knife ButterKnife Spatula Ladle", "Drawer CounterTop DiningTable SideTable SinkBasin", "kitchen"),
    ("SaltShaker PepperShaker", f"{_STORES} CounterTop DiningTable SideTable Shelf", "kitchen"),
    ("DishSponge", f"{_STORES} CounterTop SinkBasin Shelf SideTable Toilet BathtubBasin", "kitchen,bathroom"),
    ("SoapBar", f"{_STORES} CounterTop SinkBasin BathtubBasin Toilet Shelf SideTable GarbageCan", "bathroom"),
    ("Cloth", f"{_STORES} CounterTop SinkBasin BathtubBasin Toilet Shelf SideTable LaundryHamper", "bathroom,bedroom"),
    ("ToiletPaper", f"{_STORES} CounterTop Toilet ToiletPaperHanger Shelf SideTable GarbageCan", "bathroom"),
    ("HandTowel", "HandTowelHolder CounterTop SinkBasin BathtubBasin SideTable Cabinet", "bathroom"),
    ("SprayBottle SoapBottle", f"{_STORES} CounterTop Toilet Shelf SideTable GarbageCan BathtubBasin", "bathroom"),
    ("Candle", f"{_TOPS} {_STORES} Toilet BathtubBasin", "bathroom,living room"),
    ("Pen Pencil CreditCard KeyChain Watch", f"{_TOPS} {_STORES} {_SEATS} Safe GarbageCan", "bedroom,living room"),
    ("CD CellPhone Book", f"{_TOPS} {_STORES} Bed Sofa ArmChair Safe", "bedroom,living room"),
    ("AlarmClock Statue Vase", f"{_TOPS} Safe", "bedroom,living room"),
    ("RemoteControl Newspaper", f"{_TOPS} {_STORES} {_SEATS} GarbageCan", "living room"),
    ("Laptop Pillow", "Bed Sofa ArmChair Ottoman Desk CoffeeTable", "bedroom,living room"),
    ("TissueBox Box", f"{_TOPS} Cabinet {_SEATS}", "bedroom,living room"),
)

PLACES: Final = {thing: frozenset(places.split()) for things, places, _ in _GROUPS for thing in things.split()}
"""Thing → kinds of receptacles that can hold it."""

THINGS: Final = {
    room: tuple(thing for things, _, rooms in _GROUPS if room in rooms.split(",") for thing in things.split())
    for room in FURNITURE
}
"""Kind of room → things that are found there."""

LAMP: Final = "DeskLamp"
LAMP_PLACES: Final = frozenset({"Desk", "SideTable", "Dresser", "CoffeeTable"})

HEATABLE: Final = _set("Apple Bread Cup Egg Mug Plate Potato Tomato")
COOLABLE: Final = _set("Apple Bowl Bread Cup Egg Lettuce Mug Pan Plate Pot Potato Tomato WineBottle")
CLEANABLE: Final = _set(
    "Apple Bowl ButterKnife Cloth Cup DishSponge Egg Fork Kettle Knife Ladle Lettuce Mug Pan Plate Pot Potato SoapBar "
    "Spatula Spoon Tomato"
)
SLICEABLE: Final = _set("Apple Bread Lettuce Potato Tomato")
HOLDING: Final = _set("Bowl Box Cup Mug Pan Plate Pot")
"""Things that could hold other things (none does here): examining one tells what is in it."""

APPLIANCE: Final = {
    "pick_clean_then_place_in_recep": ("SinkBasin", CLEANABLE),
    "pick_heat_then_place_in_recep": ("Microwave", HEATABLE),
    "pick_cool_then_place_in_recep": ("Fridge", COOLABLE),
}
"""Task type → what does it, and to which things."""

HELD_BACK: Final = ("Bowl", "Candle", "KeyChain", "Potato", "SoapBar", "Spoon")
"""Things that demonstrations do without, in this order: the headroom of self-training."""
