"""Mutation testing: small changes to the package, one at a time, and whether a test fails for each.

`python -m tests.mutation` is the command. mutmut and cosmic-ray do not fit: the one puts a trampoline around every
function, which torch.compile and the tests of signatures see, and mutates nothing outside of functions; the other
starts a process and runs all tests for each mutant, of which importing torch alone takes seconds. Neither samples by a
seed or within a time.
"""
