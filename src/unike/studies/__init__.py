"""The paper's studies (section 4.5: Table 4, Figures 4, 5, 7) and some beyond it; a study is a file.

What studies share is in `request` (what is asked), `lab` (variants and their runs), `base` (what a study is) and
`writing` (the files it leaves).
"""

SHARED = frozenset({"base", "lab", "request", "writing"})
"""Files that are no studies."""
