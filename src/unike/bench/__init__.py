"""The benchmark: from cases to results on disk, and from these to numbers.

`spec` says what is measured and `header` what a run depends on beside that; `selection` chooses and arranges cases,
`runner` edits them, `replay` asks, `protocols` score, `results` keeps every finished case through a kill at any moment,
`summary` makes means of it; `workers` share a run. What a report reads (`spec`, `header`, `outcome`, `protocols`,
`results`, `summary`) imports no torch and no model.
"""
