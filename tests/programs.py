"""Programs that tests start: they end with their block, whatever happens in it."""

from __future__ import annotations

import subprocess
from types import TracebackType

# What other people wrote and programs of ours import, for processes that others are forked from.
SLOW_IMPORTS = (
    "numpy",
    "torch",
    "safetensors.torch",
    "tokenizers",
    "httpx",
    "httptools",
    "jinja2.sandbox",
    "pydantic",
    "prometheus_client",
    "starlette.applications",
    "uvicorn",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)


class Program(subprocess.Popen[str]):
    """As `subprocess.Popen` with text, but a block that fails is not waited for: the program is killed."""

    def __init__(self, command: list[str], **options: object) -> None:
        super().__init__(command, text=True, **options)  # type: ignore[call-overload]  # as given to it

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.kill()
        super().__exit__(kind, error, trace)

    def address(self) -> str:
        """Where a server that was started says that it serves; what it says before goes into the failure."""
        assert self.stdout is not None
        said = []
        for line in self.stdout:
            said.append(line)
            if line.startswith("Serving on "):
                return line.removeprefix("Serving on ").strip()
        raise AssertionError(f"The server ended without serving: {''.join(said)}")
