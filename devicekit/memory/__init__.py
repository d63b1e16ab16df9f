"""Pools: pages, request rows, KV storage, prefix cache, and the audit that proves they conserve."""
