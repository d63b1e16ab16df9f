"""An inference engine in one object: a model on a device, its pools, its scheduler, and the verbs to steer it.

::

    from devicekit.engine import Engine

    engine = Engine.open("path/to/model")
    for generation in engine.generate(["Once upon", "The sea"], max_new_tokens=16, temperature=0):
        print(generation.text)
"""

import devicekit.numpy_needed  # noqa: F401  # before whatever would fail without it
from devicekit.engine.config import EngineConfig, plan_pool
from devicekit.engine.engine import Engine
from devicekit.engine.generation import Generation, IncrementalText
from devicekit.engine.verbs import EngineVerbs

__all__ = ["Engine", "EngineConfig", "EngineVerbs", "Generation", "IncrementalText", "plan_pool"]
