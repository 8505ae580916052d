"""Wording that carries a label: sentiment, rudeness and tense, each in many ways.

Some phrases of a class hold words of the other one ("not sad", "do not thank me"), so that a list
of words tells the classes apart well and not without fault.
"""

from __future__ import annotations

MOODS: dict[str, dict[str, tuple[str, ...]]] = {
    "positive": {
        "mood": (
            *("happy", "glad", "cheerful", "proud", "delighted", "pleased", "hopeful", "merry"),
            *("thrilled", "not sad", "far from gloomy", "no longer worried"),
        ),
        "fine": (
            *("lovely", "wonderful", "perfect", "beautiful", "excellent", "splendid", "charming"),
            *("not bad at all", "anything but ugly"),
        ),
        "event": (
            "everything {!go} {well|as it should}",
            "the {thing} {!turn} out {fine}",
            "{hero} {!win} a prize for the {thing}",
            "{friend} {!give} {them} a hug",
            "nothing {!go} wrong from then on",
            "{hero} {!find} the lost {thing} again",
            "the whole day {!be} {fine}",
            "people {!are} {mood} because of the {thing}",
            "a friend {!bring} {them} a {fine} present",
            "no one {!complain} any more",
        ),
        "ending": (
            "{hero} {!feel} {mood}",
            "{hero} {!go} home {mood}",
            "{she} {!laugh|smile|dance} all the way home",
            "that evening {!be} {fine}",
            "{she} {!sleep in peace|hum with joy|think of it with pleasure}",
            "it {!be} a day to remember with a smile",
            "{she} {!have} no reason to cry",
        ),
    },
    "negative": {
        "mood": (
            *("sad", "upset", "gloomy", "worried", "miserable", "lonely", "ashamed", "bitter"),
            *("heartbroken", "not happy", "far from cheerful", "no longer hopeful"),
        ),
        "fine": (
            *("awful", "ugly", "terrible", "horrible", "dreadful", "dull", "nasty"),
            *("not good at all", "anything but lovely"),
        ),
        "event": (
            "everything {!go} {wrong|from bad to worse}",
            "the {thing} {!turn} out {fine}",
            "{hero} {!break} the {thing}",
            "{friend} {!leave} without a word",
            "nothing {!go} well from then on",
            "{hero} {!lose} the {thing} for good",
            "the whole day {!be} {fine}",
            "people {!are} {mood} because of the {thing}",
            "a thief {!take} the {thing} and a {fine} storm {!come}",
            "no one {!smile} any more",
        ),
        "ending": (
            "{hero} {!feel} {mood}",
            "{hero} {!go} home {mood}",
            "{she} {!cry|sob|sigh} all the way home",
            "that evening {!be} {fine}",
            "{she} {!lie awake in pain|shiver with fear|think of it with regret}",
            "it {!be} a day to forget",
            "{she} {!have} no reason to laugh",
        ),
    },
}

RUDENESS: dict[str, dict[str, tuple[str, ...]]] = {
    "polite": {
        "speech": (
            "Could you please hand me the {thing}?",
            "Thank you so much, {friend}.",
            "Excuse me, may I use the {thing} for a moment?",
            "Would you mind if I sat here?",
            "I am sorry to trouble you, {friend}.",
            "You are welcome to the {thing}.",
            "After you, {friend}.",
            "If it is no trouble, I would like to see the {thing}.",
            "I would be grateful for your help with the {thing}.",
            "Pardon me, I did not see you there.",
            "That is very kind of you, {friend}.",
            "Please take as long as you need.",
            "That was not a stupid question, {friend}.",
            "Nobody should tell you to shut up, {friend}.",
        ),
        "voice": (
            *("kindly", "gently", "with a small bow", "in a warm voice", "with respect"),
            *("quietly", "at once", "after a while"),
        ),
    },
    "rude": {
        "speech": (
            "Give me the {thing} right now!",
            "Shut up, {friend}.",
            "Get out of my way, you fool!",
            "Nobody asked you, {friend}.",
            "Hurry up, I have no time for you.",
            "I do not care what you want with the {thing}.",
            "Take your silly {thing} and go away!",
            "What a stupid question.",
            "Keep your dirty hands off the {thing}!",
            "Who do you think you are?",
            "You are useless, {friend}.",
            "Can you not shut your mouth for a moment?",
            "Do not thank me, just leave.",
            "Why should I say please to you?",
        ),
        "voice": (
            *("rudely", "harshly", "with a sneer", "in a sharp voice", "with contempt"),
            *("loudly", "at once", "after a while"),
        ),
    },
}

WHEN: dict[str, tuple[str, ...]] = {
    "past": (
        *("yesterday", "last week", "a year ago", "long ago", "on a day in spring"),
        *("one morning", "one day", "on a Monday", "before the holidays"),
    ),
    "present": (
        *("today", "this week", "every year", "these days", "on a day in autumn"),
        *("one morning", "one day", "on a Monday", "as the holidays begin"),
    ),
}
