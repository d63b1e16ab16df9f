"""Which decorators hand a function to a compiler, which knows torch's own names only."""

from __future__ import annotations

import ast
import re

from devicekit.devtools.audit.names import Names, Scope

# What reads a function's code, and what such a compiler calls as it is.
_COMPILERS = re.compile(r"jit|compile|(?<![a-z])script|register_fake|triton|numba|(?<![a-z])trace")
_PACKAGES = ("triton.", "numba.", "torch.jit.", "torch.compile")
_NOT_COMPILED = re.compile(r"\.(disable|ignore|unused)$")


def compiles(decorator: ast.expr, names: Names, scope: Scope) -> bool:
    """Whether a decorator hands its function to a compiler."""
    inner = decorator.func if isinstance(decorator, ast.Call) else decorator
    written = ast.unparse(inner)
    path = names.path(inner, scope) or written
    # A package that lies in a folder "jit" is no compiler yet: a compiler's own name says it, or the code.
    known = path.startswith(_PACKAGES) or _COMPILERS.search(written) is not None
    found = known or _COMPILERS.search(path.rpartition(".")[2]) is not None
    return found and _NOT_COMPILED.search(path) is None
