"""One end of a ZeroMQ socket of this machine, read without waiting."""

from __future__ import annotations

from devicekit.contract.errors import DeviceKitError
from devicekit.contract.text import shown
from devicekit.scheduling.errors import InvalidOperation

_LINGER = 5000  # milliseconds in which the last answer may leave
_LARGEST = 64 << 20  # bytes of a message: it describes weights, and holds none


class SenderGone(DeviceKitError):
    """The other process has closed its end."""


class MessageSocket:
    """Takes messages in and answers each, before the next comes.

    Raises:
        InvalidOperation: the address is not one of this machine, or ZeroMQ is not installed.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith("ipc://"):
            raise InvalidOperation(
                f"Weights are streamed within a machine, over ipc://, not {shown(address)}."
            )
        try:
            import zmq
        except ImportError as error:
            raise InvalidOperation("Streamed weights need pyzmq: pip install 'devicekit[stream]'.") from error
        self._zmq = zmq
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, _LINGER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _LARGEST)
        self._watch: zmq.Socket[bytes] = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise InvalidOperation(f"{shown(address)} is no address: {error}.") from error

    def receive(self) -> list[bytes]:
        """The message that has come, or none.

        Raises:
            SenderGone: none will come any more.
        """
        gone = self._watch.poll(0)  # before the last look: what was sent before the end still counts
        try:
            return [self._socket.recv(self._zmq.NOBLOCK)]
        except self._zmq.Again:
            if gone:
                raise SenderGone("the sender is gone") from None
            return []

    def send(self, answer: bytes) -> None:
        """Answer the last message."""
        self._socket.send(answer)

    def close(self) -> None:
        """Leave; what was sent still goes out."""
        self._socket.disable_monitor()
        self._watch.close()
        self._socket.close()
