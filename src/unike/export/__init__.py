"""Ways out: edits as a LoRA adapter for PEFT, or as the weights of an ordinary transformers model.

Exact where edits are changes of weights; learned from the edited model, and scored, where they are more than that.
What leaves unike can neither be revoked nor keeps a gate. Nothing here makes an edit; `peft` is needed for LoRA alone,
and is imported in one file.
"""

from unike.export.exporting import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]
