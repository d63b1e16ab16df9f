"""What somebody gets who installs the built wheels and nothing else: ``make stranger``, after ``make dist``.

Each extra is installed alone into a clean environment. Every command of the program and every example of the pages
is then run there: it works, or it says which extra it needs. Uninstalling leaves nothing behind. `extras` has what
must work with which extra, `visit` sees to it, `page` keeps what was seen.
"""
