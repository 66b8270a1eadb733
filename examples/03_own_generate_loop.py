"""Edits in a generate loop of your own: sampling, streaming from another thread, and a second turn.

python examples/03_own_generate_loop.py                    # the bundled model
python examples/03_own_generate_loop.py FOLDER_OR_HUB_ID   # another one
"""

import sys
from threading import Thread

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, TextIteratorStreamer

import unike
from unike.backbones.families import mini
from unike.data.datasets.pocket import image

source = sys.argv[1] if len(sys.argv) > 1 else str(mini.build())
model = AutoModelForImageTextToText.from_pretrained(source)  # yours, loaded as you like
processor = AutoProcessor.from_pretrained(source)

backbone = unike.wrap(model, processor)
fact = unike.Query("Which country does this flag belong to?", image("flag/south-africa/openmoji"), "South Africa")
edit = unike.make_editor("unike", steps=20).edit(backbone, fact)
edited = unike.EditedModel(backbone, [edit])

# Any tensors that the model takes will do: `processor(text=..., images=...)` makes them, and so does this.
batch = backbone.encode([fact.question], padding_side="left")
inputs, tokenizer = batch.inputs, processor.tokenizer


def said(ids, inputs):
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


greedy = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
print("before:", said(model.generate(**inputs, **greedy), inputs))
with edited.attached():  # in this thread, until the block is left
    ids = model.generate(**inputs, **greedy)
    print("after: ", said(ids, inputs))
    torch.manual_seed(0)
    print("sampled:", said(model.generate(**inputs, **greedy | {"do_sample": True}), inputs))
    more = tokenizer("\nQuestion: Whose flag is this? Short answer:", add_special_tokens=False, return_tensors="pt")[
        "input_ids"
    ]
    turn = backbone.extended(batch, torch.cat([ids[:, inputs["input_ids"].shape[1] :], more], dim=1)).inputs
    print("second turn:", said(model.generate(**turn, **greedy), turn))  # all of the talk is the prompt

streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
Thread(target=edited.call, args=(model.generate,), kwargs={**inputs, **greedy, "streamer": streamer}).start()
print("streamed:", "".join(streamer).strip())  # `call` attaches the edits in the thread that generates
