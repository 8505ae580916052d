"""All kinds of generated samples, and all labels with their classes."""

from phiscope.training.synthetic.exercises import EXERCISES
from phiscope.training.synthetic.facts import FACTS, TRUTHS
from phiscope.training.synthetic.junk import JUNK
from phiscope.training.synthetic.manners import MOODS, RUDENESS, WHEN
from phiscope.training.synthetic.occupations import GENDERS, GROUP_A, GROUP_B, OCCUPATIONS
from phiscope.training.synthetic.samples import Kind
from phiscope.training.synthetic.stories import STORIES
from phiscope.training.synthetic.talks import CHATS, QUESTIONS
from phiscope.training.synthetic.topics import TOPICS

KINDS: dict[str, Kind] = {
    "story": STORIES,
    "fact": FACTS,
    "occupation": OCCUPATIONS,
    "qa": QUESTIONS,
    "chat": CHATS,
    "code": EXERCISES,
    "junk": JUNK,
}

LABELS: dict[str, tuple[str, ...]] = {
    "quality": ("textbook", "junk"),
    "sentiment": tuple(MOODS),
    "rudeness": tuple(RUDENESS),
    "tense": tuple(WHEN),
    "topic": tuple(TOPICS),
    "truth": TRUTHS,
    "occupation": GROUP_A + GROUP_B,
    "gender": GENDERS,
    "verified": ("true",),
}
