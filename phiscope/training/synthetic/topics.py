"""The topics of stories and talks, each with its places, things, people and doings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """Words of a topic; `acts` are patterns of what one person does there."""

    places: tuple[str, ...]
    things: tuple[str, ...]
    people: tuple[str, ...]
    acts: tuple[str, ...]


TOPICS: dict[str, Topic] = {
    "garden": Topic(
        places=("garden", "orchard", "vegetable patch", "greenhouse"),
        things=("spade", "rose bush", "watering can", "pumpkin", "rake", "seed bag", "apple tree"),
        people=("gardener", "neighbour with the tulips", "beekeeper"),
        acts=(
            "{!water|count} the {flowers|beans|young plants}",
            "{!pull} weeds out of the {soil|flower bed}",
            "{!dig} a hole for the {bulbs|little tree}",
            "{!pick|wash} {ripe pears|tomatoes|strawberries}",
            "{!sweep} up the {dry leaves|cut grass}",
            "{!look} for worms under the {stones|leaves}",
        ),
    ),
    "kitchen": Topic(
        places=("kitchen", "bakery", "pantry", "dining room"),
        things=("soup pot", "loaf of bread", "wooden spoon", "apple pie", "kettle", "frying pan"),
        people=("cook", "baker", "uncle who makes pancakes"),
        acts=(
            "{!stir} the {soup|sauce|porridge}",
            "{!cut|chop} {onions|carrots|fresh herbs}",
            "{!knead} the {dough|pastry}",
            "{!set} the table for {two|four|six}",
            "{!taste} the {stew|jam|gravy}",
            "{!wash} the {plates|cups|bowls}",
        ),
    ),
    "school": Topic(
        places=("classroom", "school library", "school yard", "reading corner"),
        things=("pencil case", "notebook", "blackboard", "spelling list", "globe", "ruler"),
        people=("teacher", "new pupil", "headmaster"),
        acts=(
            "{!read} a page of the {textbook|poem}",
            "{!write} {a long word|the alphabet|a short essay} in chalk",
            "{!learn|practise} the {seven times table|names of the rivers}",
            "{!answer} a question about {fractions|history|spelling}",
            "{!draw} a map of {Europe|the island}",
            "{!sharpen} the {pencils|crayons}",
        ),
    ),
    "sea": Topic(
        places=("beach", "harbour", "pier", "rocky shore"),
        things=("sailing boat", "shell", "anchor", "fishing net", "sand castle", "lighthouse lamp"),
        people=("sailor", "fisherman", "captain"),
        acts=(
            "{!look} for {crabs|starfish} among the rocks",
            "{!swim} out to the {buoy|raft}",
            "{!count|watch} the {waves|gulls}",
            "{!build} a wall against the {tide|surf}",
            "{!row} along the {coast|quay}",
            "{!catch} a {mackerel|small fish}",
        ),
    ),
    "music": Topic(
        places=("concert hall", "music room", "choir loft", "bandstand"),
        things=("violin", "drum", "trumpet", "song book", "piano stool", "flute"),
        people=("conductor", "pianist", "girl with the cello"),
        acts=(
            "{!practise|play} {scales|a waltz|a slow tune}",
            "{!tune} the {strings|guitar}",
            "{!sing} the {second verse|melody|chorus}",
            "{!clap} the {rhythm|beat}",
            "{!hum} an old {lullaby|hymn}",
            "{!turn} the pages of the {score|sheet music}",
        ),
    ),
    "market": Topic(
        places=("market square", "fruit stall", "cheese shop", "corner store"),
        things=("shopping basket", "purse", "pair of scales", "price tag", "bag of nuts", "coin"),
        people=("shopkeeper", "customer in the queue", "woman who sells honey"),
        acts=(
            "{!buy} {a dozen eggs|two lemons|a kilo of plums}",
            "{!count|pay} the {change|coins}",
            "{!compare} the prices of {cheese|melons}",
            "{!stand} in line at the {till|counter}",
            "{!sell} {jars of honey|paper flowers}",
            "{!weigh} the {potatoes|cherries}",
        ),
    ),
}
