"""Where segments are encoded: in this process, in others on this machine, on a Ray cluster."""

from pipeline.config import PrepareOptions
from pipeline.prepare.engines.base import Engine
from pipeline.store.chunk_cache import ChunkCache


def make_engine(config: PrepareOptions, cache: ChunkCache) -> Engine:
    """Return the engine that ``--engine`` names; nothing is started yet.

    Raises:
        ConfigError: It is not installed.
    """
    # Imported late: one of them is used.
    if config.engine == "ray":
        from pipeline.prepare.engines.ray import RayEngine

        return RayEngine(cache, config.ray_address, config.num_workers)
    from pipeline.prepare.engines.local import LocalEngine, usable_cores

    return LocalEngine(cache, config.num_workers or usable_cores())
