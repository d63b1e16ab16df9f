"""A small engine before and after it was moved off ``torch.cuda``; docs/porting.md walks through it.

`before` becomes `after` in three steps: ``devicekit audit --fix`` (audit.diff), the formatter, and what is left to
a person (by-hand.diff). ``python -m examples.port`` writes both diffs.
"""
