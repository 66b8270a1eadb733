"""When an answer counts: a protocol is a file here, or of another distribution; protocols are never mixed.

==================  ========================================================  =====================================
protocol            where the target is wanted                                where the answer should be unchanged
                    (reliability, generality, portability)                    (locality, specificity)
==================  ========================================================  =====================================
``strict``          greedy answer, normalised exact match (``exact``)         the same answer as before (``exact``)
``teacher_forced``  argmax at the gold tokens: all (``em``), share            argmax before and after agree at the
                    (``token``)                                               model's own answer before the edit
                                                                              (``em``, ``token``), and at the gold
                                                                              answer (``gold_em``, ``gold_token``)
``mmedit``          share of gold tokens (``token``)                          top-1 (text, ``top1``) or top-10 ids
                                                                              (image, ``top10``), rank by rank, at
                                                                              every position of prompt and answer
==================  ========================================================  =====================================

``strict`` looks at what a model really says; under the other two it is shown the answer it is judged by, token by
token. The token that ends an answer belongs to the answer under ``strict`` alone. What enters is a value of strings and
token ids (`unike.bench.protocols.base.Response`), never a tensor: reports read this too, without torch.
"""
