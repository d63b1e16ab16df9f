"""The least a backend can be: the required hooks over one device, as a class and as the source of a module."""

from __future__ import annotations

import inspect

from devicekit import hookimpl


class Required:
    """One device and nothing else."""

    @hookimpl
    def is_available(self) -> bool:
        return True

    @hookimpl
    def device_count(self) -> int:
        return 1

    @hookimpl
    def synchronize(self, index: int) -> None: ...


SOURCE = "from devicekit import hookimpl\n\n" + inspect.getsource(Required).replace("Required", "Backend")
