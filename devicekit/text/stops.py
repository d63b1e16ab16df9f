"""Stop strings, found in text that comes in pieces: the earliest match wins, and of those the longest.

Every character is looked at once, in an automaton that knows at any time how much of the text's end may be the
beginning of a stop string (Aho and Corasick, 1975). So neither the order of the list nor how the text is cut
matters, and no more is held back than that.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache

_FEW = 16  # stop strings that are looked for one by one in long text


class StopStrings:
    """Stop strings as an automaton. Build it with `compiled`, which keeps the latest ones."""

    def __init__(self, strings: tuple[str, ...]) -> None:
        self.strings = strings
        # Of each node: where a character leads to, how long its string is, the longest stop string that ends it.
        self.edges: list[dict[str, int]] = [{}]
        self.owner = [""]  # a stop string that begins with the node's
        self.depth = [0]
        self.longest = [0]
        self.fail = [0]
        # How many characters before the last one a match can have.
        self.reach = max(map(len, strings), default=1) - 1
        for string in strings:
            self._insert(string)
        self._link()

    @staticmethod
    @lru_cache(maxsize=128)
    def compiled(strings: tuple[str, ...]) -> StopStrings:
        """The automaton of these strings."""
        return StopStrings(strings)

    def next(self, node: int, character: str) -> int:
        """The node of the longest end of the text that begins a stop string."""
        edges, fail = self.edges, self.fail
        while (found := edges[node].get(character)) is None:
            if not node:
                return 0
            node = fail[node]
        return found

    def _insert(self, string: str) -> None:
        node = 0
        for character in string:
            known = self.edges[node].get(character)
            if known is None:
                known = self.edges[node][character] = len(self.edges)
                self.edges.append({})
                self.owner.append(string)
                self.depth.append(self.depth[node] + 1)
                self.longest.append(0)
                self.fail.append(0)
            node = known
        self.longest[node] = len(string)

    def _link(self) -> None:
        queue = deque(self.edges[0].values())
        while queue:
            node = queue.popleft()
            for character, child in self.edges[node].items():
                self.fail[child] = fail = self.next(self.fail[node], character)
                self.longest[child] = max(self.longest[child], self.longest[fail])
                queue.append(child)


class StopMatcher:
    """Finds stop strings in one text. ``found`` is where the first one begins, and its length.

    A match is final once no other could begin before it, or begin with it and be longer.
    """

    def __init__(self, stops: StopStrings) -> None:
        self._stops = stops
        self._node = 0
        self._seen = 0  # characters
        self._best: tuple[int, int] | None = None
        self.found: tuple[int, int] | None = None

    @property
    def held(self) -> int:
        """How many characters at the end of the text may yet turn out to be part of a match."""
        begin = self._seen - self._stops.depth[self._node]
        if self._best is not None:
            begin = min(begin, self._best[0])
        return self._seen - begin

    @property
    def undecided(self) -> bool:
        """Whether there is a match that is not final yet."""
        return self._best is not None and self.found is None

    def feed(self, text: str) -> bool:
        """Look at more text; returns whether there is a final match."""
        stops, node, at = self._stops, self._node, self._seen
        if self._best is None and self._passes(text):
            return False
        for character in text:
            node = stops.next(node, character)
            at += 1
            if not node and self._best is None:
                continue
            self._note(node, at)
            if self.found is not None:
                break
        self._node, self._seen = node, at
        return self.found is not None

    def _passes(self, text: str) -> bool:
        """Take in text without a match, if that can be told without looking at each character."""
        stops, node = self._stops, self._node
        if not node and stops.edges[0].keys().isdisjoint(text):
            self._seen += len(text)
            return True
        if len(text) < 2 * stops.reach or len(stops.strings) > _FEW:
            return False
        text_and_held = stops.owner[node][: stops.depth[node]] + text
        for stop in stops.strings:
            if stop in text_and_held:
                return False
        node = 0
        for character in text_and_held[-stops.reach :] if stops.reach else "":
            node = stops.next(node, character)
        self._node = node
        self._seen += len(text)
        return True

    def end(self) -> bool:
        """End the text: a match that could have become longer is final now."""
        self.found = self.found or self._best
        return self.found is not None

    def _note(self, node: int, at: int) -> None:
        stops = self._stops
        begin, longest = at - stops.depth[node], stops.longest[node]
        if longest:
            match = (at - longest, longest)
            if self._best is None or (match[0], -longest) < (self._best[0], -self._best[1]):
                self._best = match
        if self._best is None:
            return
        # What may still come: a stop string that begins at `begin`, if it has more characters than are there.
        if begin > self._best[0] or not stops.edges[node]:
            self.found = self._best
