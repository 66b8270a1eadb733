"""Collecting the in-context knowledge of a backbone and disentangling it (section 3.3, Appendix C).

What a backbone answers wrongly makes triplets ``(Q_I, A_pos, A_neg)``; the states behind both answers train two small
encoders for each edited layer. `pipeline` has the steps in order, and each step is a file: which questions are asked
(`candidates`), which answers are mistakes (`collect`), what is read behind them (`states`), what is learned from that
(`train`, `learn`, `probe`), and where the gate opens (`gate`). What a run has done so far is kept by `work`. Nothing of
an evaluation may be learned from, and every step says how much fell out.
"""
