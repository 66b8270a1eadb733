"""Edit several facts in one pass, stack them, and take one off again.

python examples/02_many_edits.py                    # the bundled model
python examples/02_many_edits.py FOLDER_OR_HUB_ID   # another one
"""

import sys

import unike
from unike import Query
from unike.data.datasets.pocket import Pocket

model = unike.load_backbone(sys.argv[1] if len(sys.argv) > 1 else "mini")
facts = [case.edit for case in Pocket("vqa").cases("dev")[::40][:4]]
asked = [Query(fact.prompt, fact.image) for fact in facts]

editor = unike.make_editor("unike", steps=20)
edits = editor.edit(model, facts)  # four independent edits, one pass

print("targets:", [fact.target for fact in facts])
print("before: ", model.generate(asked))
print("each:   ", unike.EditedModel(model, [edits]).generate(asked))  # row i is seen by edit i alone
single = [edits[row] for row in range(len(edits))]
print("stacked:", unike.EditedModel(model, single).generate(asked))  # all four at once, one after another
print("without the first:", unike.EditedModel(model, single[1:]).generate(asked))
