"""The weights of another engine that serves the same model, read over its control plane.

All of them are read and compared before any is written: names, types and shapes with this engine's, and the digest
of all with the expected one. A peer that stalls, ends midway, lies or changes its weights meanwhile has changed
nothing here. Each rank reads whole weights, one after the other, and keeps its part in host memory.
"""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from urllib.parse import SplitResult, urlsplit

import torch

from devicekit.contract.errors import DeviceKitError
from devicekit.contract.text import shown
from devicekit.scheduling.errors import InvalidOperation
from devicekit.scheduling.messages import Selector
from devicekit.weights.checksum import tensor_digest, total_digest
from devicekit.weights.operations import PrepareWeights
from devicekit.weights.store import Staged, WeightStore

READ_WEIGHTS = "/read_weights"
"""Where a peer gives weights: names and a version in, safetensors out."""
MOST_NAMES = 1024  # in one question

_TOGETHER = 64 << 20  # bytes of weights that are asked for at once; a larger one is asked for by itself
_PIECE = 1 << 20  # bytes that are received at once
_FLOOR = 1 << 20  # bytes that must come in the patience, unless the answer ends before
_HEADER = 4096, 1024  # bytes of a safetensors header that are let pass, and more for each tensor
_LONGEST_REFUSAL = 64 << 10  # bytes

Key = tuple[Selector, str]


class PeerFailed(DeviceKitError):
    """Another engine did not give its weights, or gave other ones."""


class PeerFetch:
    """Weights that are being read, on a thread of their own: requests go on meanwhile."""

    def __init__(self, store: WeightStore, operation: PrepareWeights) -> None:
        """
        Raises:
            InvalidOperation: the peer is no URL, its weights' version or checksum is not said, or the selector
                means another model than the target.
        """
        if operation.selector is Selector.DRAFT:
            raise InvalidOperation("A peer gives the weights of its target model only.")
        if not operation.weight_version or not operation.checksum:
            raise InvalidOperation(
                "Weights of a peer need the weight_version and the checksum that it must have."
            )
        if not 0 < operation.patience < math.inf:
            raise InvalidOperation(f"Patience is a positive number of seconds, not {operation.patience}.")
        self._store = store
        self._operation = operation
        self._model = store.selected(Selector.TARGET)[Selector.TARGET]
        self._expected = {
            name: (tensor.dtype, self._model.whole_shape(name, tensor))
            for (_, name), tensor in store.tensors(Selector.TARGET).items()
        }
        self._stopped = threading.Event()
        self._peer = _Peer(operation, self._stopped)
        self._parts: dict[Key, torch.Tensor] = {}
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="devicekit-peer-weights", daemon=True)
        self._thread.start()

    def take(self) -> Staged | None:
        """The weights, ready to be written; ``None``: they are not complete yet.

        Raises:
            PeerFailed: it will not come.
            InvalidOperation: it holds values that are NaN or infinite, which are refused here.
        """
        if self._thread.is_alive():
            return None
        if self._failure is not None:
            raise self._failure
        parts, self._parts = self._parts, {}
        return self._store.stage_parts(parts)

    def cancel(self) -> None:
        """Stop soon. What was read is dropped."""
        self._stopped.set()
        self._parts = {}

    def _run(self) -> None:
        try:
            self._read()
        except DeviceKitError as error:
            self._failure = error
        except Exception as error:  # it belongs to whoever waits for the weights
            self._failure = PeerFailed(f"{self._peer.name}: {type(error).__name__}: {error}")
        finally:
            self._peer.close()

    def _read(self) -> None:
        digests: dict[str, str] = {}
        parts: dict[Key, torch.Tensor] = {}
        with torch.no_grad():
            for names, size in self._batches():
                for name, whole in self._peer.read(names, size).items():
                    self._require(name, whole)
                    self._store.check_finite([(name, whole)])
                    digests[name] = tensor_digest(whole)
                    part = self._model.shard(name, whole)
                    parts[Selector.TARGET, name] = whole if part is whole else part.clone()
        found, wanted = total_digest(digests), self._operation.checksum
        if found != wanted:
            raise PeerFailed(
                f"{self._peer.name} gave other weights under the name {shown(self._operation.weight_version)}: "
                f"their checksum is {found}, not {wanted}."
            )
        if not self._stopped.is_set():
            self._parts = parts

    def _batches(self) -> Iterator[tuple[list[str], int]]:
        """Names that are asked for together, and the bytes of their weights."""
        names: list[str] = []
        size = 0
        for name, (dtype, shape) in self._expected.items():
            own = math.prod(shape) * dtype.itemsize
            if names and (size + own > _TOGETHER or len(names) == MOST_NAMES):
                yield names, size
                names, size = [], 0
            names, size = [*names, name], size + own
        if names:
            yield names, size

    def _require(self, name: str, whole: torch.Tensor) -> None:
        dtype, shape = self._expected[name]
        if (whole.dtype, tuple(whole.shape)) != (dtype, tuple(shape)):
            raise PeerFailed(
                f"{self._peer.name} has another model: {name} is {whole.dtype} {list(whole.shape)} there, and "
                f"{dtype} {list(shape)} here."
            )


class _Peer:
    """The engine that is asked for weights. It must answer in time, with as many bytes as were asked for."""

    def __init__(self, operation: PrepareWeights, stopped: threading.Event) -> None:
        self.name = operation.peer
        self._operation = operation
        self._stopped = stopped
        self._url = _parse(operation.peer)
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        # It follows no redirections.
        self._connection = kind(self._url.hostname or "", self._url.port, timeout=operation.patience)

    def read(self, names: list[str], size: int) -> dict[str, torch.Tensor]:
        """These weights, whole; ``size``: their bytes. Raises PeerFailed."""
        limit = size + _HEADER[0] + _HEADER[1] * len(names)
        content = self._ask(names, limit)
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            found: dict[str, torch.Tensor] = load(content)
        except (SafetensorError, ValueError, KeyError) as error:
            raise PeerFailed(f"{self.name} answered with what is no safetensors: {error}.") from error
        if found.keys() != set(names):
            raise PeerFailed(
                f"{self.name} gave {len(found)} weights that are not the {len(names)} asked for."
            )
        return found

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def _ask(self, names: list[str], limit: int) -> bytes:
        operation = self._operation
        body = json.dumps({"names": names, "weight_version": operation.weight_version})
        # One connection for each question: between two of them it may be idle for longer than a server keeps it.
        headers: dict[str, str | bytes] = {"Content-Type": "application/json", "Connection": "close"}
        if operation.peer_key:
            headers["Authorization"] = f"Bearer {operation.peer_key}".encode()
        try:
            self._connection.request("POST", f"{self._url.path.rstrip('/')}{READ_WEIGHTS}", body, headers)
            with self._connection.getresponse() as answer:
                if answer.status != http.client.OK:
                    raise PeerFailed(f"{self.name} gives no weights: {_refusal(answer)}")
                return self._receive(answer, limit)
        except TimeoutError as error:
            raise PeerFailed(f"{self.name} has said nothing for {operation.patience:g} s.") from error
        except (OSError, http.client.HTTPException) as error:
            raise PeerFailed(
                f"{self.name} did not give its weights: {type(error).__name__}: {str(error)[:200]}"
            ) from error
        finally:
            self._connection.close()

    def _receive(self, answer: http.client.HTTPResponse, limit: int) -> bytes:
        content, length = bytearray(), answer.length
        if length is None:
            raise PeerFailed(f"{self.name} does not say how long its answer is.")
        if length > limit:
            raise PeerFailed(f"{self.name} would answer with {length} bytes, where {limit} are the most.")
        patience = self._operation.patience
        since, before = time.monotonic(), 0
        while len(content) < length:
            if self._stopped.is_set():
                raise PeerFailed("Nobody waits for these weights any more.")
            piece = answer.read1(_PIECE)  # no more than the answer has
            if not piece:
                raise PeerFailed(f"{self.name} ended midway, after {len(content)} of {length} bytes.")
            content += piece
            if (now := time.monotonic()) - since > patience:
                if len(content) - before < _FLOOR:
                    raise PeerFailed(
                        f"{self.name} is too slow: {len(content) - before} bytes in {now - since:.1f} s."
                    )
                since, before = now, len(content)
        return bytes(content)


def _parse(url: str) -> SplitResult:
    try:
        parsed = urlsplit(url)
        sound = bool(parsed.hostname) and parsed.port != 0
    except ValueError as error:
        raise InvalidOperation(f"{url[:200]!r} is no URL of an engine: {error}") from error
    if not sound or parsed.scheme not in ("http", "https") or "@" in parsed.netloc or parsed.query:
        raise InvalidOperation(f"{url[:200]!r} is no URL of an engine; one looks like http://10.0.0.5:30000")
    return parsed


def _refusal(answer: http.client.HTTPResponse) -> str:
    """Why the peer refused, in its words."""
    if answer.status == http.client.NOT_FOUND:
        return f"it has no {READ_WEIGHTS} (404)"
    content = answer.read(_LONGEST_REFUSAL)
    try:
        document = json.loads(content)
        error = document.get("error")
        said = error.get("message") if isinstance(error, Mapping) else document.get("message")
    except (ValueError, AttributeError, RecursionError):
        said = None
    return f"{str(said)[:500]} ({answer.status})" if said else f"status {answer.status}"
