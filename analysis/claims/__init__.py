"""Verdicts on the paper's claims, by rules that were written before the runs: ``python -m analysis.claims``.

A file a claim (``c1_time.py`` ...): its function takes what there is of the experiments that the claim rests
on and says "holds", "does not hold", "undecided", "not testable yet" or "not tested", by the rule in its
docstring. What it takes to *show* a difference, and what an *overall* difference is, stands in
`analysis.significance`; all that is not shown is undecided. What must have been learned before anything is
judged stands in `analysis.gates`.

When the rules were written, tables 1 and 2 had been published with three seeds; nothing had been seen of
their further seeds and of the other experiments. What was changed later says so in its docstring and in the
claim's own rule; the gates came later, and can only take a verdict back. A verdict is about this world at
this scale: what of it carries over to the paper's is the reader's to judge.
"""
