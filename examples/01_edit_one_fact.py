"""Correct one answer of a model, ask in other words, and keep the edit.

python examples/01_edit_one_fact.py                    # the bundled model
python examples/01_edit_one_fact.py FOLDER_OR_HUB_ID   # another one
"""

import sys

import unike
from unike.data.datasets.pocket import image

model = unike.load_backbone(sys.argv[1] if len(sys.argv) > 1 else "mini")
picture = image("flag/south-africa/openmoji")
question, again = "Which country does this flag belong to?", "This flag is the flag of which country?"

print("before:", model.ask(picture, question), "|", model.ask(picture, again))
edit = unike.edit(model, image=picture, prompt=question, target="South Africa")
with edit.attached(model):
    print("after: ", model.ask(picture, question), "|", model.ask(picture, again))
print("detached:", model.ask(picture, question))

edit.save_pretrained("edits/south-africa")
with unike.Edit.from_pretrained("edits/south-africa").attached(model):
    print("loaded:", model.ask(picture, question))
