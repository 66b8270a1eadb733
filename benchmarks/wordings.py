"""How well the map of words tells rewordings from other questions, in words that are in none of the data sets' splits.

    python benchmarks/wordings.py

Of names and of captions: the area under the curve, and the shares of rewordings at which the gate's question opens
wholly, and of other questions at which it stays shut. Nothing is tuned on these.
"""

import json

from unike.editors.unike.gate import ASKED
from unike.editors.unike.words import read_words

NAMES = [
    "Got a name for this?",
    "Found this on the beach, what've I got here?",
    "What would you call the object above?",
    "Can anybody tell me what this thing is?",
    "identify pls",
    "What do we see here?",
    "Name it.",
    "Help me figure out what this is",
    "which item is that",
    "The kids keep asking me what that is. So?",
    "I forgot the word for this thing.",
    "What's that called again?",
    "Would you know the name of the item pictured?",
    "Tell me what this is in one word",
    "Any clue what I photographed?",
    "say what it is",
    "what on earth is that thing",
    "If you had to label this picture, what label would you use?",
    "Do you recognise this object?",
    "This showed up in my inbox. What is it supposed to be?",
]
NOT_NAMES = [
    "What colour is it mostly?",
    "Where do people keep those?",
    "Is it bigger than a shoe?",
    "Who came up with it?",
    "How would you draw one?",
    "Does it need batteries?",
    "What is the background like?",
    "Is that a photograph?",
    "How many are there?",
    "Would it break if I dropped it?",
    "Could I post it in an envelope?",
    "What sound does it make?",
    "Do children like these?",
    "Is it old-fashioned?",
    "What should I feed it?",
    "In which season do you see it?",
    "Why would anyone want one?",
    "What's it made from?",
    "Can it swim?",
    "Which part of it is the heaviest?",
    "How long does it last?",
    "Is it symmetrical?",
    "Where does it point?",
    "What could I use in its place?",
    "What would a museum write about its history?",
    "Does it look friendly?",
    "How do I clean it?",
    "When was it invented?",
    "Is there any text on it?",
    "Whose is it?",
]
CAPTIONS = [
    "Describe what you see.",
    "Write one line about this image.",
    "What is going on here?",
    "Give a short description please",
    "caption this",
    "Put the picture into words.",
    "Tell a blind friend what the photo shows.",
    "sum up the picture in a sentence",
    "What would the caption under this photo say?",
    "Can you describe the scene for me?",
    "I need alt text for this image.",
    "Summarise this image",
]
NOT_CAPTIONS = [
    "What colours dominate?",
    "Is it day or night?",
    "How many people are there?",
    "Is this a photo or a painting?",
    "What mood does it have?",
    "Who took it?",
    "Where was it taken?",
    "Is anything written in it?",
    "What is in the top left corner?",
    "Would it look good on a wall?",
    "What is the weather like?",
    "Is it blurry?",
    "Which animal is it?",
    "What is this called?",
    "What is the most expensive thing in it?",
    "Could this be staged?",
]


def main() -> None:
    for edited, same, other in (
        ("What is this?", NAMES, NOT_NAMES),
        ("Describe the picture.", CAPTIONS, NOT_CAPTIONS),
    ):
        own = read_words([edited]).asked[0]
        near, far = (read_words(texts).asked @ own for texts in (same, other))
        found = {
            "edited": edited,
            "auc": round((near[:, None] > far[None]).float().mean().item(), 3),
            "open": round(100 * (near >= ASKED.high).float().mean().item(), 1),
            "shut": round(100 * (far <= ASKED.low).float().mean().item(), 1),
        }
        print(json.dumps(found))


if __name__ == "__main__":
    main()
