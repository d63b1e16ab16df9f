"""Finds out whether the tests would notice: changes the code in one place at a time, and runs tests that use it.

``python -m tools.mutants`` measures once which tests run which lines, then judges mutants in processes that
are forked with every test collected. A mutant is *killed* when a test fails, hangs or crashes, and *survives*
when all pass; what survives is a hole in the tests, or the same program in other words (`equivalent`).
"""
