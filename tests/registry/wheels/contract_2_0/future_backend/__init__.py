raise SystemExit("a plugin for another contract must not be imported")
